"""Errors that are smaller than rounding, and point one way, are seen; rounding is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from assay.formats import open_model
from assay.formats.system.progress import quiet
from assay.goldens import BUILTIN
from assay.judging.engines_under_test import UnderTest, engines_under_test
from assay.judging.judge import judge_stages
from assay.parity import stages
from assay.parity.bisect import Finding, bisect
from assay.parity.bounds import beyond_f32, unmeasured
from assay.parity.coherence import PATTERNS, f_limit, freedom_of_squares, projections, student_limit
from assay.parity.floor import MAGNITUDES, TOLERANCE_FACTOR, NoiseFloor, in_floors, packed, unpacked
from assay.parity.precision import Key, sums_of
from assay.parity.verdict import Verdict
from assay.parity.visible import visible
from tests.planted import Change, Planted, at

IDS = [300, 12, 77, 410, 3, 3, 250, 19, 476, 300, 9, 8, 41, 333, 201, 57]


class Case(NamedTuple):
    """The oracle in ggml arithmetic, whose activations are rounded to 8 bits, and what is known of it."""

    judged: UnderTest
    truth: stages.Activations
    floor: NoiseFloor

    def bisected(self, site: Key, change: Change) -> Finding:
        return bisect(Planted(self.judged.candidate, site, change), IDS, self.truth, self.floor)


@pytest.fixture(scope="module")
def eight_bits() -> Case:
    judged = engines_under_test(open_model(BUILTIN), "reference", "ggml")
    declared = judged.declared(len(IDS))
    assert declared is not None
    return Case(judged, judged.baseline.activations(IDS), judged.baseline.noise_floor(IDS, declared, 4))


def test_right_rounding_is_not_a_fault(eight_bits: Case) -> None:
    found = bisect(eight_bits.judged.candidate, IDS, eight_bits.truth, eight_bits.floor)
    assert not found.wrong and max(found.ratios.values()) < 0.8 * TOLERANCE_FACTOR


def twice_as_coarse(truth: np.ndarray) -> Change:
    """As 7 bits are beside 8."""
    return lambda x: truth.reshape(x.shape) + 2.2 * (x - truth.reshape(x.shape))


SITES: list[Key] = [("q_proj", 1), ("ffn_out", 1), ("logits", None)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "change"), {
    "a matrix too large by a hundredth": lambda truth: lambda x: x * 1.01,
    "a matrix too small by a hundredth": lambda truth: lambda x: x * 0.99,
    "errors twice as large": twice_as_coarse,
}.items())  # fmt: skip
def test_a_fault_below_the_magnitudes_is_named(
    name: str, change: Callable[[np.ndarray], Change], site: Key, eight_bits: Case
) -> None:
    found = eight_bits.bisected(site, change(eight_bits.truth[site]))
    magnitudes = max(found.tests[site][m] for m in MAGNITUDES)
    assert found.wrong == (site,) and magnitudes < TOLERANCE_FACTOR < found.ratio, found.tests[site]


@pytest.mark.parametrize(("site", "size"), {("q_proj", 1): 0.05, ("ffn_out", 1): 0.15, ("logits", None): 0.05}.items(),
                         )  # fmt: skip
def test_a_row_below_the_magnitudes_is_named(site: Key, size: float, eight_bits: Case) -> None:
    found = eight_bits.bisected(site, at((slice(None), 5), lambda x: x * (1 + size)))
    magnitudes = max(found.tests[site][m] for m in MAGNITUDES)
    assert found.wrong == (site,) and magnitudes < TOLERANCE_FACTOR < found.ratio, found.tests[site]


@pytest.mark.parametrize("site", SITES)
def test_what_is_said_to_be_visible_is_seen_and_half_of_it_is_not(site: Key, eight_bits: Case) -> None:
    seen = visible(eight_bits.floor[site], eight_bits.truth[site])

    def ratio(change: Change) -> float:
        return eight_bits.bisected(site, change).ratios[site]

    assert ratio(lambda x: x * (1 + 1.5 * seen.gain)) > TOLERANCE_FACTOR
    row = at((slice(None), seen.channel), lambda x: x * (1 + 2 * seen.row))
    assert ratio(row) > TOLERANCE_FACTOR > ratio(at((slice(None), seen.channel), lambda x: x * (1 + seen.row / 2)))
    scale = float(np.sqrt(np.square(eight_bits.truth[site].reshape(len(IDS), -1)[7]).mean()))
    one = at((7, seen.channel), lambda x: x + 1.5 * seen.element * scale)
    assert ratio(one) > TOLERANCE_FACTOR > ratio(at((7, seen.channel), lambda x: x + seen.element * scale / 10))


def test_projections_are_what_they_say() -> None:
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((40, 30)) * rng.uniform(1, 100, (40, 1))
    scale = np.sqrt(np.square(truth).mean(1, keepdims=True))
    gain = projections(truth * 1.02, truth)
    assert gain.gain == pytest.approx(0.02) and gain.size == pytest.approx(0.02)
    assert gain.position_gain == pytest.approx(np.full(40, 0.02))
    assert gain.channel_gain == pytest.approx(0.02 * np.sqrt(np.square(truth / scale).mean(0)))
    moved = projections(truth + 0.01 * scale, truth)
    assert moved.channel_mean == pytest.approx(0.01) and moved.position_mean == pytest.approx(0.01)
    empty = projections(np.zeros((2, 3)), np.zeros((2, 3)))
    assert empty.size == 0 and all(not getattr(empty, p).any() for p in PATTERNS)


def test_variances_of_independent_errors_are_what_they_say() -> None:
    rng = np.random.default_rng(4)
    truth = rng.standard_normal((16, 24))
    drawn = [projections(truth + 0.01 * rng.standard_normal(truth.shape), truth) for _ in range(2000)]
    for pattern in PATTERNS:
        seen = np.square([getattr(one, pattern) for one in drawn]).mean()
        said = np.mean([one.independent[pattern] for one in drawn])
        assert seen == pytest.approx(said, rel=0.15), pattern


def test_limits_are_those_of_their_distributions() -> None:
    assert student_limit(1e9, 0.05) == pytest.approx(1.95996, rel=1e-4)
    assert student_limit(5, 0.01) == pytest.approx(4.032, rel=1e-3)
    assert f_limit(10, 20, 0.01) == pytest.approx(3.368, rel=1e-3)
    rng = np.random.default_rng(5)
    for freedom in (4.0, 20.0, 200.0):
        squares = rng.chisquare(freedom, (4000, 4)) / freedom
        assert freedom_of_squares(squares) == pytest.approx(freedom, rel=0.1)
    assert freedom_of_squares(np.ones((3, 4))) == 1000 and freedom_of_squares(np.array([[1.0]])) == 1


def test_a_floor_comes_back_as_it_was_packed(eight_bits: Case) -> None:
    array = packed(eight_bits.floor)
    back = unpacked(array, eight_bits.truth)
    assert array.dtype == np.float64 and list(back) == list(eight_bits.floor)
    own = stages.local(eight_bits.judged.candidate, IDS, eight_bits.truth)
    assert all(in_floors(own[key], back[key]) == in_floors(own[key], one) for key, one in eight_bits.floor.items())
    for broken in (array[:-1], np.append(array, 0.0)):
        with pytest.raises(ValueError, match="too"):
            unpacked(broken, eight_bits.truth)


class Unmasked:
    """The oracle in f32 with one stage spoiled, in every run of it: also in those that make the floor."""

    def __init__(self, oracle: Any, site: Key, change: Change) -> None:
        self.planted, self.file = Planted(oracle, site, change), oracle.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.planted.engine, name)

    def prefill(self, ids: Any, cache: Any = None, tap: Any = None) -> Any:
        return self.planted.prefill(ids, cache, tap)


@pytest.mark.parametrize(("site", "change"), {
    ("attention", 2): lambda x: x[::-1],
    ("ffn_up", 1): lambda x: x * 1.02,
    ("q_rope", 0): lambda x: x * 0.98,
}.items())  # fmt: skip
def test_an_oracle_that_is_wrong_in_f32_alone_is_accused(site: Key, change: Change) -> None:
    """Its floor has the fault in it and forgives it; bounds that no run has a part in do not."""
    judged = engines_under_test(open_model(BUILTIN), "reference", "f32")
    right = judge_stages(judged, IDS, "prefill", 4, quiet)
    judged.baseline.oracle = Unmasked(judged.oracle, site, change)
    found = judge_stages(judged, [*IDS, 5], "prefill", 4, quiet)
    assert right is not None and right.verdict == Verdict.BIT_EQUAL and right.suspect is None
    assert found is not None and found.verdict == Verdict.REFERENCE_SUSPECT and found.suspect == site


def test_the_oracles_errors_are_far_within_the_bounds_of_f32(eight_bits: Case) -> None:
    sums = sums_of(eight_bits.judged.file.config)
    own = stages.local(eight_bits.judged.oracle, IDS, eight_bits.truth)
    assert not beyond_f32(own, eight_bits.truth, sums) and not unmeasured(eight_bits.floor, eight_bits.truth, sums)
    closer = {key: one._replace(relative_l2=10 * one.relative_l2) for key, one in own.items()}
    assert not beyond_f32(closer, eight_bits.truth, sums)
    key = ("ffn_up", 1)
    still = {**eight_bits.floor, key: eight_bits.floor[key]._replace(relative_l2=1e-10)}
    assert unmeasured(still, eight_bits.truth, sums) == [key]
    infinite = {**eight_bits.floor, key: eight_bits.floor[key]._replace(peak=np.inf)}
    assert unmeasured(infinite, eight_bits.truth, sums) == [key]
    assert np.isnan(list(in_floors(own[key], infinite[key]).values())).all()


class RightWhenTapped:
    """An engine whose program without taps is another one, and wrong."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def prefill(self, ids: Any, cache: Any = None, tap: Any = None) -> Any:
        logits, cache = self.engine.prefill(ids, cache, tap)
        return logits if tap else 1.1 * logits, cache


def test_an_engine_that_is_right_only_when_it_is_watched_is_a_bug(eight_bits: Case) -> None:
    judged = UnderTest(eight_bits.judged.baseline, RightWhenTapped(eight_bits.judged.candidate))
    found = judge_stages(judged, IDS, "prefill", 4, quiet)
    assert found is not None and found.verdict == Verdict.BUG and found.disturbed and found.finding.site is None
