"""Faults in a dump are found at their stage and layer, with nothing but the dump and the oracle."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from assay.formats.errors import NumericError, SampleError
from assay.judging.engines_under_test import UnderTest
from assay.parity import stages
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.precision import Precision, Tapped
from assay.parity.sample import Sample
from assay.parity.transplant import accuse, compared, demand_same
from tests.planted import FAULTS, IDS, Planted


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name: str, judged: UnderTest, declared: Precision) -> None:
    site, change = FAULTS[name]
    with np.errstate(all="ignore"):
        dump = dumped(Planted(judged.candidate, site, change))
    finding, _, suspect = accuse(judged.truth, judged.oracle, IDS, dump, declared)
    assert finding.site == site and finding.wrong == (site,) and finding.ratio > TOLERANCE_FACTOR
    assert finding.forwards == 0 and finding.logits_restored is None and suspect is None


def dumped(engine: Tapped) -> stages.Activations:
    """What an engine shows, even if its logits are not numbers."""
    shown: stages.Activations = {}
    with suppress(NumericError):
        engine.forward(IDS, lambda stage, layer, x: shown.setdefault((stage, layer), np.array(x)))
    return shown


def test_a_right_dump_has_no_wrong_stage_also_where_stages_are_missing(judged: UnderTest, declared: Precision) -> None:
    whole = dumped(judged.candidate)
    for stages_left in (set(whole), {key for key in whole if key[0] in ("attn_residual", "ffn_residual", "logits")},
                        {("ffn_residual", 3)}):  # fmt: skip
        dump = {key: x for key, x in whole.items() if key in stages_left}
        finding, floor, _ = accuse(judged.truth, judged.oracle, IDS, dump, declared)
        assert (
            set(finding.local) == set(floor) == stages_left
            and finding.site is None
            and finding.ratio < TOLERANCE_FACTOR
        )


def test_a_fault_at_a_missing_stage_counts_to_the_next(judged: UnderTest, declared: Precision) -> None:
    site, change = FAULTS["query at the next position"]
    dump = dumped(Planted(judged.candidate, site, change))
    del dump[site]
    finding, _, _ = accuse(judged.truth, judged.oracle, IDS, dump, declared)
    assert finding.wrong == (("attention", 2),)


def test_the_accumulated_error_is_that_of_the_run(
    judged: UnderTest, truth: stages.Activations, declared: Precision
) -> None:
    spoiled = Planted(judged.candidate, *FAULTS["residual added twice"])
    finding, _, _ = accuse(judged.truth, judged.oracle, IDS, dumped(spoiled), declared)
    expected = stages.accumulated(spoiled, IDS, truth)
    assert {k: d.figures() for k, d in finding.accumulated.items()} == {k: d.figures() for k, d in expected.items()}
    assert finding.logits_before == finding.accumulated["logits", None].relative_l2 > 0.01


def test_stages_of_another_model(judged: UnderTest, declared: Precision) -> None:
    dump = dumped(judged.candidate)
    with pytest.raises(SampleError, match="attn_norm of layer 4"):
        accuse(judged.truth, judged.oracle, IDS, dump | {("attn_norm", 4): dump["attn_norm", 3]}, declared)
    with pytest.raises(SampleError, match="elements"):
        accuse(judged.truth, judged.oracle, IDS, dump | {("attn_norm", 3): dump["ffn_up", 3]}, declared)


def test_two_dumps_side_by_side(judged: UnderTest) -> None:
    a, b = dumped(judged.candidate), dumped(judged.truth)
    assert all(one.equal and one.distance.relative_l2 == 0 for one in compared(a, a))
    rounded = {key: x.astype(np.float64) for key, x in a.items()}
    assert all(one.equal for one in compared(rounded, a))
    pairs = {one.key: one for one in compared(a, b)}
    assert not pairs["logits", None].equal and 0 < pairs["logits", None].distance.relative_l2 < 1e-5
    a["logits", None] = a["logits", None].copy()
    a["logits", None][3, 5] = np.nan
    assert [one.key for one in compared(a, b) if not one.alike] == [("logits", None)]
    assert [one.key for one in compared(b, a) if not one.alike] == [("logits", None)]
    assert all(one.alike for one in compared(a, a))
    with pytest.raises(SampleError):
        list(compared(a, {}))
    with pytest.raises(SampleError):
        list(compared(a, {("logits", None): b["logits", None][1:]}))


def test_the_gate_looks_at_what_both_know() -> None:
    known = Sample("text", (1, 2), "a" * 64)
    demand_same(known, Sample(None, (1, 2), ""))
    demand_same(Sample(None, (1, 2), "a" * 64), known)
    for other in (Sample("txet", (1, 2), ""), Sample(None, (1, 3), ""), Sample("text", (1, 2), "b" * 64)):
        with pytest.raises(SampleError):
            demand_same(known, other)
