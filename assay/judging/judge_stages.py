"""Judging stages: in windows of a text, on the way on which the candidate generates.

An engine that shows nothing there is judged by ``forward`` alone, from position 0: a weaker verdict, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.formats import NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import identity
from assay.formats.system.progress import Progress
from assay.judging.anybody import Anybody
from assay.judging.engines_under_test import UnderTest
from assay.parity import stages, transplant
from assay.parity.bisect import Finding, bisect
from assay.parity.bounds import beyond_f32, unmeasured
from assay.parity.distance import distance, over
from assay.parity.floor import TOLERANCE_FACTOR, Floor, NoiseFloor, in_floors, over_floor
from assay.parity.precision import Key, Precision, sums_of
from assay.parity.verdict import Verdict, of_stages
from assay.parity.visible import Visible, visible
from assay.parity.ways import AtOnce, Generating, Window, shows_where_it_generates, windows

ROWS = 1_024
"""Of the embedding, looked at together: 0.5B in f64, 7 MB."""
LAST_BIT = 2.0**-23
FORWARD = "forward alone: the engine shows no stages where it generates"


@dataclass(frozen=True)
class StageReport:
    """Every stage of every layer, judged."""

    ids: list[int]
    """The whole text."""
    declared: Precision
    verdict: Verdict
    finding: Finding
    """Of each stage where it is worst."""
    floor: NoiseFloor
    """Likewise."""
    untouched: float | None
    """Relative L2 distance between the candidate's logits with and without a tap that changes nothing; None where they
    are not numbers."""
    visible: dict[Key, Visible]
    """The smallest faults that each stage's floor would have shown."""
    suspect: Key | None = None
    """The first stage in which the oracle is further from the truth than f32 can be, or than its floor allows."""
    disturbed: bool = False
    """Whether taps change what is computed. Both programs are one arithmetic: each is about as far from the truth
    as the other, so they may be twice as far from one another."""
    windows: tuple[Window, ...] = ()
    """The stretches of the text that were judged; none of a dump."""
    site_window: Window | None = None
    """Where the site is; None if there is none."""
    weaker: str = ""
    """Why the stages are not those of the programs that generate; empty if they are."""


@dataclass(frozen=True)
class Judged:
    """One window."""

    window: Window
    finding: Finding
    floor: NoiseFloor
    untouched: float | None
    equal: bool
    suspect: Key | None
    measured: bool
    visible: dict[Key, Visible]


@checked
def judge_stages(
    under_test: UnderTest, ids: Sequence[int], path: str, runs: int, progress: Progress, full: bool = False
) -> StageReport | None:
    """Truth, floor, and every stage's local error; None where the candidate does not declare its arithmetic.

    Of a long text the stages are judged in windows at the beginning, around the first boundary that the candidate
    declares and at the end, or with ``full`` around all. And of the embedding every row, where the candidate shows it
    alone. Raises InputError for ids that do not fit the model, and of an engine that shows stages in ``forward`` alone
    for more than are kept of; on the decoding path it is given as many as it reads like single tokens.
    """
    candidate = under_test.candidate
    says = candidate.fingerprint()
    generating = shows_where_it_generates(candidate)
    if not generating and path == "decode":
        ids = ids[: says.get("int8_up_to") or len(ids)]
    if not generating:
        stages.demand_few(ids, "prompt", "'assay flips' reads longer texts")
    under_test.file.check_ids(ids)
    chosen = windows(ids, says, path, full=full) if generating else [Window(tuple(ids), 0, len(ids), "forward")]
    declared = under_test.declared(chosen[0].n_at_once)
    if declared is None:
        return None
    done: list[Judged] = []
    for i, window in enumerate(chosen):
        progress(i, len(chosen), f"stages, positions {window.start} to {window.stop - 1}")
        done.append((generated if generating else by_forward)(under_test, window, runs))
    rows = every_row(under_test) if generating else None
    return joined(list(ids), declared, done, rows, "" if generating else FORWARD)


def generated(under_test: UnderTest, window: Window, runs: int) -> Judged:
    """Every stage in one window, in the programs that generate."""
    declared = under_test.declared(window.n_at_once, last_alone=True)
    filled = under_test.declared(window.start or 1)
    assert declared and filled, "an engine declares every length or none"
    truth = under_test.baseline.in_window(window)
    floor = under_test.baseline.window_floor(window, declared, filled, runs)
    alone = stages.local(AtOnce(under_test.oracle, window), window.ids, truth)
    return judged(under_test, window, truth, floor, alone, lambda engine: Generating(engine, window))


def by_forward(under_test: UnderTest, window: Window, runs: int) -> Judged:
    """Every stage that ``forward`` shows."""
    declared = under_test.declared(window.n_at_once)
    assert declared
    truth = shown_of(under_test, window.ids)
    floor, alone = floor_of(under_test, window.ids, truth, declared, runs)
    return judged(under_test, window, truth, floor, alone, lambda engine: engine)


def judged(under_test: UnderTest, window: Window, truth: stages.Activations, floor: NoiseFloor,
           alone: stages.Distances, on_its_way: Callable[[Any], Any]) -> Judged:  # fmt: skip
    """The candidate in a window; ``alone``: the oracle's own local errors."""
    ids, candidate = window.ids, on_its_way(under_test.candidate)
    finding = bisect(candidate, ids, truth, floor)
    equal, untouched = False, None
    with suppress(NumericError):  # the stage where logits cease to be numbers has been found by now
        plain, tapped = candidate.forward(ids), candidate.forward(ids, identity)
        equal = any(np.array_equal(plain, on_its_way(one).forward(ids)) for one in (under_test.oracle, under_test.truth)
                    if one.arith.dtype == plain.dtype)  # fmt: skip
        untouched = distance(tapped, plain).relative_l2
    sums = sums_of(under_test.file.config)
    beyond = beyond_f32(alone, truth, sums, window.start)
    suspect = next((key for key, one in alone.items()
                    if key in beyond or over_floor(one, floor[key]) > TOLERANCE_FACTOR), None)  # fmt: skip
    return Judged(window, finding, floor, untouched, equal, suspect, not unmeasured(floor, truth, sums, window.start),
                  {key: visible(floor[key], truth[key]) for key in truth})  # fmt: skip


