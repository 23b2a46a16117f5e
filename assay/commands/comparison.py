"""What the commands that compare engines share: their options, what both sides read, how a verdict is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from assay.arms import Arms, opened
from assay.commands import options, tables
from assay.commands.run import parse_ids, prompt_text
from assay.judging import PATHS
from assay.progress import bar
from formats import InputError
from formats.durable import Progress
from formats.errors import DIFFERENT, UNDECIDED
from parity.flips import Account
from parity.verdict import Verdict

Prompt = Annotated[str | None, typer.Argument(help="What both engines read; - reads standard input.")]
PromptFile = Annotated[Path | None, typer.Option("--prompt-file", "-f", help="Prompt from a file.")]
Ids = Annotated[str | None, typer.Option(help="Token ids instead of text, forced on both sides: 1,2,3.")]
Chat = Annotated[bool, typer.Option("--chat", help="Each side wraps the prompt in the chat template by itself.")]
PathThrough = Annotated[str, typer.Option("--path", help="How the candidate reads: prefill (all at once) or decode.")]
Runs = Annotated[int, typer.Option(min=2, max=64, help="Noisy runs of the oracle that make the floor; even.")]
QUICK = "def fib(n):\n    if n < 2:\n        return n\n    return"
"""What is read where nothing is given."""
NO_FLOOR = ": the engine does not say how it computes, so there is no floor"


@contextmanager
def comparing(prompt: str | None, prompt_file: Path | None, ids: str | None, chat: bool, path: str, model: str,
              engine: str, arith: str | None, cache_type: str | None, *, taps: bool,
              default: str | None = None) -> Iterator[tuple[Arms, list[int], Progress]]:  # fmt: skip
    """The arms, the ids that both sides read, and a progress bar. Options that make no sense are refused first.

    Raises InputError for those, SampleError where the two sides do not come to the same ids.
    """
    if path not in PATHS:
        raise InputError(f"there is no path {path!r}", where="--path", remedy=f"Choose one of {', '.join(PATHS)}")
    if (prompt, prompt_file, ids) == (None, None, None):
        prompt = default
    text = prompt_text(prompt, prompt_file, ids)
    if chat and ids is not None:
        raise InputError("--chat and --ids exclude one another", where="--ids", remedy="Ids are final")
    forced = None if ids is None else parse_ids(ids)
    with opened(options.open_file(model), engine, arith, cache_type, taps=taps) as judged, bar() as progress:
        yield judged, judged.sample(text if forced is None else None, forced, chat), progress


def exit_code(verdict: Verdict) -> int:
    """0 for green, ``DIFFERENT`` for a fault that was found, ``UNDECIDED`` where nothing was decided."""
    if verdict.green:
        return 0
    return DIFFERENT if verdict in (Verdict.BUG, Verdict.REFERENCE_SUSPECT) else UNDECIDED


def say_verdict(verdict: Verdict, reason: str = "") -> None:
    """The verdict in its colour, and what follows it."""
    tables.line((verdict, "green" if verdict.green else "bold red"), reason)


def flips_line(counted: Account) -> str:
    """The flips in one line."""
    return (f"{counted.observed} of {counted.positions:,} tokens flipped, {counted.expected:.2f} expected "
            f"(p = {counted.p_value:.3f}), {len(counted.unexplained)} unexplained; KL {counted.kl_mean:.2e} "
            f"± {counted.kl_error:.0e} nats, top-1 {counted.top1:.2%}")  # fmt: skip
