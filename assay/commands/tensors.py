"""``assay tensors``: every tensor of a file, and what its numbers look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from assay.commands import options, tables
from assay.formats import InputError
from assay.formats.containers.base import Container, TensorInfo
from assay.formats.inspection.stats import TensorStats, Values, all_stats
from assay.progress import bar

BY_VALUES: dict[str, Callable[[Values], float]] = {
    "min": lambda v: v.min, "max": lambda v: v.max, "mean": lambda v: v.mean, "std": lambda v: v.std,
    "abs-max": lambda v: v.abs_max, "zeros": lambda v: v.zero_share, "dead": lambda v: v.dead_rows,
    "nan": lambda v: v.nan + v.inf,
}  # fmt: skip
SORTS = ("file", "name", "bytes", "offset", *BY_VALUES)


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    stats: Annotated[
        bool, typer.Option("--stats", help="Decode everything: extremes, moments, zeros, SHA-256.")
    ] = False,
    name: Annotated[str, typer.Option(help="Only tensors whose name matches, e.g. 'blk.0.*'.")] = "*",
    sort: Annotated[str, typer.Option(help=f"Order: {', '.join(SORTS)}. Figures: largest first.")] = "file",
    as_json: options.Json = False,
) -> None:
    """List a file's tensors: type, shape, place, size; with --stats also what is in them.

    Works on any GGUF or APR file, a model or not. mean, std and extremes are those of the finite values; dead rows
    hold one value only; the SHA-256 is that of the stored bytes.
    """
    if sort not in SORTS:
        raise InputError(f"tensors cannot be sorted by {sort!r}", where="--sort",
                         remedy=f"Choose one of {', '.join(SORTS)}")  # fmt: skip
    container = options.open_any(model)
    names = [one for one in container.tensors if fnmatchcase(one, name)]
    if not names and name != "*":
        raise InputError(f"none of the {len(container.tensors)} tensors matches {name!r}", where="--name",
                         remedy="'assay tensors' lists their names; quote the pattern")  # fmt: skip
    found: dict[str, TensorStats] = {}
    if stats or sort in BY_VALUES:
        with bar() as progress:
            found = all_stats(container, names, progress=progress)
    names = ordered(container, names, found, sort)
    if as_json:
        typer.echo(json.dumps(tables.finite(facts_of(container, names, found)), ensure_ascii=False))
    elif found:
        show_stats(container, names, found)
    else:
        show_places(container, names)


def ordered(container: Container, names: list[str], found: dict[str, TensorStats], sort: str) -> list[str]:
    """``names`` in the order asked for; what has no such value comes last."""
    infos = container.tensors
    if sort == "file":
        return names
    if sort == "name":
        return sorted(names)
    if sort == "offset":
        return sorted(names, key=lambda name: infos[name].offset)
    if sort == "bytes":
        return sorted(names, key=lambda name: -infos[name].nbytes)

    def key(name: str) -> tuple[bool, float]:
        values = found[name].values
        value = float("nan") if values is None else BY_VALUES[sort](values)
        return value != value, -value

    return sorted(names, key=key)


def facts_of(container: Container, names: list[str], found: dict[str, TensorStats]) -> dict[str, Any]:
    """The JSON object."""
    return {
        "model": options.container_of(container),
        "count": len(names),
        "tensors": [facts_of_one(container, container.tensors[name], found.get(name)) for name in names],
    }


def facts_of_one(container: Container, info: TensorInfo, stats: TensorStats | None) -> dict[str, Any]:
    facts = {"name": info.name, "type": info.type.name, "shape": list(info.shape), "offset": info.offset,
             "bytes": info.nbytes, "share": info.nbytes / container.size}  # fmt: skip
    if stats is None:
        return facts
    values = None
    if stats.values is not None:
        values = asdict(stats.values) | {"zero_share": stats.values.zero_share, "dead_rows": stats.values.dead_rows}
    return {**facts, "sha256": stats.sha256, "stats": values}


def show_places(container: Container, names: list[str]) -> None:
    """Name, type, shape and place of each."""
    infos = [container.tensors[name] for name in names]
    rows = [
        (info.name, info.type.name, " × ".join(map(str, info.shape)), f"{info.offset:,}", f"{info.nbytes:,}",
         tables.share(info.nbytes / container.size))
        for info in infos
    ]  # fmt: skip
    tables.columns(("name", "type", "shape", "offset", "bytes", "share"), rows,
                   right=("shape", "offset", "bytes", "share"))  # fmt: skip
    total = sum(info.nbytes for info in infos)
    whole = tables.size(container.size)
    tables.line(f"{tables.plural(len(infos), 'tensor')}, {tables.size(total)} of a file of {whole}")


def show_stats(container: Container, names: list[str], found: dict[str, TensorStats]) -> None:
    """What is in each."""
    rows = []
    for name in names:
        values, kind = found[name].values, container.tensors[name].type.name
        cells = [""] * 7
        if values is not None and values.n:
            bad = values.nan + values.inf
            moments = [tables.number(v, 3) for v in (values.min, values.max, values.mean, values.std)]
            counts = [f"{n:,}" if n else "" for n in (bad, values.dead_rows)]
            cells = [*moments, tables.share(values.zero_share), *counts]
        rows.append((name, kind, *cells, found[name].sha256[:8]))
    numbers = ("min", "max", "mean", "std", "zeros", "NaN", "dead")
    tables.columns(("name", "type", *numbers, "sha256"), rows, right=numbers)
    decoded = [one.values for one in found.values() if one.values is not None]
    dead, bad = sum(v.dead_rows for v in decoded), sum(v.nan + v.inf for v in decoded)
    tables.line(f"{tables.plural(len(names), 'tensor')}, {sum(v.n for v in decoded):,} values decoded: "
                f"{bad:,} NaN or Inf, {tables.plural(dead, 'dead row')}")  # fmt: skip
