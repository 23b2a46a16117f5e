"""How far each arithmetic drifts from the truth, and whether ``fast`` writes the text that the oracle writes:
``python -m tests.real.fast_agreement MODEL [--positions 2048] [--json FILE] [--work DIR] [--lock FILE]``.

*Teacher-forced*: sequences of 512 tokens of real text (Python source and English prose of the standard library,
half of them as a ChatML conversation), read by each engine in each arithmetic. At every position the prediction
is held against that of the oracle in ``f64``, and the fast engine's once more against the oracle in ``ggml``,
whose arithmetic it shares where it reads one token at a time. How near two engines of that arithmetic can be is
measured, too: the oracle beside itself with every activation moved in its last bit. An 8-bit rounding that falls
the other way is a whole step, and moves the next. The first token of each sequence is counted apart: activations are
hundreds of times larger there than elsewhere (Sun et al., "Massive Activations in Large Language Models", 2024), and
their blocks rounded as coarsely.

*Greedy*: the texts that ``accel`` in ``fast`` and ``reference`` in ``ggml`` write after 20 prompts, 64 tokens each.

The oracle is slow, so what it says is kept in ``--work`` (5 GB a model for 2,048 positions) under the SHA-256 of
the file, the ids and the arithmetic, and an interrupted run goes on where it was. It does not notice a changed
oracle: delete the folder then. The fast engine is always asked anew. The tables in ``docs/agreement.md`` are this
script's output.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import heapq
import inspect
import json
import platform
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

from assay import accel, reference
from assay.engines import find
from assay.formats import open_model
from assay.formats.contract.engine import Tap, identity
from assay.parity.divergence import divergence
from assay.reference.attention import KVCache
from assay.reference.model import forward, logits
from tests.real.agreement import CHAT, RAW
from tests.real.margins import margins

LENGTH = 512  # tokens of a sequence
SLICE = 256  # tokens that the oracle reads at a time: under 2 minutes for 1.5B weights in ggml
ROWS = 64  # positions compared at a time: 80 MB of f64 an array
N_GREEDY = 64  # tokens of a greedy text
WORK = Path.home() / ".cache" / "assay" / "agreement"
CODE = "".join(inspect.getsource(module) for module in (argparse, heapq, textwrap))
PROSE = "".join([heapq.__about__, *(topics[name] for name in ("execmodel", "import", "types"))])  # type: ignore[attr-defined]


class Drift(NamedTuple):
    """What one engine says of each position beside what another says, arrays [n_positions]."""

    kl: np.ndarray  # KL(base || other), nats
    flipped: np.ndarray  # bool: the most likely token is another one
    margin: np.ndarray  # top-1 minus top-2 of the base's logits
    error: np.ndarray  # |other - base|², summed over the vocabulary
    norm: np.ndarray  # |base|², likewise


def drift(base: np.ndarray, other: np.ndarray) -> Drift:
    """``other`` against ``base``, logits [n_positions, n_vocab] each, computed in f64 whatever they are stored in."""
    parts = []
    for at in range(0, len(base), ROWS):
        exact, drifted = (np.asarray(a[at : at + ROWS], np.float64) for a in (base, other))
        parts.append(Drift(
            kl=divergence(exact, drifted).kl,
            flipped=exact.argmax(1) != drifted.argmax(1),
            margin=margins(exact),
            error=np.square(drifted - exact).sum(1),
            norm=np.square(exact).sum(1),
        ))  # fmt: skip
    return joined(parts)


def joined(parts: Sequence[Drift]) -> Drift:
    """Consecutive stretches as one."""
    return Drift(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def summary(sequences: Sequence[Drift]) -> dict[str, Any]:
    """The figures of a table's line; the standard error takes the positions as independent."""
    d = joined([Drift(*(array[1:] for array in whole)) for whole in sequences])
    flips = d.margin[d.flipped]
    return {
        "kl_first": float(np.mean([whole.kl[0] for whole in sequences])),
        "positions": len(d.kl),
        "top1_equal": float(1 - d.flipped.mean()),
        "kl_mean": float(d.kl.mean()),
        "kl_standard_error": float(d.kl.std(ddof=1) / np.sqrt(len(d.kl))),
        "kl_max": float(d.kl.max()),
        "flips": len(flips),
        "flip_margin_median": float(np.median(flips)) if len(flips) else None,
        "flip_margin_max": float(flips.max()) if len(flips) else None,
        "relative_l2": float(np.sqrt(d.error.sum() / d.norm.sum())),
    }


