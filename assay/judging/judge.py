"""Running the judge over the under_test: what ``assay parity``, ``flips`` and ``bisect`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from assay import engines
from assay.formats import InputError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Engine, Generation
from assay.formats.system.progress import Progress
from assay.judging.anybody import Anybody
from assay.judging.engines_under_test import WINDOW, UnderTest
from assay.judging.judge_stages import StageReport as StageReport
from assay.judging.judge_stages import judge_stages as judge_stages
from assay.parity import flips
from assay.parity.free_run import FreeRun, Generate, Written, free_run
from assay.peers.judged import ExternalEngine

PATHS: dict[str, Callable[[Engine, Sequence[int]], np.ndarray]] = {
    "prefill": flips.by_prefill,
    "decode": flips.by_decode,
}


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
