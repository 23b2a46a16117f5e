"""The judge on the real 0.5B: the fast engine is green by stages, planted faults are named, llama.cpp by tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from assay.engines import find, load
from assay.formats import open_model
from assay.formats.system.progress import quiet
from assay.judging.engines_under_test import UnderTest, baseline, engines_under_test, opened
from assay.judging.judge import judge_flips, judge_stages
from assay.parity import stages
from assay.parity.bisect import bisect
from assay.parity.distance import distance
from assay.parity.flips import account
from assay.parity.floor import TOLERANCE_FACTOR, NoiseFloor
from assay.parity.verdict import Verdict, of_flips
from tests.planted import FAULTS, IDS, Planted

MODEL = "qwen2.5-coder-0.5b"
TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n"
SHORT = "def fib(n):\n    if n <"


@pytest.mark.real
@pytest.mark.parametrize(("arith", "path", "chat", "verdict"), [
    pytest.param("f32", "prefill", False, Verdict.NOISE, marks=pytest.mark.real_slow),
    ("fast", "prefill", True, Verdict.DRIFT),
    ("fast", "decode", False, Verdict.DRIFT),
])  # fmt: skip
def test_every_stage_of_the_fast_engine_is_within_its_floor(arith: str, path: str, chat: bool, verdict: Verdict,
                                                            loaded: Callable[[str], UnderTest]) -> None:  # fmt: skip
    judged = loaded(arith)
    found = judge_stages(judged, judged.sample(SHORT, None, chat), path, 4, quiet)
    assert found is not None and found.verdict == verdict, found and (found.finding.site, found.finding.ratio)
    assert found.untouched == 0, "taps that change nothing change the logits"
    for distances in (found.finding.local, found.finding.accumulated):
        assert all(0.5 <= d.std_ratio <= 2.0 and d.n_bad == 0 for d in distances.values())


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], UnderTest]:
    """The fast engine in an arithmetic, before one baseline for all of them."""
    shared = baseline(open_model(find(MODEL)))
    return cache(lambda arith: UnderTest(shared, load(shared.truth.file, arith=arith)))


@pytest.fixture(scope="module")
def judged(loaded: Callable[[str], UnderTest]) -> UnderTest:
    return loaded("f32")


@pytest.fixture(scope="module")
def truth(judged: UnderTest) -> stages.Activations:
    return stages.capture(judged.truth, IDS)


@pytest.fixture(scope="module")
def limits(judged: UnderTest, truth: stages.Activations) -> NoiseFloor:
    declared = judged.declared(len(IDS))
    assert declared is not None
    return stages.noise_floor(judged.oracle, IDS, truth, declared)


@pytest.fixture(scope="module")
def clean(judged: UnderTest, truth: stages.Activations) -> float:
    """How far the right engine's logits are from the truth. Some faults move them less, and are named all the same."""
    return distance(judged.candidate.forward(IDS), truth["logits", None]).relative_l2


@pytest.mark.real
@pytest.mark.parametrize("name", [
    *list(FAULTS)[3::8], *(pytest.param(name, marks=pytest.mark.real_slow) for name in list(FAULTS)[::3])])  # fmt: skip
def test_a_planted_fault_is_named(name: str, judged: UnderTest, truth: stages.Activations, limits: NoiseFloor,
                                  clean: float) -> None:  # fmt: skip
    site, change = FAULTS[name]
    finding = bisect(Planted(judged.candidate, site, change), IDS, truth, limits)
    assert finding.wrong == (site,) and finding.ratio > TOLERANCE_FACTOR and finding.forwards <= 6
    assert finding.logits_restored is not None and finding.logits_restored < 3 * clean


@pytest.mark.real_slow
@pytest.mark.real
def test_llama_cpp_drifts_as_its_arithmetic_says() -> None:
    with opened(open_model(find(MODEL)), "llama.cpp", None, None, taps=False) as judged:
        ids = judged.sample(TEXT * 3, None, chat=False)
        positions = judge_flips(judged, ids, "decode", 4, quiet)
        assert positions is not None
        counted = account(positions)
        assert of_flips(counted, judged.declared(1)) == Verdict.DRIFT
        assert 1e-5 < counted.kl_mean < 1e-2


@pytest.mark.real_slow
@pytest.mark.real
def test_the_first_token_of_chatml_is_as_far_off_as_eight_bits_put_it() -> None:
    """On the 1.5B by nats, in every engine of that arithmetic: no fault, and the floor has to know it."""
    judged = engines_under_test(open_model(find("qwen2.5-coder-1.5b")), "accel", "fast")
    ids = judged.sample(SHORT, None, chat=True)[:2]
    found = judge_stages(judged, ids, "decode", 2, quiet)
    assert found is not None and found.verdict == Verdict.DRIFT, found and (found.finding.site, found.finding.ratio)
    positions = judge_flips(judged, ids, "decode", 2, quiet)
    assert positions is not None and positions.divergence.kl[0] > 1 and positions.flipped[0]
    counted = account(positions)
    assert not counted.unexplained and of_flips(counted, judged.declared(1)) == Verdict.DRIFT
