"""The same question on every way through the engines: prompt, container, engine and arithmetic, path.

Each combination is a cell with a verdict of its own. Truth and floors are the same for all cells that read the same
ids, so a cell costs little more than the candidate's run. What failed is then attributed to the axes
(``parity/attribution.py``): "only where an APR file is decoded" is a finding, twelve red cells are not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import getsource
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assay import engines
from assay.formats import InputError, ModelError, ModelFile, NumericError, SampleError, open_model
from assay.formats.contract.arguments import checked
from assay.formats.contract.messages import Conversation
from assay.formats.conversion.convert import convert
from assay.formats.qwen2.doubts import MARKER
from assay.formats.system.progress import Progress, quiet
from assay.judging.engines_under_test import UnderTest, baseline, read_by, rendered_by
from assay.judging.judge import PATHS, StageReport, judge_free_run, judge_stages, written
from assay.parity.flips import Account, account, by_prefill_then_decode, observe
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.free_run import FreeRun
from assay.parity.sample import OTHER_SAMPLE, check_same, place
from assay.parity.stages import demand_few
from assay.parity.verdict import Verdict, of_flips

PROMPTS = ("raw", "chat", "chat ids")
"""A text as it is; as a user's message, rendered and encoded by each side; the same ids, forced on both. Of a whole
conversation the rendered text is what is read raw."""
ENGINES = ("accel fast", "accel f32", "reference f32")
SHORT = 'def area(r):\n    """Area of a circle of radius r."""\n    return'
LONG = getsource(textwrap)
LONG_TOKENS, JUDGED = 512, 32
"""Tokens of the long text, and how many positions at its end are judged: where only far positions are wrong."""
WRITTEN = 24
"""Tokens that a candidate writes by itself."""
OTHERS = ("The sea is", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,")
"""Prompts that are decoded beside the judged one in a batch."""


@dataclass(frozen=True)
class Cell:
    """One combination and what was found there."""

    levels: dict[str, str]
    verdict: str
    """A ``Verdict``, or ``OTHER_SAMPLE``."""
    note: str = ""
    expected: float | None = None
    """Flips, where tokens were judged."""
    observed: int | None = None

    @property
    def failed(self) -> bool:
        """Whether something is wrong there; UNCALIBRATED and DOUBTFUL are not known to be."""
        return self.verdict in (Verdict.BUG, Verdict.REFERENCE_SUSPECT, OTHER_SAMPLE)


@checked
def run(file: ModelFile, *, short: str | Conversation = SHORT, names: Sequence[str] = ENGINES, runs: int = 4,
        progress: Progress = quiet) -> tuple[list[Cell], str]:  # fmt: skip
    """Every cell, in the order path, prompt, container, engine. The other container is made in a temporary folder.

    Also why there is no other container, empty if there is. Raises InputError for a prompt whose stages cannot be kept.
    """
    with TemporaryDirectory(prefix="assay-axes-") as folder:
        progress(0, 1, "engines")
        shared, candidates = baseline(file), []
        texts: dict[str, str | Conversation] = dict.fromkeys(PROMPTS, short)
        if isinstance(short, Conversation):
            texts["raw"] = rendered_by(shared.truth, short, True).text
        for prompt, text in texts.items():
            demand_few(read_by(shared.truth, text, None, prompt != "raw").ids, "prompt", "Give a shorter one")
        containers, missing = both_containers(file, Path(folder))
        for container, one in containers.items():
            for name in names:
                engine, arith = name.split()
                candidate = engines.load(one, engine=engine, arith=arith)
                if engine == "reference" and one is file:
                    candidate.weights = shared.truth.weights
                candidates.append((container, name, UnderTest(shared, candidate)))
        cells, total = [], len(WAYS) * len(PROMPTS) * len(candidates)
        for path, way in WAYS.items():
            for prompt in PROMPTS:
                for container, name, under_test in candidates:
                    levels = {"prompt": prompt, "container": container, "engine": name, "path": path}
                    progress(len(cells), total, f"{path}, {prompt}")
                    text = LONG if path == "long" else texts[prompt]
                    cells.append(judged(way, under_test, prompt, text, runs, levels))
        return cells, missing


def both_containers(file: ModelFile, folder: Path) -> tuple[dict[str, ModelFile], str]:
    """The model as it is, and converted, which ``convert`` has compared bit for bit; or why it cannot be converted."""
    found, missing = {file.format: file}, []
    for container in ("gguf", "apr"):
        if container == file.format:
            continue
        try:
            convert(file.path, folder / f"model.{container}")
            found[container] = open_model(folder / f"model.{container}")
        except (InputError, ModelError) as error:
            missing.append(f"no cells in {container}: {error.what}")
    return found, "; ".join(missing)


def judged(way: Way, under_test: UnderTest, prompt: str, text: str | Conversation, runs: int,
           levels: dict[str, str]) -> Cell:  # fmt: skip
    """One cell; a candidate that reads something else, or computes no numbers, is a finding, not an error."""
    try:
        ids = sample(under_test, prompt, text)
        cell = way(under_test, ids, runs, levels)
    except SampleError as error:
        return Cell(levels, OTHER_SAMPLE, f"{error.where}: {error.what}")
    except NumericError as error:
        return Cell(levels, Verdict.BUG, error.what)
    in_turns = prompt != "raw" or MARKER.search(str(text)) is not None
    if in_turns and under_test.file.chat_doubts and Verdict(cell.verdict).green:
        return replace(cell, verdict=Verdict.DOUBTFUL, note=under_test.file.chat_doubts[0])
    return cell


def sample(under_test: UnderTest, prompt: str, text: str | Conversation) -> list[int]:
    """The ids of a prompt, if both sides come to the same; the weights are the same in another container."""
    ours = read_by(under_test.truth, text, None, prompt != "raw")
    if prompt != "chat ids":
        check_same(ours, replace(read_by(under_test.candidate, text, None, prompt != "raw"), weights=ours.weights))
    return list(ours.ids)


Way = Callable[[UnderTest, list[int], int, dict[str, str]], Cell]


def by_stages(path: str) -> Way:
    """Every stage's local error."""

    def way(under_test: UnderTest, ids: list[int], runs: int, levels: dict[str, str]) -> Cell:
        found = judge_stages(under_test, ids, path, runs, quiet)
        return Cell(levels, Verdict.UNCALIBRATED) if found is None else Cell(levels, found.verdict, said(found))

    return way