def disturbs(one: Judged) -> bool:
    """Whether two programs of a candidate, with taps and without, differ by more than they may."""
    tapped = one.finding.accumulated.get(("logits", None))
    return one.untouched is not None and tapped is not None and not (
        one.untouched <= TOLERANCE_FACTOR * tapped.relative_l2)  # fmt: skip


def shown_of(under_test: UnderTest, ids: Sequence[int]) -> stages.Activations:
    """The true activation of every stage that the candidate shows, and the logits; of our own engines of all."""
    truth = under_test.baseline.activations(ids)
    if not isinstance(under_test.candidate, Anybody):
        return truth
    shown = {("logits", None), *under_test.candidate.shows(ids, truth)}
    return {key: one for key, one in truth.items() if key in shown}


def floor_of(under_test: UnderTest, ids: Sequence[int], truth: stages.Activations, declared: Precision,
             runs: int) -> tuple[NoiseFloor, stages.Distances]:  # fmt: skip
    """The floor of every stage in ``truth``, and the oracle's own local errors.

    Where stages are missing, each of the others has the errors of those between it and the one before: so has its
    floor, from noisy runs that are fed with the truth at these stages alone.
    """
    oracle = under_test.oracle
    if len(truth) == len(under_test.baseline.activations(ids)):
        floor, alone = under_test.baseline.noise_floor(ids, declared, runs), stages.local(oracle, ids, truth)
    else:
        floor = transplant.noise_floor(oracle, ids, truth, truth, declared, runs=runs)
        alone = transplant.local(transplant.recomputed(oracle, ids, truth), truth)
    return floor, alone


def every_row(under_test: UnderTest) -> Judged | None:
    """The row of the embedding that is furthest off, if it is wrong: a text has few of them.

    None also where the candidate does not show it alone. Decoding a block may round three times (scale times integer,
    minimum, their difference), to the last bit of f32 each, which is the floor: ``TOLERANCE_FACTOR`` of it are allowed.
    """
    key: Key = ("embedding", None)
    embed = getattr(under_test.candidate, "embed", None)
    if embed is None:
        return None
    floor, worst = Floor(LAST_BIT, LAST_BIT, LAST_BIT), 0.0
    off: tuple[int, np.ndarray, np.ndarray] | None = None
    for at in range(0, under_test.file.config.n_vocab, ROWS):
        ids = range(at, min(at + ROWS, under_test.file.config.n_vocab))
        found, truth = np.asarray(embed(ids), np.float64), np.asarray(under_test.truth.embed(ids), np.float64)
        with np.errstate(invalid="ignore"):
            error = over(np.linalg.norm(found - truth, axis=1), np.linalg.norm(truth, axis=1))
        error = np.where(np.isnan(error), np.inf, error)
        row = int(error.argmax())
        if error[row] > max(worst, TOLERANCE_FACTOR * LAST_BIT):
            worst, off = float(error[row]), (at + row, found[row : row + 1], truth[row : row + 1])
    if off is None:
        return None
    token, found, truth = off
    one: stages.Distances = {key: distance(found, truth)}
    finding = Finding(one, one, {key: in_floors(one[key], floor)}, (key,), None)
    return Judged(Window((token,), 0, 1, "embed"), finding, {key: floor}, 0.0, False, None, True,
                  {key: visible(floor, truth)})  # fmt: skip


def joined(ids: list[int], declared: Precision, done: Sequence[Judged], row: Judged | None,
           weaker: str) -> StageReport:  # fmt: skip
    """One report of all windows: of each stage the window where it is worst, of faults the first."""
    parts = [row, *done] if row else list(done)
    worst: dict[Key, Judged] = {}
    for key in done[0].finding.local:
        of = [one for one in parts if key in one.finding.local]
        wrong = [one for one in of if key in one.finding.wrong]
        worst[key] = wrong[0] if wrong else max(of, key=lambda one, key=key: one.finding.ratios[key])

    def of_worst(what: Callable[[Judged], Any]) -> dict[Key, Any]:
        return {key: what(one)[key] for key, one in worst.items()}

    finding = Finding(
        accumulated=of_worst(lambda one: one.finding.accumulated),
        local=of_worst(lambda one: one.finding.local),
        tests=of_worst(lambda one: one.finding.tests),
        wrong=tuple(key for key, one in worst.items() if key in one.finding.wrong),
        logits_restored=next((one.finding.logits_restored for one in done if one.finding.site), None),
        forwards=sum(one.finding.forwards for one in done),
    )
    site = worst[finding.site] if finding.site else None
    untouched = None if any(one.untouched is None for one in done) else max(one.untouched or 0.0 for one in done)
    suspect = next((one.suspect for one in done if one.suspect), None)
    disturbed = any(disturbs(one) for one in done)
    verdict = of_stages(finding, declared, equal=all(one.equal for one in done), suspect=suspect is not None,
                        disturbed=disturbed, measured=all(one.measured for one in done))  # fmt: skip
    return StageReport(ids, declared, verdict, finding, of_worst(lambda one: one.floor), untouched,
                       of_worst(lambda one: one.visible), suspect, disturbed, tuple(one.window for one in done),
                       site.window if site else None, weaker)  # fmt: skip
