"""Running the judge over the under_test: what ``assay parity``, ``flips`` and ``bisect`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay import engines
from assay.formats import InputError, NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Engine, Generation, identity
from assay.formats.system.progress import Progress
from assay.judging.anybody import Anybody
from assay.judging.engines_under_test import WINDOW, UnderTest
from assay.parity import flips, stages, transplant
from assay.parity.bisect import Finding, bisect
from assay.parity.bounds import beyond_f32, unmeasured
from assay.parity.distance import distance
from assay.parity.floor import TOLERANCE_FACTOR, NoiseFloor, over_floor
from assay.parity.free_run import FreeRun, Generate, Written, free_run
from assay.parity.precision import Key, Precision, sums_of
from assay.parity.verdict import Verdict, of_stages
from assay.parity.visible import Visible, visible
from assay.peers.judged import ExternalEngine

PATHS: dict[str, Callable[[Engine, Sequence[int]], np.ndarray]] = {
    "prefill": flips.by_prefill,
    "decode": flips.by_decode,
}


@dataclass(frozen=True)
class StageReport:
    """Every stage of every layer, judged."""

    ids: list[int]
    declared: Precision
    verdict: Verdict
    finding: Finding
    floor: NoiseFloor
    untouched: float | None
    """Relative L2 distance between the candidate's logits with and without a tap that changes nothing; None where they
    are not numbers."""
    visible: dict[Key, Visible]
    """The smallest faults that each stage's floor would have shown."""
    suspect: Key | None = None
    """The first stage in which the oracle is further from the truth than f32 can be, or than its floor allows."""

    @property
    def disturbed(self) -> bool:
        """Whether taps change what is computed. Both programs are one arithmetic: each is about as far from the truth
        as the other, so they may be twice as far from one another."""
        return disturbs(self.finding, self.untouched)


@checked
def judge_stages(
    under_test: UnderTest, ids: Sequence[int], path: str, runs: int, progress: Progress
) -> StageReport | None:
    """Truth, floor, and every stage's local error; None where the candidate does not declare its arithmetic.

    On the decoding path only as many ids are read as the candidate reads like single tokens. Raises InputError for
    more tokens than the truth of every stage may be kept of.
    """
    if path == "decode":
        ids = ids[: under_test.candidate.fingerprint().get("int8_up_to") or len(ids)]
    stages.demand_few(ids, "prompt", "'assay flips' reads longer texts")
    under_test.file.check_ids(ids)
    declared = under_test.declared(len(ids))
    if declared is None:
        return None
    n = 5
    progress(0, n, "truth")
    truth = shown_of(under_test, ids)
    progress(1, n, "floor")
    floor, alone = floor_of(under_test, ids, truth, declared, runs)
    suspect = accused_oracle(under_test, alone, truth, floor)
    progress(2, n, "candidate, stage by stage")
    finding = bisect(under_test.candidate, ids, truth, floor)
    progress(3, n, "candidate, undisturbed")
    equal, untouched = False, None
    with suppress(NumericError):  # the stage where logits cease to be numbers has been found by now
        plain, tapped = under_test.candidate.forward(ids), under_test.candidate.forward(ids, identity)
        equal = any(np.array_equal(plain, logits) for logits in (under_test.oracle.forward(ids), truth["logits", None]))
        untouched = distance(tapped, plain).relative_l2
    progress(4, n, "verdict")
    verdict = of_stages(finding, declared, equal=equal, suspect=suspect is not None,
                        disturbed=disturbs(finding, untouched),
                        measured=not unmeasured(floor, truth, sums_of(under_test.file.config)))  # fmt: skip
    seen = {key: visible(floor[key], truth[key]) for key in truth}
    return StageReport(list(ids), declared, verdict, finding, floor, untouched, seen, suspect)


def disturbs(finding: Finding, untouched: float | None) -> bool:
    """Whether two programs of a candidate, with taps and without, differ by more than they may."""
    tapped = finding.accumulated.get(("logits", None))
    return untouched is not None and tapped is not None and not untouched <= TOLERANCE_FACTOR * tapped.relative_l2


def accused_oracle(under_test: UnderTest, alone: stages.Distances, truth: stages.Activations,
                   floor: NoiseFloor) -> Key | None:  # fmt: skip
    """The first stage in which the oracle in f32 is wrong by itself, by its local errors; None if it is right."""
    beyond = beyond_f32(alone, truth, sums_of(under_test.file.config))
    return next((key for key, one in alone.items() if key in beyond or over_floor(one, floor[key]) > TOLERANCE_FACTOR),
                None)  # fmt: skip


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


@checked
def judge_flips(
    under_test: UnderTest, ids: Sequence[int], path: str, runs: int, progress: Progress
) -> flips.Positions | None:
    """Every position of ``ids``, in windows that each start anew; None where there is no declared arithmetic."""
    if runs < 2:
        raise InputError(f"{runs} runs", where="--runs", remedy="Give at least 2")
    width = min(WINDOW, under_test.file.config.context_length)
    windows = [ids[at : at + width] for at in range(0, len(ids), width)]
    parts = []
    for i, window in enumerate(windows):
        progress(i, len(windows), "positions")
        declared = under_test.declared(1 if path == "decode" else len(window))
        if declared is None:
            return None
        predicted = under_test.baseline.prediction(window, declared, runs, seed=i * runs)
        found = PATHS[path](under_test.candidate, window)[:, : len(under_test.file.vocabulary)]
        if isinstance(under_test.candidate, ExternalEngine):
            under_test.candidate.demand_plain(predicted.exact, found)
        parts.append(flips.observe(predicted, found, window[1:]))
    return flips.joined(parts)


@checked
def judge_free_run(under_test: UnderTest, ids: Sequence[int], n: int, runs: int, progress: Progress,
                   write: Generate | None = None) -> FreeRun | None:  # fmt: skip
    """The candidate's own generation of ``n`` tokens after ``ids``; None where there is no declared arithmetic.

    ``write``: another way of its to generate. Raises InputError where prompt and answer are longer than a window.
    """
    most = min(WINDOW, under_test.file.config.context_length)
    if len(ids) + n > most:
        raise InputError(f"{len(ids)} tokens of prompt and {n} of answer", where="--free",
                         remedy=f"Together at most {most}")  # fmt: skip
    declared = under_test.declared(1)
    if declared is None:
        return None
    progress(0, 2, "the truth's answer")
    answer = under_test.baseline.answer(ids, n)
    predicted = under_test.baseline.prediction([*ids, *answer[:-1]], declared, runs).of(slice(len(ids) - 1, None))
    progress(1, 2, "the candidate's")
    ends = under_test.file.vocabulary.end_ids
    room = len(ids) + len(answer) < under_test.file.config.context_length  # to write on where the truth ended
    return free_run(write or generation(under_test.candidate), ids, answer, predicted, ends=ends,
                    past=int(room and bool(answer) and answer[-1] in ends),
                    decode=under_test.truth.tokenizer.decode)  # fmt: skip


def generation(engine: Engine) -> Generate:
    """The function of an engine that ``assay run`` calls, or a peer's own."""
    if isinstance(engine, ExternalEngine | Anybody):
        return engine.generate
    return lambda ids, n: written(engines.generate(engine, ids, max_tokens=n))


def written(one: Generation) -> tuple[Any, ...]:
    """What the judge wants to know of a generation."""
    return Written(one.ids, one.margins, one.text)
