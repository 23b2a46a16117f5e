"""``assay diff``: what differs between two model files, and what happened to them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from assay.commands import options, tables
from assay.formats import InputError
from assay.formats.containers.base import Container, TensorInfo
from assay.formats.errors import DIFFERENT
from assay.formats.inspection.diff import Pair, Report, compare, same_file
from assay.progress import bar

SHOWN = 20


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="A path, a catalogue name, or builtin.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The file to compare with it; another format will do.")],
    values_only: Annotated[
        bool, typer.Option("--values-only", help="Judge by shapes and decoded values, not by metadata and types.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Relative RMS up to which a tensor's values count as the same.")
    ] = 0.0,
    show_all: Annotated[bool, typer.Option("--all", help=f"List every difference, not the first {SHOWN}.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compare two model files: metadata, tensors, bytes, values; and name known accidents of converters.

    Exit code 0 if they are the same, 8 if they differ. Where tensors lie, and in which order, makes no difference;
    between two formats the facts are compared (hyper-parameters, vocabulary, template), not the keys.
    """
    if tolerance != tolerance:
        raise InputError("it is not a number", where="--tolerance", remedy="Give a number from 0 to 10")
    left, right = options.open_any(a), options.open_any(b)
    with bar() as progress:
        report = None if same_file(left, right) else compare(left, right, progress=progress)
    same = report is None or report.same(values_only=values_only, tolerance=tolerance)
    with suppress(BrokenPipeError):  # the verdict stands, whether or not anybody reads on
        if as_json:
            facts = facts_of(left, right, report, same)
            typer.echo(json.dumps(tables.finite(facts), ensure_ascii=False))
        else:
            show(left, right, report, same, show_all, tolerance)
    raise typer.Exit(0 if same else DIFFERENT)


def facts_of(a: Container, b: Container, report: Report | None, same: bool) -> dict[str, Any]:
    """The JSON object."""
    facts = {"a": options.container_of(a), "b": options.container_of(b), "same": same,
             "exit_code": 0 if same else DIFFERENT, "same_bytes": report is None}  # fmt: skip
    if report is None:
        return facts
    return {
        **facts,
        "naming": list(report.naming),
        "metadata": [change._asdict() | {"kind": change.kind} for change in report.changes],
        "only_a": [facts_of_one(info) for info in report.only_a],
        "only_b": [facts_of_one(info) for info in report.only_b],
        "tensors": {
            "in_both": len(report.pairs),
            "identical": sum(pair.identical for pair in report.pairs),
            "same_values": sum(pair.same_values() for pair in report.pairs),
        },
        "differing": [facts_of_pair(pair) for pair in report.pairs if not pair.identical],
        "diagnoses": [one._asdict() for one in report.diagnoses],
    }


def facts_of_one(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "type": info.type.name, "shape": list(info.shape), "offset": info.offset,
            "bytes": info.nbytes}  # fmt: skip


def facts_of_pair(pair: Pair) -> dict[str, Any]:
    m = pair.measures
    values = None if m is None else asdict(m) | {"relative_rms": m.relative_rms, "cosine": m.cosine}
    return {"name": pair.name, "a": facts_of_one(pair.a), "b": facts_of_one(pair.b), "same_values": pair.same_values(),
            "first_difference": pair.first_difference, "values": values,
            "diagnoses": [one._asdict() for one in pair.diagnoses]}  # fmt: skip


def show(a: Container, b: Container, report: Report | None, same: bool, everything: bool, tolerance: float) -> None:
    """Metadata, tensors, and the verdict last."""
    for side, container in (("A", a), ("B", b)):
        tables.line((f"{side}  ", "bold"), f"{container.path} ({container.format}, {tables.size(container.size)})")
    if report is None:
        tables.line(("same", "green"), ": every byte")
        return
    limit = None if everything else SHOWN
    show_metadata(report, limit)
    show_tensors(report, limit, tolerance)
    for one in report.diagnoses:
        tables.line((f"{one.code:<13}", "cyan"), one.text)
    tables.line(("same", "green") if same else ("different", "bold red"), f": {summary(report)}")


