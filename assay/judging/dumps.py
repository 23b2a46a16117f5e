"""Judging activations that were dumped: the candidate is a folder, and there is no engine to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from assay.formats import InputError, ModelFile
from assay.formats.containers.cursor import shown
from assay.formats.contract.messages import Conversation
from assay.formats.system.progress import Progress
from assay.judging.engines_under_test import UnderTest, baseline, read_by
from assay.judging.judge import StageReport
from assay.parity import stages
from assay.parity.dump import Dump, read
from assay.parity.sample import Sample
from assay.parity.transplant import accuse, demand_same
from assay.parity.verdict import of_stages
from assay.parity.visible import visible


def opened_dump(folder: Path, file: ModelFile, text: str | Conversation | None, ids: Sequence[int] | None,
                chat: bool, arith: str | None) -> UnderTest:  # fmt: skip
    """The engines under test with a dump as the candidate, once it is sure that it read what the oracle reads.

    The oracle renders and encodes the prompt, or if none is given encodes the dump's rendered text. ``arith``: what
    computed a dump that does not say so. Raises SampleError if the sample is another, InputError for ids that are none.
    """
    shared = baseline(file)
    truth = shared.truth
    given = text is not None or ids is not None
    ours = read_by(truth, text, ids, chat) if given else None
    dump = read(folder, ours.ids if ours else None, file.config)
    if arith is not None:
        if "arith" in dump.engine:
            raise InputError(f"the dump says itself that it is {shown(str(dump.engine['arith']))}", where="--arith",
                             remedy="Leave it out")  # fmt: skip
        dump = replace(dump, engine={**dump.engine, "arith": arith})
    if ours is None:
        encoded = dump.ids if dump.prompt is None else tuple(truth.tokenizer.encode(dump.prompt))
        ours = Sample(dump.sample.text, encoded, file.sha256)
    demand_same(ours, dump.sample)
    file.check_ids(dump.ids)
    return UnderTest(shared, dump)


def judge_dump(under_test: UnderTest, runs: int, progress: Progress) -> StageReport | None:
    """Every dumped stage's local error; None where the dump does not say how it was computed.

    Raises InputError for more tokens than stages are kept of, FormatError for a damaged file, SampleError for a stage
    that the model does not have, or not in this shape.
    """
    dump: Dump = under_test.candidate
    ids = list(dump.ids)
    stages.demand_few(ids, "--dump", "Trace a shorter prompt")
    declared = under_test.declared(len(ids))
    if declared is None:
        return None
    progress(0, 2, "oracle, fed from the dump")
    finding, floor, suspect = accuse(under_test.truth, under_test.oracle, ids, dump, declared, runs=runs)
    progress(1, 2, "verdict")
    equal = has_logits(dump) and any(np.array_equal(dump.forward(ids), one.forward(ids))
                                     for one in (under_test.oracle, under_test.truth))  # fmt: skip
    measured = all(one.finite for one in floor.values())
    verdict = of_stages(finding, declared, equal=equal, suspect=suspect is not None, measured=measured)
    seen = {key: visible(one, dump[key]) for key, one in floor.items()}
    return StageReport(ids, declared, verdict, finding, floor, untouched=None, visible=seen, suspect=suspect)


def has_logits(dump: Dump) -> bool:
    """Whether there are logits in a dump, and they are numbers."""
    return ("logits", None) in dump and bool(np.isfinite(dump["logits", None]).all())
