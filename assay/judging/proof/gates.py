"""What must notice a mutant: the functions that the commands call, on the commands' own inputs.

A gate answers with its verdict, and with the checks that fired: the measures of stages that are beyond the limit, the
faults of tokens. So what one check is worth can be told from a record, without running anything again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.formats import NumericError, SampleError
from assay.formats.system.progress import quiet
from assay.judging import judge, test_matrix
from assay.judging.audit import audit_tokenizer
from assay.judging.engines_under_test import UnderTest
from assay.judging.independent import check
from assay.judging.judge import StageReport, judge_flips, judge_stages
from assay.parity.flips import account
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.precision import Key
from assay.parity.sample import OTHER_SAMPLE
from assay.parity.verdict import Verdict, faults_of, of_flips

RUNS = 4
FAILED = (Verdict.BUG, OTHER_SAMPLE)
"""A gate's own verdict that something is wrong with the candidate."""
SECOND = "second reading"
"""What finds the reading wrong that all engines share: REFERENCE-SUSPECT by it is a failure, by anything else an alarm
about the oracle, which no mutant is in."""
PER_TEXT = 128
"""Tokens of the long text that ``flips`` reads."""
ALONE = ("stages", "stages, decoding", "prefill", "decode")
"""Ways of ``assay axes`` that ``parity`` and ``flips`` are, too."""


@dataclass
class Answer:
    """What a gate said."""

    verdict: str
    checks: list[str]
    site: Key | None = None
    std_ratios: tuple[float, float] | None = None
    """The smallest and the largest of all stages, where they were judged; NaN if one is."""

    @property
    def failed(self) -> bool:
        return self.verdict in FAILED or SECOND in self.checks


NUMBERS = re.compile(r"-?\d[\d.e+-]*|\binf\b|\bnan\b")
Gate = Callable[[UnderTest], Answer]
Sample = Callable[[UnderTest, str], list[int]]
"""By path the ids that ``assay parity`` reads where nothing is given. Raises SampleError if both sides do not read the
same."""


def gates(sample: Sample, arith: str) -> dict[str, Gate]:
    """All gates by name.

    The oracle reads everything as a prompt is read, so of its arithmetics that path is judged alone, and writing.
    """
    found: dict[str, Gate] = {"sample": same_sample, "audit": audited, SECOND: second_reading}
    for path in ("prefill", "decode") if arith != "ggml" else ("prefill",):
        found[f"parity, {path}"] = lambda u, path=path: parity(u, sample, path)
    for path in ("prefill", "decode") if arith != "ggml" else ("prefill",):
        found[f"flips, {path}"] = lambda u, path=path: tokens(u, path)
    for name in test_matrix.WAYS:
        if name not in ALONE and (arith != "ggml" or name == "generate"):
            for prompt in ("raw", "chat") if name == "generate" else ("raw",):
                found[f"{name}, {prompt}"] = lambda u, name=name, prompt=prompt: by_way(u, name, prompt)
    return found


def same_sample(under_test: UnderTest) -> Answer:
    """Whether both sides read the same, raw and as a chat, of the short text of ``assay axes``."""
    try:
        for chat in (False, True):
            under_test.sample(test_matrix.SHORT, None, chat)
    except SampleError:
        return Answer(OTHER_SAMPLE, ["the same sample"])
    return Answer(Verdict.BIT_EQUAL, [])


def audited(under_test: UnderTest) -> Answer:
    """``assay tokenize --audit``: the candidate's tokenizer and renderer on the built-in corpus."""
    wrong = [kind.name for kind in audit_tokenizer(under_test.candidate, under_test.truth.file) if kind.differing]
    return Answer(OTHER_SAMPLE, ["the audit"]) if wrong else Answer(Verdict.BIT_EQUAL, [])


def second_reading(under_test: UnderTest) -> Answer:
    """What the file says, by our reader and by another: every ``parity`` and ``flips`` asks so."""
    found = check(under_test.file)
    return Answer(Verdict.REFERENCE_SUSPECT, [SECOND]) if found.differences else Answer(Verdict.BIT_EQUAL, [])