def show_metadata(report: Report, limit: int | None) -> None:
    if not report.changes:
        return
    marks = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
    tables.line()
    tables.line((f"Metadata: {tables.plural(len(report.changes), 'difference')}", "bold"))
    for change in report.changes[:limit]:
        tables.line(marks[change.kind], f" {change.key}", indent=2)
        tables.line(f"A {change.a}", indent=6)
        tables.line(f"B {change.b}", indent=6)
    more(len(report.changes), limit)


def show_tensors(report: Report, limit: int | None, tolerance: float) -> None:
    for side, only in (("A", report.only_a), ("B", report.only_b)):
        if only:
            tables.line()
            tables.line((f"Only in {side}: {tables.plural(len(only), 'tensor')}", "bold"))
            for info in only[:limit]:
                tables.line(f"{info.name}  {info.type.name}  {' × '.join(map(str, info.shape))}", indent=2)
            more(len(only), limit)
    differing = sorted((pair for pair in report.pairs if not pair.identical), key=badness, reverse=True)
    if not differing:
        return
    tables.line()
    tables.line((f"Differing: {len(differing)} of {tables.plural(len(report.pairs), 'tensor')}", "bold"))
    for pair in differing[:limit]:
        show_pair(pair)
    more(len(differing), limit)
    if tolerance:
        n = sum(pair.same_values(tolerance) for pair in differing)
        tables.line(f"{n} of them within {tolerance:g}", indent=2)


def badness(pair: Pair) -> float:
    """What cannot be compared first, then by distance."""
    return float("inf") if pair.measures is None or pair.measures.not_finite else pair.measures.relative_rms


def show_pair(pair: Pair) -> None:
    """Name, how far apart, where, and what happened."""
    kinds = {info.type.name: None for info in (pair.a, pair.b)}
    shapes = {" × ".join(map(str, info.shape)): None for info in (pair.a, pair.b)}
    tables.line((pair.name, "bold"), f"  {' → '.join(kinds)}  {' → '.join(shapes)}", indent=2)
    m = pair.measures
    if m is not None and m.n_different:
        bad = f", {m.not_finite:,} not finite" if m.not_finite else ""
        tables.line(f"{m.n_different:,} of {m.n:,} values differ: max |B - A| {m.max_abs:.4g} at [{m.worst[0]}, "
                    f"{m.worst[1]}], relative RMS {m.relative_rms:.3g}, cosine {m.cosine:.6g}{bad}",
                    indent=6)  # fmt: skip
    if (at := pair.first_difference) is not None:
        tables.line(f"first different byte {at['byte']:,} (block {at['block']:,}): A at {at['offset_a']:,}, "
                    f"B at {at['offset_b']:,}", indent=6)  # fmt: skip
    for one in pair.diagnoses:
        tables.line((one.text, "cyan"), indent=6)


def more(n: int, limit: int | None) -> None:
    if limit is not None and n > limit:
        tables.line(f"and {n - limit:,} more (--all shows them)", indent=2)


def summary(report: Report) -> str:
    """The differences in a few words."""
    pairs = report.pairs
    identical, same = sum(pair.identical for pair in pairs), sum(pair.same_values() for pair in pairs)
    parts = [f"{tables.plural(len(pairs), 'tensor')} in both: {identical:,} identical"]
    if same > identical:
        parts.append(f"{same - identical:,} of the same values")
    if len(pairs) > same:
        parts.append(f"{len(pairs) - same:,} different")
    parts += [f"{len(only):,} only in {side}" for side, only in (("A", report.only_a), ("B", report.only_b)) if only]
    return ", ".join([*parts, f"{tables.plural(len(report.changes), 'difference')} of metadata"])