def excerpts(text: str, n: int, size: int) -> list[str]:
    """``n`` pieces of ``size`` characters, from the middle of each n-th of ``text`` on, each at a line's start."""
    starts = (text.index("\n", (2 * i + 1) * len(text) // (2 * n)) + 1 for i in range(n))
    return [text[start : start + size] for start in starts]


def sequences(model: Any, n_positions: int) -> dict[str, list[int]]:
    """Ids of real text, LENGTH each, at least ``n_positions`` in all: code, prose, code and prose as ChatML."""
    n = -(-n_positions // (4 * LENGTH))
    found = {}
    for kind, text in (("code", CODE), ("prose", PROSE)):
        for i, piece in enumerate(excerpts(text, 2 * n, 8 * LENGTH)):
            roles = {"user": piece[:LENGTH], "assistant": piece[LENGTH:]}
            chat = model.chat_prompt([{"role": role, "content": content} for role, content in roles.items()])
            name, prompt = (f"{kind} raw {i}", piece) if i < n else (f"{kind} chat {i - n}", chat)
            found[name] = model.tokenizer.encode(prompt)[:LENGTH]
            assert len(found[name]) == LENGTH
    return found


def extend(oracle: reference.Model, cache: KVCache, ids: Sequence[int], n_last: int,
           tap: Tap = identity) -> np.ndarray:  # fmt: skip
    """The oracle reads ``ids`` after what ``cache`` holds: logits [n_last, n_vocab] of the last of them."""
    oracle.file.check_ids(ids, n_past=len(cache.ids))
    x = forward(ids, oracle.weights, oracle.arith, cache, tap)
    named = len(oracle.file.vocabulary)  # rows beyond it are padding and mean nothing
    return logits(x[-n_last:], oracle.weights, oracle.arith, identity)[:, :named]


def last_bit(stage: str, layer: int | None, activation: np.ndarray) -> np.ndarray:
    """A tap: every f32 moved by about half a unit in its last place, as sums in another order move it."""
    noise = np.random.default_rng(0).standard_normal(activation.shape)
    return (activation * (1 + 2.0**-24 * noise)).astype(activation.dtype)


def place(oracle: reference.Model, ids: Sequence[int], work: Path, ending: str) -> Path:
    """Where in ``work`` to keep what the oracle says of ``ids``."""
    digest = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
    return work / f"{oracle.file.sha256[:16]}-{digest[:16]}-{oracle.arith.name}{ending}"


def oracle_logits(oracle: reference.Model, ids: Sequence[int], work: Path, ending: str = ".npy",
                  extend: Callable[..., np.ndarray] = extend) -> np.ndarray:  # fmt: skip
    """Logits [n_tokens, n_vocab] of every position in the arithmetic's dtype, mapped from the file that keeps them."""
    path = place(oracle, ids, work, ending)
    if not path.exists():
        part, cache = path.with_suffix(".part"), oracle.new_cache()
        shape = (len(ids), len(oracle.file.vocabulary))
        kept = np.lib.format.open_memmap(part, "w+", oracle.arith.dtype, shape)
        for at in range(0, len(ids), SLICE):
            piece = ids[at : at + SLICE]
            kept[at : at + SLICE] = extend(oracle, cache, piece, len(piece))
        kept.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


class Text(NamedTuple):
    """A greedy text: its ids, an end token included, and top-1 minus top-2 of the logits at each."""

    ids: list[int]
    margins: list[float]


def oracle_text(oracle: reference.Model, draft: Callable[[list[int], int], list[int]], prompt: Sequence[int],
                n_tokens: int, extend: Callable[..., np.ndarray] = extend) -> Text:  # fmt: skip
    """The oracle's own greedy text, up to ``n_tokens`` or an end token, with few readings.

    ``draft(ids, n)`` proposes how the text goes on. The oracle reads the whole proposal at once and keeps it as far
    as it would have written the same, and one token of its own where it would not (Leviathan et al., "Fast
    Inference from Transformers via Speculative Decoding", 2023): no proposal can change the text. Only rounding
    can: sums over many tokens at once are ordered otherwise than over one, and a last bit may turn an 8-bit rounding.
    """
    cache, ends = oracle.new_cache(), oracle.file.vocabulary.end_ids
    text = Text([], [])
    while len(text.ids) < n_tokens and not ends.intersection(text.ids):
        context = [*prompt, *text.ids]
        proposed = draft(context, n_tokens - len(text.ids))
        rows = extend(oracle, cache, [*context, *proposed[:-1]][len(cache.ids) :], len(proposed))
        second, first = np.partition(rows, -2)[:, -2:].T
        chosen = rows.argmax(1).tolist()
        ended = next((i for i, token in enumerate(chosen) if token in ends), len(chosen))
        n_kept = min(first_difference(chosen, proposed) + 1, ended + 1, len(chosen))
        text.ids.extend(chosen[:n_kept])
        text.margins.extend((first - second)[:n_kept].tolist())
        cache.truncate(len(context) + n_kept - 1)
    return text


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first index at which the sequences differ, or the length of the shorter."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def kept_text(oracle: reference.Model, prompt: Sequence[int], work: Path,
              write: Callable[[Sequence[int]], Text]) -> Text:  # fmt: skip
    """The oracle's greedy text after ``prompt``, from the file that keeps it, else as ``write`` gives it."""
    path = place(oracle, prompt, work, f"-greedy{N_GREEDY}.json")
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(json.dumps(write(prompt)._asdict()), encoding="utf-8")
        part.rename(path)
    return Text(**json.loads(path.read_text(encoding="utf-8")))


def one_by_one(model: accel.Model, ids: Sequence[int]) -> np.ndarray:
    """Logits [n_tokens, n_vocab] f32 of tokens read as generation reads them: each alone."""
    cache = model.new_cache()
    return np.stack([model.decode(token, cache)[0] for token in ids])


def turns(function: Callable[..., Any], lock: Path | None) -> Callable[..., Any]:
    """``function``, computing only while it holds the lock of ``lock`` (as flock(1)), and resting a fifth as long."""
    if lock is None:
        return function

    @functools.wraps(function)
    def in_turn(*arguments: Any, **options: Any) -> Any:
        with lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            started = time.perf_counter()
            result = function(*arguments, **options)
            worked = time.perf_counter() - started
        time.sleep(worked / 5)
        return result

    return in_turn


def drifts(oracles: dict[str, Any], fast: dict[str, Any], n_positions: int, work: Path,
           lock: Path | None) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The lines of the first table: an engine, the oracle's arithmetic it is held against, and the figures."""
    texts = list(sequences(oracles["f64"], n_positions).values())
    beginnings = [ids[: LENGTH // 4] for ids in texts]
    reading, comparing, one = turns(extend, lock), turns(drift, lock), turns(one_by_one, lock)
    says = {a: functools.partial(oracle_logits, oracles[a], work=work, extend=reading) for a in oracles}
    moved = functools.partial(says["ggml"], ending="-moved.npy", extend=functools.partial(reading, tap=last_bit))
    at_once = {arith: turns(model.forward, lock) for arith, model in fast.items()}
    engines: list[tuple[str, Callable[..., np.ndarray], list[str], list[list[int]]]] = [
        ("reference f32", says["f32"], ["f64"], texts),
        ("reference ggml", says["ggml"], ["f64"], texts),
        ("reference ggml, last bits moved", moved, ["ggml"], beginnings),
        ("accel f32", at_once["f32"], ["f64"], texts),
        ("accel fast, all at once", at_once["fast"], ["f64", "ggml"], texts),
        ("accel fast, one by one", functools.partial(one, fast["fast"]), ["f64", "ggml"], texts),
    ]
    for name, read, bases, taken in engines:
        parts: dict[str, list[Drift]] = {base: [] for base in bases}
        for ids, whole in zip(taken, texts, strict=True):
            other = read(ids)
            for base in bases:  # no position sees those after it: the beginning of the whole is the base of a part
                exact = says[base](whole)[: len(ids)]
                parts[base].append(comparing(exact, other[:, : exact.shape[1]]))
        for base in bases:
            yield {"engine": name, "against": f"reference {base}", **summary(parts[base])}


def greedy(oracles: dict[str, Any], fast: accel.Model, work: Path, lock: Path | None) -> Iterator[dict[str, Any]]:
    """One record a prompt: how far both texts are one, and what each engine saw where they part."""
    reading, generate = turns(extend, lock), turns(accel.generate, lock)
    oracle, truth = oracles["ggml"], oracles["f64"]

    def write(prompt: Sequence[int]) -> Text:
        return oracle_text(oracle, lambda ids, n: generate(fast, ids, max_tokens=n).ids, prompt, N_GREEDY, reading)

    for kind, content in [*(("raw", text) for text in RAW), *(("chat", text) for text in CHAT)]:
        prompt = content if kind == "raw" else oracle.chat_prompt([{"role": "user", "content": content}])
        ids = oracle.tokenizer.encode(prompt)
        assert ids == fast.tokenizer.encode(prompt)
        ours, theirs = kept_text(oracle, ids, work, write), generate(fast, ids, max_tokens=N_GREEDY)
        at = first_difference(ours.ids, theirs.ids)
        record = {"kind": kind, "prompt": content, "tokens": len(ours.ids), "same": at, "equal": ours.ids == theirs.ids}
        if not record["equal"]:  # an end token ends both, so neither text is the beginning of the other
            pair = [ours.ids[at], theirs.ids[at]]
            exact = reading(truth, truth.new_cache(), [*ids, *ours.ids[:at]], 1)[0]
            record |= {
                "ids": pair,
                "texts": [oracle.tokenizer.decode([i]) for i in pair],
                "oracle_margin": ours.margins[at],
                "fast_margin": theirs.margins[at],
                "f64_margin": float(exact[pair[0]] - exact[pair[1]]),
            }
        yield record


def show_drifts(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the first table, line by line as it is measured."""
    print("\n| engine | against | positions | top-1 equal | mean KL, nats | max KL | flips: margin median, max "
          "| logits rel L2 | KL at first token |")  # fmt: skip
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    shown = []
    for d in lines:
        flips = f"{d['flips']}: {d['flip_margin_median']:.3f}, {d['flip_margin_max']:.3f}" if d["flips"] else "none"
        kl = f"{d['kl_mean']:.2e} ± {d['kl_standard_error']:.0e} | {d['kl_max']:.1e}"
        print(f"| {d['engine']} | {d['against']} | {d['positions']} | {d['top1_equal']:.2%} | {kl} | {flips} "
              f"| {d['relative_l2']:.1e} | {d['kl_first']:.1e} |", flush=True)  # fmt: skip
        shown.append(d)
    return shown


def show_greedy(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the second table: first differences, as they are found, and how many texts are equal."""
    print("\n| prompt | position | oracle writes | fast writes | oracle's margin | fast's margin "
          "| f64, oracle's token over fast's |")  # fmt: skip
    print("|---|---:|---|---|---:|---:|---:|")
    shown = []
    for number, r in enumerate(records):
        if not r["equal"]:
            ours, theirs = (f"{i} `{text!r}`" for i, text in zip(r["ids"], r["texts"], strict=True))
            margins = f"{r['oracle_margin']:.4f} | {r['fast_margin']:.4f} | {r['f64_margin']:+.4f}"
            prompt = f"{number}, {r['kind']}: {r['prompt'][:24]!r}"
            print(f"| {prompt} | {r['same']} | {ours} | {theirs} | {margins} |", flush=True)
        shown.append(r)
    print(f"\nEqual texts: {sum(r['equal'] for r in shown)} of {len(shown)}, "
          f"{sum(r['tokens'] for r in shown)} tokens.", flush=True)  # fmt: skip
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print both tables; ``--json`` also writes every figure."""
    parser = argparse.ArgumentParser(description="Drift of each arithmetic on a real model.")
    parser.add_argument("model", help="a model file or a name of the catalogue")
    parser.add_argument("--positions", type=int, default=4 * LENGTH, help="at least so many, by sequences of 512")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--work", type=Path, default=WORK, help="folder that keeps what the oracle says")
    parser.add_argument("--lock", type=Path, help="compute only while holding this file's lock, piece by piece")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    file = open_model(find(given.model))
    oracles = {arith: reference.load(file, arith=arith) for arith in ("f64", "f32", "ggml")}
    load = turns(accel.load, given.lock)
    fast = {arith: load(file, arith=arith) for arith in ("f32", "fast")}
    about = {
        "model": file.name,
        "sha256": file.sha256,
        "python": platform.python_version(),
        "text_sha256": hashlib.sha256((CODE + PROSE).encode()).hexdigest(),
        "engines": [model.fingerprint() for model in (*oracles.values(), *fast.values())],
    }
    print(f"**{about['model']}** ({given.model}); text of Python {about['python']}, sha256 {about['text_sha256'][:16]}")
    about["drift"] = show_drifts(drifts(oracles, fast, given.positions, given.work, given.lock))
    about["greedy"] = show_greedy(greedy(oracles, fast["fast"], given.work, given.lock))
    if given.json:
        given.json.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