def said(found: StageReport) -> str:
    """Where a stage is wrong, or how near to it the worst is."""
    if found.finding.site is None:
        return f"{found.finding.ratio:.2f} floors, of {TOLERANCE_FACTOR:g}"
    return f"{place(*found.finding.site)}: {found.finding.ratio:.3g} floors"


def by_tokens(path: str) -> Way:
    """Every position, read all at once or one by one."""

    def way(under_test: UnderTest, ids: list[int], runs: int, levels: dict[str, str]) -> Cell:
        return counted(under_test, ids, 1 if path == "decode" else len(ids), len(ids), runs, levels, PATHS[path])

    return way


def at_the_end_of_a_long_text(under_test: UnderTest, ids: list[int], runs: int, levels: dict[str, str]) -> Cell:
    """The last positions of a text that is read as a prompt is, and then decoded."""
    ids = ids[: min(LONG_TOKENS, under_test.file.config.context_length)]
    n = min(JUDGED, len(ids) - 1)
    return counted(under_test, ids, 1, n, runs, levels, lambda engine, read: by_prefill_then_decode(engine, read, n))


def counted(under_test: UnderTest, ids: list[int], n_at_once: int, n: int, runs: int, levels: dict[str, str],
            read: Callable[[Any, Sequence[int]], Any]) -> Cell:  # fmt: skip
    """The last ``n`` positions of ``ids``: flips expected and observed."""
    declared = under_test.declared(n_at_once)
    if declared is None:
        return Cell(levels, Verdict.UNCALIBRATED)
    predicted = under_test.baseline.prediction(ids, declared, runs).of(slice(len(ids) - n, None))
    found = account(observe(predicted, read(under_test.candidate, ids)[:, : len(under_test.file.vocabulary)]))
    return tokens_cell(levels, found, of_flips(found, declared))


def tokens_cell(levels: dict[str, str], found: Account | FreeRun, verdict: Verdict) -> Cell:
    """A cell in which tokens were judged."""
    note = f"{len(found.unexplained)} unexplained, logit gaps moved {found.noise:.2g} times the predicted noise"
    return Cell(levels, verdict, note, found.expected, found.observed)


def writing(together: bool) -> Way:
    """What the candidate writes by itself, alone or in a batch with others."""

    def way(under_test: UnderTest, ids: list[int], runs: int, levels: dict[str, str]) -> Cell:
        before, after = (under_test.truth.tokenizer.encode(text) for text in OTHERS)

        def in_a_batch(ids: Sequence[int], n: int) -> tuple[Sequence[int], Sequence[float]]:
            return written(engines.generate_batch(under_test.candidate, [before, ids, after], max_tokens=n)[1])

        found = judge_free_run(under_test, ids, WRITTEN, runs, quiet, in_a_batch if together else None)
        if found is None:
            return Cell(levels, Verdict.UNCALIBRATED)
        return tokens_cell(levels, found, of_flips(found, under_test.declared(1)))

    return way


WAYS: dict[str, Way] = {
    "stages": by_stages("prefill"),
    "stages, decoding": by_stages("decode"),
    "prefill": by_tokens("prefill"),
    "decode": by_tokens("decode"),
    "long": at_the_end_of_a_long_text,
    "generate": writing(together=False),
    "batch": writing(together=True),
}
"""The levels of the path axis."""
