"""``assay axes``: on which way through an engine does it fail?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from assay.commands import options, tables
from assay.commands.asked import Messages, asked_text
from assay.commands.comparison import Runs, say_verdict
from assay.commands.outside import Independent, Outside
from assay.formats import InputError
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.judging.independent import check
from assay.judging.test_matrix import ENGINES, PROMPTS, SHORT, Cell, run
from assay.parity.attribution import attribute
from assay.parity.sample import OTHER_SAMPLE
from assay.parity.verdict import Verdict
from assay.progress import bar


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text, except on the path 'long'; by default a few lines; - reads standard input."),
    ] = None,
    messages: Messages = None,
    model: options.Model = options.DEFAULT_MODEL,
    engines: Annotated[
        str, typer.Option(help="Engines with their arithmetics, separated by commas.")
    ] = ",".join(ENGINES),
    runs: Runs = 4,
    independent: Independent = False,
    as_json: options.Json = False,
) -> None:
    """Judge every combination of prompt (raw, chat, chat with forced ids), container (GGUF, APR), engine with its
    arithmetic, and path (stages, prefill, decode, long text, generate, batch), and name the axis that is to blame.

    Of a conversation (--messages), the prompt 'raw' is the rendered text. Exit code 0: every cell is green; 8: one is
    not, or a second reader of the file contradicts what they all rest on; 10: no cell failed, but some have no noise
    floor, or are of chats that the file leaves in doubt.
    """
    names = [name.strip() for name in engines.split(",")]
    for name in names:
        if len(name.split()) != 2:
            raise InputError(f"{name!r} is not an engine and an arithmetic", where="--engines",
                             remedy=f"Give some of {', '.join(ENGINES)}, 'reference ggml'")  # fmt: skip
    what = asked_text(SHORT if (prompt, messages) == (None, None) else prompt, None, messages)
    if not what:
        raise InputError("the prompt is empty", where="prompt", remedy="Give a text, or leave it out")
    with bar() as progress:
        file = options.open_file(model)
        outside = Outside(check(file, values=independent, progress=progress))
        cells, missing = run(file, short=what, names=names, runs=runs, progress=progress)
    blame = attribute([(cell.levels, cell.failed) for cell in cells])
    undecided = any(cell.verdict in (Verdict.UNCALIBRATED, Verdict.DOUBTFUL) for cell in cells)
    suspect = outside.over(Verdict.NOISE) == Verdict.REFERENCE_SUSPECT
    if as_json:
        said = {"green": not blame and not undecided and not suspect, "blame": blame, "missing": missing,
                "warnings": file.warnings,
                "cells": [{**cell.levels, "verdict": cell.verdict, "note": cell.note, "expected": cell.expected,
                           "observed": cell.observed} for cell in cells],
                "second_reading": outside.facts()["second_reading"]}  # fmt: skip
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        show(cells, blame, missing)
        outside.show()
        if suspect:
            say_verdict(Verdict.REFERENCE_SUSPECT, outside.accusation())
    raise typer.Exit(DIFFERENT if blame or suspect else UNDECIDED if undecided else 0)


def show(cells: Sequence[Cell], blame: Sequence[dict[str, str]], missing: str) -> None:
    """A row for each path, engine and container, a column for each prompt; then what failed, and where."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        row = rows.setdefault((cell.levels["path"], cell.levels["engine"], cell.levels["container"]), [])
        flips = "" if cell.observed is None else f" {cell.observed}/{cell.expected:.2f}"
        row.append(f"{cell.verdict}{flips}")
    tables.columns(("path", "engine", "container", *PROMPTS), [[*key, *row] for key, row in rows.items()])
    tables.line("flips: observed/expected")
    if missing:
        tables.line((missing, "yellow"))
    tables.line()
    for cell in [cell for cell in cells if cell.failed][:12]:
        tables.line(f"{', '.join(cell.levels.values())}: {cell.verdict} {cell.note}")
    failed = sum(cell.failed for cell in cells)
    if not blame:
        doubt = next((f"; {cell.note}" for cell in cells if cell.verdict == Verdict.DOUBTFUL), "; some have no floor")
        tables.line((f"all {len(cells)} cells are green" if all_green(cells) else f"no cell failed{doubt}",
                     "green" if all_green(cells) else "bold red"))  # fmt: skip
    else:
        where = "; or ".join(", ".join(f"{axis} = {level}" for axis, level in one.items()) or "everywhere"
                             for one in blame)  # fmt: skip
        tables.line((f"{failed} of {len(cells)} cells failed", "bold red"), f": {where}")


def all_green(cells: Sequence[Cell]) -> bool:
    """Whether every cell was decided, and well."""
    return all(cell.verdict != OTHER_SAMPLE and Verdict(cell.verdict).green for cell in cells)
