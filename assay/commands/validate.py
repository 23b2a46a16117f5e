"""``assay validate``: is this file what it should be?"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from assay.commands import options, tables
from assay.formats import TemplateError
from assay.formats.containers.base import Container
from assay.formats.inspection.checks import FAIL, PASS, SKIPPED, WARN, Check, Report, validate
from assay.progress import bar

CULPRITS_SHOWN = 5
CULPRIT_INDENT = 9


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Give the reason for the limit of every check.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check a model file for what could be wrong with it: structure, checksums, numbers, hyper-parameters, vocabulary.

    Every check says PASS, WARN, FAIL or SKIPPED; a skipped check has not passed. Exit code 0 if nothing failed, 3 if
    the bytes are damaged, 4 if they are not a model to run.
    """
    container = options.open_any(model)
    with bar() as progress:
        report = validate(container, knows_template=oracle_knows, progress=progress)
    with suppress(BrokenPipeError):  # the verdict stands, whether or not anybody reads on
        if as_json:
            typer.echo(json.dumps(tables.finite(facts_of(container, report)), ensure_ascii=False))
        else:
            show(container, report, verbose)
    raise typer.Exit(report.exit_code)


def oracle_knows(template: str) -> bool:
    """Whether the oracle's renderer knows this chat template."""
    from assay.reference.chat import flavour_of

    try:
        flavour_of(template)
    except TemplateError:
        return False
    return True


def facts_of(container: Container, report: Report) -> dict[str, Any]:
    """The JSON object."""
    return {
        "model": options.container_of(container),
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "counts": {verdict: report.count(verdict) for verdict in (PASS, WARN, FAIL, SKIPPED)},
        "checks": [asdict(check) for check in report.checks],
    }


def show(container: Container, report: Report, verbose: bool) -> None:
    """A line a check; below those that did not pass, what broke the limit and why there is one."""
    tables.line((f"{container.path} ({container.format}, {tables.size(container.size)})", "bold"))
    for check in report.checks:
        text = f"  {check.name:<27}{measured(check):>16}  {check.limit}"
        tables.line((f"{check.verdict:<7}", tables.VERDICTS[check.verdict]), text)
        for culprit in check.culprits[:CULPRITS_SHOWN]:
            tables.line(culprit, indent=CULPRIT_INDENT)
        if len(check.culprits) > CULPRITS_SHOWN:
            tables.line(f"and {len(check.culprits) - CULPRITS_SHOWN:,} more (--json lists all)", indent=CULPRIT_INDENT)
        if verbose or check.verdict != PASS:
            tables.line((check.why, "dim"), indent=CULPRIT_INDENT)
    counts = ", ".join(f"{report.count(verdict)} {word}" for verdict, word in
                       ((PASS, "passed"), (WARN, "warned"), (FAIL, "failed"), (SKIPPED, "skipped")))  # fmt: skip
    tables.line((report.verdict, tables.VERDICTS[report.verdict]), f": {counts}")


def measured(check: Check) -> str:
    """What was measured, in few characters."""
    value = check.measured
    if value is None:
        return "-"
    if isinstance(value, float):
        return tables.share(value) if check.limit.startswith("<") and "%" in check.limit else tables.number(value)
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 16 else "see below" if check.culprits else text
