"""What the commands that compare engines share: their options, what both sides read, how a verdict is said."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands import options, tables
from assay.commands.asked import IDS_HELP, asked, text_and_ids
from assay.formats import InputError, SampleError
from assay.formats.system.atomic_file import demand_apart, demand_free, replacing
from assay.formats.system.progress import Progress
from assay.judging.engines_under_test import UnderTest, opened
from assay.judging.judge import PATHS
from assay.judging.report import exit_code as exit_code
from assay.parity.flips import Account
from assay.parity.free_run import FreeRun
from assay.parity.junit import Case, Outcome, junit
from assay.parity.sample import OTHER_SAMPLE
from assay.parity.stages import MAX_TOKENS
from assay.parity.verdict import Verdict, faults_of
from assay.progress import bar

Prompt = Annotated[str | None, typer.Argument(help="The text that both engines read; - reads standard input.")]
Ids = Annotated[str | None, typer.Option(help=f"Token ids instead of text, forced on both sides: {IDS_HELP}")]
Chat = Annotated[bool, typer.Option("--chat", help="Each side wraps the prompt in the chat template by itself.")]
PathThrough = Annotated[str, typer.Option("--path", help="How the candidate reads: prefill (all at once) or decode.")]
Runs = Annotated[int, typer.Option(min=2, max=64, help="Noisy runs of the oracle for the floor; more take longer.")]
Junit = Annotated[Path | None, typer.Option(help="Write the results to this file as JUnit XML, for a CI server.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
QUICK = "def fib(n):\n    if n < 2:\n        return n\n    return"
"""What is read where nothing is given."""
NO_FLOOR = ": the engine does not say how it computes, so there is no floor"
DECLARE = "; declare it with --arith ggml or f32"
"""What to do where that engine is an endpoint."""


@contextmanager
def comparing(prompt: str | None, prompt_file: Path | None, ids: str | None, messages: str | None, chat: bool,
              path: str, model: str, engine: str, arith: str | None, cache_type: str | None, *, taps: bool,
              default: str | None = None, endpoint_model: str | None = None,
              insecure_key: bool = False) -> Iterator[tuple[UnderTest, list[int], Progress]]:  # fmt: skip
    """The engines under test, the ids that both sides read, and a progress bar. Options that clash are refused first.

    Raises InputError for those, SampleError where the two sides do not come to the same ids.
    """
    if path not in PATHS:
        raise InputError(f"there is no path {path!r}", where="--path", remedy=f"Choose one of {', '.join(PATHS)}")
    if (prompt, prompt_file, ids, messages) == (None, None, None, None):
        prompt = default
    text, forced = text_and_ids(asked(prompt, prompt_file, ids, messages, chat=chat))
    file = options.open_file(model)
    with (opened(file, engine, arith, cache_type, taps=taps, endpoint_model=endpoint_model,
                 insecure_key=insecure_key) as judged, bar() as progress):  # fmt: skip
        most = None  # tokens are judged in windows, of a text of any length
        if taps:  # every stage is kept, of so many
            most = MAX_TOKENS if path == "prefill" else file.config.context_length
        yield judged, judged.sample(text, forced, chat, most), progress


def in_doubt(verdict: Verdict, judged: UnderTest, chat: bool) -> Verdict:
    """``verdict``; DOUBTFUL in a green one's place if it is on a chat, and the file leaves chats in doubt.

    The engines agree, but on ids that the model was not trained with: that says nothing about its chats.
    """
    return Verdict.DOUBTFUL if verdict.green and chat and judged.file.chat_doubts else verdict


def doubts_of(judged: UnderTest) -> str:
    """What follows DOUBTFUL."""
    return f": both sides read the same, and no fault was found, but {'; '.join(judged.file.chat_doubts)}"


def caveat(fingerprint: dict[str, Any]) -> str | None:
    """What the verdict on an engine takes on trust; None where nothing: the weights are those of the file."""
    if fingerprint.get("weights") != "unknown":
        return None
    return (f"not verified: {fingerprint['engine']} serves {fingerprint['version']!r}; that it has the file's weights "
            f"and computes in {fingerprint['arith']} is as you declare it")  # fmt: skip


def say_verdict(verdict: Verdict, reason: str = "") -> None:
    """The verdict in its colour, and what follows it."""
    tables.line((verdict, "green" if verdict.green else "bold red"), reason)


def flips_line(counted: Account) -> str:
    """The flips in one line."""
    return (f"{counted.observed} of {counted.positions:,} tokens flipped, {counted.expected:.2f} expected "
            f"(p = {counted.p_value:.3f}), {len(counted.unexplained)} unexplained; logit gaps moved "
            f"{counted.noise:.2g} times the predicted noise; {kl_of(counted)}, "
            f"top-1 {counted.top1:.2%}")  # fmt: skip


def logits_line(counted: Account) -> str:
    """All the logits in one line, with what would be a fault; of an engine that names only some, that."""
    found = {measure.name: measure for measure in counted.measures}
    if "row" not in found:
        return "not every token is named: rows and gains of all logits are not judged"
    error, gain, row = found["error"], found["gain"], found["row"]
    return (f"all logits: error {error.value:.2g} times the predicted noise ({error.limit:.2g} allowed), gain off by "
            f"{gain.value:+.1e} ({gain.limit:.1e}), worst row of the vocabulary by {row.value:+.1e} ({row.limit:.1e})")


def as_measures(counted: Account | FreeRun) -> dict[str, dict[str, float | int | bool | None]]:
    """What ``--json`` says of each measure, by its name."""
    return {one.name: {"value": one.value, "limit": one.limit, "at": one.at, "beyond": one.beyond}
            for one in counted.measures}  # fmt: skip


def as_counts(counted: Account) -> dict[str, Any]:
    """What ``--json`` says of flips."""
    return counted._asdict() | {"measures": as_measures(counted)}


def kl_of(counted: Account) -> str:
    """The mean KL and its standard error. Of an engine that names only some tokens it is known from below only."""
    if counted.kl_is_bound and counted.kl_mean == 0:
        return "KL too small for the tokens named to show"
    return f"KL {'at least ' * counted.kl_is_bound}{counted.kl_mean:.2e} ± {counted.kl_error:.0e} nats"


def demand_all_free(*paths: Path | None, force: bool) -> None:
    """Raise InputError, before any work is done, for a file to be written that is there already, unless ``force``.

    And for two that would be the same.
    """
    wanted = [path for path in paths if path is not None]
    options.demand_effect("--force", force and not wanted, "no file is to be written")
    for path in wanted:
        demand_free(path, force=force)
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise InputError("two outputs have the same name", where=str(wanted[0]),
                         remedy="Give each a name of its own")  # fmt: skip


def demand_not_read(judged: UnderTest, others: Iterable[Path | None], *paths: Path | None) -> None:
    """Raise InputError for a file to be written that is the model, or one of ``others`` that are read."""
    sources = [*judged.file.files, *(other for other in others if other is not None)]
    for path in paths:
        if path is not None:
            demand_apart(path, sources)


def as_typed() -> str:
    """The command line."""
    return "assay " + shlex.join(sys.argv[1:])


def write_junit(path: Path | None, cases: Sequence[Case], judged: UnderTest, verdict: Verdict, *, force: bool) -> None:
    """The file of ``--junit``, if it is wanted: the cases, and what they are about."""
    if path is None:
        return
    fingerprints = {f"{role}.{key}": str(value) for role in ("candidate", "oracle", "truth")
                    for key, value in getattr(judged, role).fingerprint().items()}  # fmt: skip
    properties = {"command": as_typed(), "verdict": verdict, "model": str(judged.file.path),
                  "model.sha256": judged.file.sha256, **fingerprints}  # fmt: skip
    properties |= {f"model.warning.{i}": warning for i, warning in enumerate(judged.file.warnings, 1)}
    if verdict == Verdict.DOUBTFUL:
        cases = [Case("sample", "chat", Outcome.ERROR, f"{verdict}{doubts_of(judged)}"), *cases]
    with replacing(path, force=force) as file:
        file.write(junit(f"assay {sys.argv[1]}", cases, properties))


@contextmanager
def other_samples_reported(path: Path | None, *, force: bool) -> Iterator[None]:
    """Two sides that did not read the same are an error in the file of ``--junit``, too."""
    try:
        yield
    except SampleError as error:
        if path is not None:
            case = Case("sample", "both sides read the same", Outcome.ERROR, str(error))
            with replacing(path, force=force) as file:
                file.write(junit(f"assay {sys.argv[1]}", [case], {"command": as_typed(), "verdict": OTHER_SAMPLE}))
        raise


def flips_of(counted: Account | None) -> str:
    """The flips in one line with the positions that nothing explains; empty where none were counted."""
    if counted is None:
        return ""
    at = f"; unexplained at positions {', '.join(map(str, counted.unexplained))}" if counted.unexplained else ""
    return "; ".join([flips_line(counted) + at, *faults_of(counted)])