def parity(under_test: UnderTest, sample: Sample, path: str) -> Answer:
    """``assay parity``: stages, then tokens."""
    try:
        ids = sample(under_test, path)
    except SampleError:
        return Answer(OTHER_SAMPLE, ["the same sample"])
    found = judge_stages(under_test, ids, path, RUNS, quiet)
    assert found is not None
    answer = of_stages(found)
    if found.untouched is not None:
        said = tokens_of(under_test, ids, path)
        answer.checks += said.checks
        if Verdict(answer.verdict).green and said.failed:
            answer.verdict = said.verdict
    return answer


def of_stages(found: StageReport) -> Answer:
    """A report on stages, by the measures that are beyond the limit."""
    over = {f"stages: {name}": None for tests in found.finding.tests.values() for name, ratio in tests.items()
            if ratio > TOLERANCE_FACTOR}  # fmt: skip
    over = [*over, *(["stages: taps change the program"] if found.disturbed else [])]
    if not found.verdict.green and not over:
        over = ["stages: something else"]
    ratios = [one.std_ratio for one in found.finding.accumulated.values()]
    return Answer(found.verdict, over, found.finding.site, (float(np.min(ratios)), float(np.max(ratios))))


def tokens(under_test: UnderTest, path: str) -> Answer:
    """``assay flips`` on the beginning of a long text."""
    try:
        ids = under_test.sample(test_matrix.LONG[:2000], None, False)[:PER_TEXT]
    except SampleError:
        return Answer(OTHER_SAMPLE, ["the same sample"])
    return tokens_of(under_test, ids, path)


def tokens_of(under_test: UnderTest, ids: list[int], path: str) -> Answer:
    """The tokens of some ids."""
    try:
        positions = judge_flips(under_test, ids, path, RUNS, quiet)
    except NumericError:
        return Answer(Verdict.BUG, ["tokens: not numbers"])
    assert positions is not None
    counted = account(positions)
    return Answer(of_flips(counted, under_test.declared(1 if path == "decode" else len(ids))), named(counted))


def named(counted: Any) -> list[str]:
    """The faults of tokens, without their numbers; those of measures that have a name by that."""
    measures = [one.name for one in getattr(counted, "measures", ()) if one.beyond]
    in_words = faults_of(counted)
    if measures:  # told in words after the others, the first few of them
        in_words = [fault for fault in in_words if "flips" in fault]
    plain = [" ".join(NUMBERS.sub("", fault).split()) for fault in in_words]
    return [f"tokens: {name}" for name in (*plain, *measures)]


def by_way(under_test: UnderTest, name: str, prompt: str) -> Answer:
    """A cell of ``assay axes``."""
    text = test_matrix.LONG if name in getattr(test_matrix, "FAR", ("long",)) else test_matrix.SHORT
    with noticed() as checks:
        cell = test_matrix.judged(test_matrix.WAYS[name], under_test, prompt, text, RUNS, {})
    if cell.verdict in FAILED and not checks:
        checks = [f"way: {name}"] if cell.verdict != OTHER_SAMPLE else ["the same sample"]
    return Answer(cell.verdict, checks)


@contextmanager
def noticed() -> Iterator[list[str]]:
    """The checks that fire in a cell while the block lasts."""
    checks: list[str] = []
    judged_tokens = test_matrix.of_flips

    def of_flips_noticed(counted: Any, declared: Any) -> Verdict:
        checks.extend(named(counted))
        return judged_tokens(counted, declared)

    test_matrix.of_flips = of_flips_noticed
    try:
        yield checks
    finally:
        test_matrix.of_flips = judged_tokens


@contextmanager
def kept_logits() -> Iterator[dict[tuple[str, int], Any]]:
    """The logits that the judge asks a candidate for, by path and number of ids, while the block lasts."""
    kept: dict[tuple[str, int], Any] = {}
    originals = dict(judge.PATHS)

    def keeping(path: str) -> Callable[..., Any]:
        def read(engine: Any, ids: Any) -> Any:
            logits = originals[path](engine, ids)
            kept[path, len(ids)] = logits
            return logits

        return read

    judge.PATHS.update({path: keeping(path) for path in originals})
    try:
        yield kept
    finally:
        judge.PATHS.update(originals)
