"""``assay.judge``, ``assay.flips`` and ``assay.bisect``: what the commands ask, of anybody's engine.

    report = assay.judge(engine, "model.gguf", declaration=Declaration(activations="bf16", weights="bf16"))
    print(report)                       # BUG: stages by prefill: ffn_up of layer 2: its local error is 812 floors ..
    assert report.exit_code == 0, report

``engine`` is an object with ``forward(ids, tap)``, ``prefill``, ``decode`` and ``fingerprint``
(``contract.engine.Engine``), or with some of them: what is missing is a part that is SKIPPED, with the reason. Or it is
a name, as of ``--engine``: ``"accel"``, ``"reference"``, ``"llama.cpp"``, the address of an endpoint; or the path of a
folder of dumped activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from assay.engines import ENGINES, find
from assay.formats import InputError, ModelFile, NumericError, SampleError, open_model
from assay.formats.contract.arguments import checked
from assay.formats.contract.config import STAGES, WHOLE_MODEL_STAGES
from assay.formats.contract.declaration import Declaration
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import Conversation
from assay.formats.system.progress import Progress, quiet
from assay.judging.anybody import Anybody
from assay.judging.dumps import has_logits, judge_dump, opened_dump
from assay.judging.engines_under_test import UnderTest, baseline, encoded_by, is_served, opened
from assay.judging.independent import check
from assay.judging.judge import PATHS, StageReport, judge_flips, judge_free_run, judge_stages
from assay.judging.report import Part, Report, said_of_stages, said_of_tokens
from assay.judging.test_matrix import SHORT, WRITTEN
from assay.parity.dump import Dump
from assay.parity.flips import account
from assay.parity.sample import check_same
from assay.parity.stages import MAX_TOKENS
from assay.parity.verdict import Verdict, of_flips
from assay.peers.judged import ExternalEngine

NOT_DECLARED = "the engine does not say how it computes, so there is no floor: give a declaration"


@checked
def judge(engine: Any, model: str | Path | ModelFile = "builtin",
          prompt: str | Conversation | Sequence[int] | None = None, *, path: Literal["prefill", "decode"] = "prefill",
          tier: Literal["quick", "full"] = "quick", declaration: Declaration | None = None,
          texts: Sequence[str] | None = None, independent: bool = False, chat: bool = False, runs: int = 4,
          arith: str | None = None, cache_type: str | None = None, progress: Progress = quiet) -> Report:  # fmt: skip
    """Does ``engine`` compute what the model file says: stage by stage, and token by token?

    ``model``: a path, a name of the catalogue, ``"builtin"``, or an open file. ``prompt``: a text, a conversation, or
    token ids, at most 128 (None: a few lines of code); with ``chat`` each side wraps a text in the chat template.
    ``path``: how the engine reads in the quick tier; the full tier reads both ways, and lets it write. ``declaration``:
    what its arithmetic rounds, in the place of what its fingerprint says. ``texts``: also encode these with the
    engine's tokenizer and with the oracle's. ``independent``, and the full tier: hold what the file says against
    another reader's reading, which no engine shares. ``runs``: noisy runs that make the floor, 2 or more. ``arith`` and
    ``cache_type`` are for an engine that is given by its name, or a dump.

    What the engine computes wrong is in the report; so is what it cannot be asked. Raises SampleError where it did not
    read or show the same as the oracle, InputError for arguments, and for an engine that raises or returns no arrays.
    """
    taps = not (isinstance(engine, str) and is_served(engine))
    with before_the_judge(engine, model, prompt, chat, path, declaration, arith, cache_type,
                          taps=taps) as (judged, ids):  # fmt: skip
        if isinstance(judged.candidate, Dump):
            parts = dump_parts(judged, runs, progress)
        else:
            parts = []
            for way in (path,) if tier == "quick" else tuple(PATHS):
                stages = stages_part(judged, ids, way, runs, progress)
                parts += [stages, tokens_part(judged, ids, way, runs, progress)]
            if tier == "full":
                parts.append(writing_part(judged, ids, WRITTEN, runs, progress))
        if independent or tier == "full":
            parts.append(reading_part(judged.file, independent))
        if texts is not None:
            parts.append(tokenizer_part(judged, texts))
        return report(judged, ids, parts, path, chat or isinstance(prompt, Conversation))


@checked
def flips(engine: Any, model: str | Path | ModelFile = "builtin",
          prompt: str | Conversation | Sequence[int] | None = None, *, path: Literal["prefill", "decode"] = "prefill",
          free: int = 0, declaration: Declaration | None = None, chat: bool = False, runs: int = 4,
          arith: str | None = None, cache_type: str | None = None, endpoint_model: str | None = None,
          insecure_key: bool = False, progress: Progress = quiet) -> Report:  # fmt: skip
    """Which tokens of a text can flip under the declared arithmetic, and which did?

    A text of any length, in windows of 256 tokens; with ``free`` the engine also writes so many tokens by itself.
    ``endpoint_model`` and ``insecure_key`` are for the address of an endpoint; all else, and errors, as of ``judge``.
    """
    with before_the_judge(engine, model, prompt, chat, path, declaration, arith, cache_type, taps=False,
                          endpoint_model=endpoint_model, insecure_key=insecure_key) as (judged, ids):  # fmt: skip
        parts = [tokens_part(judged, ids, path, runs, progress)]
        if free:
            parts.append(writing_part(judged, ids, free, runs, progress))
        return report(judged, ids, parts, path, chat or isinstance(prompt, Conversation))


@checked
def bisect(engine: Any, model: str | Path | ModelFile = "builtin",
           prompt: str | Conversation | Sequence[int] | None = None, *, path: Literal["prefill", "decode"] = "prefill",
           declaration: Declaration | None = None, chat: bool = False, runs: int = 4, arith: str | None = None,
           cache_type: str | None = None, progress: Progress = quiet) -> Report:  # fmt: skip
    """Which stage of which layer computes something wrong? Proven by transplanting the truth there.

    ``report.stages.finding`` has every wrong stage, and how far the logits come back. Arguments and errors as of
    ``judge``.
    """
    with before_the_judge(engine, model, prompt, chat, path, declaration, arith, cache_type) as (judged, ids):
        part = stages_part(judged, ids, path, runs, progress)
        return report(judged, ids, [part], path, chat or isinstance(prompt, Conversation))


@contextmanager
def before_the_judge(engine: Any, model: str | Path | ModelFile, prompt: str | Conversation | Sequence[int] | None,
                     chat: bool, path: str, declaration: Declaration | None, arith: str | None,
                     cache_type: str | None, *, taps: bool = True,
                     **served: Any) -> Iterator[tuple[UnderTest, list[int]]]:  # fmt: skip
    """The engines under test while the block lasts, and the ids that all of them read."""
    file = model if isinstance(model, ModelFile) else open_model(find(model))
    if prompt is None and not isinstance(engine, Path):  # a dump says itself what was read
        prompt = SHORT
    text, ids = (prompt, None) if prompt is None or isinstance(prompt, str | Conversation) else (None, list(prompt))
    most = None if not taps else MAX_TOKENS if path == "prefill" else file.config.context_length
    if isinstance(engine, Path):
        judged = opened_dump(engine, file, text, ids, chat, arith)
        yield replace(judged, declaration=declaration), list(judged.candidate.ids)
    elif isinstance(engine, str):
        with opened(file, engine, arith, cache_type, taps=taps, **served) as judged:
            yield replace(judged, declaration=declaration), judged.sample(text, ids, chat, most)
    else:
        if (arith, cache_type) != (None, None):
            raise InputError("the engine is loaded already", where="arith and cache_type of judge",
                             remedy="Load it so, or give a declaration")  # fmt: skip
        judged = UnderTest(baseline(file), engine if is_own(engine) else Anybody(engine, file), declaration)
        yield judged, judged.sample(text, ids, chat, most)


def is_own(engine: Any) -> bool:
    """Whether ``assay.load`` made it, or it is a peer that runs: such are used as they are."""
    homes = {kind.__module__.rpartition(".")[0] for kind in type(engine).__mro__}
    return isinstance(engine, ExternalEngine) or any(f"assay.{name}" in homes for name in ENGINES)


def stages_part(judged: UnderTest, ids: list[int], path: str, runs: int, progress: Progress) -> Part:
    """The verdict on stages, or why there is none."""
    name, candidate = f"stages by {path}", judged.candidate
    if isinstance(candidate, ExternalEngine):
        return Part(name, Verdict.SKIPPED, "a server shows no stages")
    if isinstance(candidate, Anybody) and not candidate.taps:
        return Part(name, Verdict.SKIPPED, f"{candidate.name} shows no stages: its forward takes no tap")
    if isinstance(candidate, Anybody) and path == "decode":
        return Part(name, Verdict.SKIPPED, f"{candidate.name} shows stages where it reads a prompt (forward) only")
    found = judge_stages(judged, ids, path, runs, progress)
    return of_stages(name, found)


def of_stages(name: str, found: StageReport | None) -> Part:
    """The part that a report on stages is."""
    if found is None:
        return Part(name, Verdict.UNCALIBRATED, NOT_DECLARED)
    return Part(name, found.verdict, said_of_stages(found), stages=found)


def tokens_part(judged: UnderTest, ids: list[int], path: str, runs: int, progress: Progress) -> Part:
    """The verdict on tokens, or why there is none."""
    name, candidate = f"tokens by {path}", judged.candidate
    if path == "decode" and isinstance(candidate, Anybody) and not candidate.decodes:
        return Part(name, Verdict.SKIPPED, f"{candidate.name} has no prefill and decode that go on from a cache")

    def counted() -> Part:
        positions = judge_flips(judged, ids, path, runs, progress)
        if positions is None:
            return Part(name, Verdict.UNCALIBRATED, NOT_DECLARED)
        found = account(positions)
        verdict = of_flips(found, judged.declared(1 if path == "decode" else len(ids)))
        return Part(name, verdict, said_of_tokens(found), tokens=found)

    return numbers(name, counted)


def writing_part(judged: UnderTest, ids: list[int], n: int, runs: int, progress: Progress) -> Part:
    """The verdict on what the engine writes by itself, or why there is none."""
    name, candidate = "writing by itself", judged.candidate
    if isinstance(candidate, Anybody) and not candidate.decodes:
        return Part(name, Verdict.SKIPPED, f"{candidate.name} has no prefill and decode that go on from a cache")

    def written() -> Part:
        found = judge_free_run(judged, ids, n, runs, progress)
        if found is None:
            return Part(name, Verdict.UNCALIBRATED, NOT_DECLARED)
        return Part(name, of_flips(found, judged.declared(1)), said_of_tokens(found), tokens=found)

    return numbers(name, written)


def numbers(name: str, part: Callable[[], Part]) -> Part:
    """``part``; a BUG where the engine computes no numbers, which stand for no tokens."""
    try:
        return part()
    except NumericError as error:
        return Part(name, Verdict.BUG, f"{error.where}: {error.what}")


def dump_parts(judged: UnderTest, runs: int, progress: Progress) -> list[Part]:
    """The verdicts on a folder of dumped activations."""
    parts = [of_stages("stages of the dump", judge_dump(judged, runs, progress))]
    if has_logits(judged.candidate):
        parts.append(tokens_part(judged, list(judged.candidate.ids), "prefill", runs, progress))
    return parts


def tokenizer_part(judged: UnderTest, texts: Sequence[str]) -> Part:
    """Whether the engine's tokenizer makes the oracle's ids of every text."""
    name, candidate = "tokenizer", judged.candidate
    if getattr(candidate, "tokenizer", None) is None:
        return Part(name, Verdict.SKIPPED, "the engine has no tokenizer")
    wrong = []
    for text in texts:
        ours, theirs = (encoded_by(engine, Prompt(text)) for engine in (judged.truth, candidate))
        try:
            check_same(ours, theirs)
        except SampleError as error:
            wrong.append(f"{text[:40]!r}: {error.what}")
    if wrong:
        return Part(name, Verdict.BUG, f"{len(wrong)} of {len(texts)} texts have other ids: {wrong[0]}")
    return Part(name, Verdict.BIT_EQUAL, f"{len(texts)} texts have the same ids")


def reading_part(file: ModelFile, values: bool) -> Part:
    """Whether another reader finds in the file what ours gave to all engines; with ``values`` every weight, too."""
    name, found = "second reading", check(file, values=values)
    if found.failed:
        return Part(name, Verdict.SKIPPED, found.says)
    return Part(name, Verdict.REFERENCE_SUSPECT if found.differences else Verdict.BIT_EQUAL, found.says)


def report(judged: UnderTest, ids: list[int], parts: list[Part], path: str, chat: bool) -> Report:
    """The report on these parts."""
    candidate, file = judged.candidate, judged.file
    declared = judged.declared(1 if path == "decode" else len(ids))
    notes = []
    if isinstance(candidate, Anybody):
        if candidate.tokenizer is None:
            notes.append(f"the ids are the oracle's: {candidate.name} has no tokenizer to be judged")
        if candidate.file is file:
            notes.append(f"not verified: that {candidate.name} computes with the weights of {file.path.name}")
    notes += not_shown(parts, judged)
    return Report(
        parts=tuple(parts), candidate=candidate.fingerprint(), ids=tuple(ids),
        model={"path": str(file.path), "name": file.name, "sha256": file.sha256},
        declared=declared.declaration if declared else None, notes=tuple(notes),
        doubts=tuple(file.chat_doubts) if chat else (),
    )  # fmt: skip


def not_shown(parts: Sequence[Part], judged: UnderTest) -> list[str]:
    """The stages that were not judged because the candidate does not show them."""
    found = next((part.stages.finding.local for part in parts if part.stages), None)
    if found is None:
        return []
    layers = range(judged.file.config.n_layers)
    every = [(stage, None) if stage in WHOLE_MODEL_STAGES else (stage, layer) for stage in STAGES for layer in layers]
    names = ", ".join(dict.fromkeys(stage for stage, layer in every if (stage, layer) not in found))
    return [f"not shown: {names}; a fault there counts to the next stage that is"] if names else []
