"""Does the fast engine compute right on this machine? The built-in model against what is recorded and the oracle.

It takes the way of every user: the same ``load`` and ``generate``, programs kept on disk included. In a process of its
own, since a JAX that does not fit the machine may end its process (an unknown flag, an instruction that the processor
lacks) or never answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from assay.engines import generate, load
from assay.formats import AssayError, open_model
from assay.goldens import BUILTIN

BOUNDS = {"fast": 0.1, "f32": 1e-4}
"""How far logits may be from the oracle's in f64, root mean square over a position. fast, which rounds activations to 8
bits, is off by 0.03 at most (Zen 4), and 0.1 is half the smallest margin of the recorded choices: an error below it
changes none. f32 is off by 1e-6, where a typical logit is 10; the order of its sums may differ between machines."""
SECONDS = 900
"""A check that takes longer hangs: it takes half a minute of two processors where nothing is compiled yet."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and what came out."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """What the process of the self-check found: ``devices`` of JAX, the engine's fingerprint, and the checks."""

    devices: tuple[str, ...] = ()
    fingerprint: tuple[tuple[str, Any], ...] = ()
    checks: tuple[Check, ...] = ()
    error: str = ""
    """Why there are no checks, or not all; else empty."""

    @property
    def passed(self) -> bool:
        """Whether everything was checked and is right."""
        return bool(self.checks) and not self.error and all(check.passed for check in self.checks)


def self_check(seconds: float = SECONDS) -> Report:
    """Check the fast engine in a process of its own; whatever happens to that process is in the report."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=answer, args=(sending,), daemon=True)
    child.start()
    sending.close()
    try:
        if not receiving.poll(seconds):
            return Report(error=f"no answer within {seconds:g} s: the engine hangs on this machine")
        return receiving.recv()
    except EOFError:
        child.join()
        code = child.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Report(error=f"its process ended with {how} before it could answer")
    finally:
        child.kill()
        child.join()


def answer(to: Connection) -> None:
    """Check, and send the report; what the engine raises is the report's error."""
    try:
        to.send(checked())
    except AssayError as error:
        to.send(Report(error=str(error)))
    except Exception as error:
        to.send(Report(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def checked() -> Report:
    """Everything that is checked, in this process. Raises what the engine raises."""
    import jax  # in the child only: the command itself starts without it

    golden, file = json.loads(BUILTIN.with_suffix(".json").read_text(encoding="utf-8")), open_model(BUILTIN)
    whole = file.sha256 == golden["model_sha256"]
    checks = [Check("the built-in model", whole, "as recorded" if whole else "another file than the recorded one")]
    oracle = load(file, engine="reference", arith="f64", cache_weights=True)
    exact = {which: oracle.forward(golden[which]["prompt_ids"]) for which in ("raw", "chat")}
    fast = load(file)
    checks += [same_ids(f"fast: greedy ids, {which} prompt", fast, golden[which]) for which in exact]
    for engine in (fast, load(file, arith="f32")):
        for which, logits in exact.items():
            name = f"{engine.arith}: logits, {which} prompt"
            checks.append(close(name, engine.forward(golden[which]["prompt_ids"]), logits, BOUNDS[engine.arith]))
    tapped = fast.forward(golden["raw"]["prompt_ids"], unchanged)
    checks.append(close("fast: logits with a tap, raw prompt", tapped, exact["raw"], BOUNDS["fast"]))
    devices = tuple(f"{device.platform}:{device.device_kind}" for device in jax.devices())
    return Report(devices, tuple(fast.fingerprint().items()), tuple(checks))


def same_ids(name: str, engine: Any, golden: dict[str, Any]) -> Check:
    """Whether an engine writes what is recorded."""
    said, right = generate(engine, golden["prompt_ids"], max_tokens=64).ids, golden["ids"]
    same = sum(a == b for a, b in zip(said, right, strict=False))
    return Check(name, said == right, f"{same} of {len(right)} as recorded")


def close(name: str, logits: np.ndarray, exact: np.ndarray, bound: float) -> Check:
    """Whether logits [n_tokens, n_vocab] are within ``bound`` of the exact ones at every position."""
    off = float(np.sqrt(np.square(logits.astype(np.float64) - exact).mean(-1)).max())
    return Check(name, off <= bound, f"{off:.1e} from the oracle's, at most {bound:g}")


def unchanged(stage: str, layer: int | None, activation: np.ndarray) -> np.ndarray:
    """The tap that looks at nothing."""
    return activation
