"""Judging what an engine printed of its activations: the log is the candidate, and there is no engine to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from assay.formats import InputError
from assay.formats.contract.arguments import checked
from assay.judging.baseline import Baseline
from assay.judging.declared import declaration_of
from assay.parity import stages
from assay.parity.eval_callback import Held, Log, held
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.precision import Key, Precision, precision
from assay.parity.verdict import Verdict


class Judged(NamedTuple):
    """Every printed stage beside the truth."""

    ids: list[int]
    declared: Precision
    verdict: Verdict
    stages: Mapping[Key, Held]
    first: Key | None
    """The first stage beyond its floor; errors grow on from there."""


@checked
def judge_printed(known: Baseline, log: Log, ids: Sequence[int], arith: str, runs: int = 8) -> Judged:
    """What an engine printed that read ``ids`` and declares ``arith``; ``runs``: noisy ones that make the floor.

    Raises InputError for an arithmetic that is not known and for too many ids, SampleError for ids that are not the
    log's, or a stage that the model does not have.
    """
    stages.demand_few(ids, "--eval-callback", "Print the run of a shorter prompt")
    file = known.truth.file
    file.check_ids(ids)
    said = declaration_of({"engine": "llama.cpp", "arith": arith, "cache": "f16"}, file, len(ids))
    if said is None:
        raise InputError(f"nothing is known of an arithmetic {arith!r}", where="--arith", remedy="Declare ggml or f32")
    declared = precision(said, file.config)
    found = held(log, known.activations(ids), known.oracle, ids, declared, runs=runs)
    first = next((key for key, one in found.items() if not one.worst <= TOLERANCE_FACTOR), None)
    verdict = Verdict.BUG if first is not None else Verdict.DRIFT
    return Judged(list(ids), declared, verdict, found, first)
