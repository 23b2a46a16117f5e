"""The judge on the real 0.5B: the fast engine is green, stage by stage and token by token; planted faults are named."""

from __future__ import annotations

import pytest
from planted import FAULTS, Planted

from assay.arms import Arms, opened
from assay.engines import find
from assay.judging import judge_flips, judge_stages
from assay.progress import quiet
from formats import open_model
from parity import stages
from parity.bisect import SLACK, bisect
from parity.flips import account
from parity.verdict import Verdict, of_flips

pytestmark = pytest.mark.real
MODEL = "qwen2.5-coder-0.5b"
TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n"


@pytest.mark.parametrize(("arith", "path", "verdict"), [
    ("f32", "prefill", Verdict.NOISE), ("fast", "prefill", Verdict.DRIFT), ("fast", "decode", Verdict.DRIFT),
])  # fmt: skip
def test_the_fast_engine_is_green_on_a_real_model(arith: str, path: str, verdict: Verdict) -> None:
    with opened(open_model(find(MODEL)), "accel", arith, None, taps=True) as judged:
        ids = judged.sample(TEXT, None, chat=True)
        found = judge_stages(judged, ids, path, 4, quiet)
        assert found is not None and found.verdict == verdict and found.untouched == 0
        assert max(map(found.ratio, found.own)) <= SLACK
        assert all(0.5 <= d.std_ratio <= 2.0 for d in (*found.own.values(), *found.inherited.values()))
        positions = judge_flips(judged, ids, path, 4, quiet)
        assert positions is not None and of_flips(account(positions), found.declared) == verdict


def test_llama_cpp_drifts_as_its_arithmetic_says() -> None:
    with opened(open_model(find(MODEL)), "llama.cpp", None, None, taps=False) as judged:
        ids = judged.sample(TEXT * 3, None, chat=False)
        positions = judge_flips(judged, ids, "decode", 4, quiet)
        assert positions is not None
        counted = account(positions)
        assert of_flips(counted, judged.declared(1)) == Verdict.DRIFT
        assert 1e-5 < counted.kl_mean < 1e-2


@pytest.fixture(scope="module")
def judged() -> Arms:
    with opened(open_model(find(MODEL)), "accel", "f32", None, taps=True) as found:
        return found


def test_faults_in_a_real_model_are_named(judged: Arms) -> None:
    """All of the offline suite's faults, in a model of 24 layers, with f32 of another engine as the candidate."""
    ids = judged.sample(TEXT, None, chat=False)[:12]
    declared = judged.declared(len(ids))
    assert declared is not None
    truth = stages.capture(judged.truth, ids)
    limits = stages.floor(judged.oracle, ids, truth, declared)
    missed = {}
    for name, (site, change) in FAULTS.items():
        if "heads exchanged" in name:
            continue  # 14 heads are not 4 groups
        finding, _ = bisect(Planted(judged.candidate, site, change), ids, truth, limits)
        if finding.site != site or finding.forwards > 6:
            missed[name] = finding.site
    assert not missed
