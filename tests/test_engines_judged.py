"""The project's own engines before its own judge: every stage, every token, and faults in the fast engine's real code.

Bounded for every stage of every layer: local error at most ``TOLERANCE_FACTOR`` floors, and the incident's ratio of
standard deviations within [0.5, 2.0], which correct engines keep within a hundredth of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import assay.accel.steps
from assay.formats import open_model
from assay.formats.system.progress import quiet
from assay.goldens import BUILTIN
from assay.judging.engines_under_test import UnderTest, baseline, engines_under_test
from assay.judging.judge import StageReport, judge_flips, judge_stages
from assay.parity.flips import account
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.verdict import Verdict, of_flips

pytestmark = pytest.mark.usefixtures("nothing_prepared")
TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n"


def checked(judged: UnderTest, ids: list[int], path: str) -> StageReport:
    found = judge_stages(judged, ids, path, 4, quiet)
    assert found is not None
    # A GPU's compiler adds a tapped program's sums in another order (H100: 2e-7); a processor's does not.
    may_differ = 0 if jax.default_backend() == "cpu" else 1e-6
    assert found.untouched is not None and found.untouched <= may_differ, "taps that change nothing change the logits"
    assert max(found.finding.ratios.values()) <= TOLERANCE_FACTOR and found.finding.site is None
    for distances in (found.finding.local, found.finding.accumulated):
        assert all(0.5 <= d.std_ratio <= 2.0 for d in distances.values())
        assert all(abs(d.std_ratio - 1) < 0.01 and d.cosine > 0.999 and d.n_bad == 0 for d in distances.values())
    return found


@pytest.mark.parametrize(("arith", "path", "verdict", "source"), [
    ("f32", "prefill", Verdict.NOISE, "f32"),
    ("fast", "prefill", Verdict.DRIFT, "products, f16 cache"),
    ("fast", "decode", Verdict.DRIFT, "8-bit activations, f16 cache"),
])  # fmt: skip
@pytest.mark.parametrize("chat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_fast_engine_is_green(arith: str, path: str, verdict: Verdict, source: str, chat: bool,
                                  builtin_accel: Any, builtin_fast: Any) -> None:  # fmt: skip
    judged = UnderTest(baseline(open_model(BUILTIN)), builtin_accel if arith == "f32" else builtin_fast)
    ids = judged.sample(TEXT, None, chat)
    if arith == "f32" and not chat:
        ids = ids[:16]  # for so many, other tests have the programs compiled; fast multiplies longer texts otherwise
    found = checked(judged, ids, path)
    assert found.verdict == verdict and found.declared.name.endswith(source)
    positions = judge_flips(judged, ids, path, 4, quiet)
    assert positions is not None
    counted = account(positions)
    assert not counted.unexplained and of_flips(counted, found.declared) == verdict


@pytest.mark.parametrize(("arith", "verdict"), [
    ("f32", Verdict.BIT_EQUAL), ("f64", Verdict.BIT_EQUAL), ("ggml", Verdict.DRIFT),
])  # fmt: skip
def test_the_oracles_own_arithmetics(arith: str, verdict: Verdict) -> None:
    judged = engines_under_test(open_model(BUILTIN), "reference", arith)
    assert checked(judged, judged.sample(TEXT, None, False), "prefill").verdict == verdict


@pytest.mark.slow
def test_a_cache_of_halves_is_declared_or_it_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = engines_under_test(open_model(BUILTIN), "accel", "f32", "bf16")
    ids = judged.sample(TEXT, None, False)[:24]
    found = checked(judged, ids, "prefill")
    assert found.verdict == Verdict.DRIFT and found.declared.name == "f32 products, bf16 cache"
    says = judged.candidate.fingerprint()
    monkeypatch.setattr(judged.candidate, "fingerprint", lambda: says | {"cache": "f32"})
    found = judge_stages(judged, ids, "prefill", 4, quiet)
    assert found is not None and found.verdict == Verdict.BUG and found.finding.site == ("attention", 0)


def interleaved(x: Any, turns: Any) -> Any:
    """RoPE over neighbouring pairs, as models of another family have it: keeps every norm."""
    paired = np.arange(x.shape[-1]).reshape(2, -1).T.reshape(-1)
    back = np.argsort(paired)
    return ORIGINAL["rotate"](x[..., back], turns)[..., paired]


ORIGINAL: dict[str, Callable[..., Any]] = {
    name: getattr(assay.accel.steps, name) for name in ("rotate", "rms_norm", "attention")
}


def coarse_eps(x: Any, gain: Any, eps: float) -> Any:
    """A constant from another model's file."""
    return ORIGINAL["rms_norm"](x, gain, 10 * eps)


def ahead(q: Any, k: Any, v: Any, layer: Any, positions: Any) -> Any:
    """A causal mask that is off by one."""
    return ORIGINAL["attention"](q, k, v, layer, positions + 1)


REAL_FAULTS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "RoPE pairs neighbours": ("rotate", interleaved, "q_rope"),
    "eps ten times too large": ("rms_norm", coarse_eps, "attn_norm"),
    "attention sees one position ahead": ("attention", ahead, "attention"),
}


FIRST, *OTHERS = REAL_FAULTS


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_faults_in_real_code_are_found_in_the_first_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, wrong, stage = REAL_FAULTS[name]
    monkeypatch.setattr(assay.accel.steps, what, wrong)
    judged = engines_under_test(open_model(BUILTIN), "accel", "f32")
    found = judge_stages(judged, judged.sample(TEXT, None, False)[:24], "prefill", 4, quiet)
    assert found is not None and found.verdict == Verdict.BUG
    assert found.finding.site == (stage, 0)
    assert found.finding.logits_restored is not None and found.finding.logits_restored < 1e-6
