"""``assay convert``: a model from one container into another, with a census of what went over."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.engines import find
from assay.formats.conversion.convert import SHARD_BYTES, convert, format_of
from assay.formats.conversion.model_card import FORMATS
from assay.formats.errors import InputError
from assay.progress import bar

LISTED_AT_MOST = 12
"""Rows of the table that name one key or tensor each; --json has them all."""


def command(
    source: Annotated[str, typer.Argument(help="A GGUF or APR file, a Hugging Face folder, a name, or builtin.")],
    target: Annotated[Path, typer.Argument(help="What to write: NAME.gguf, NAME.apr, or a folder.")],
    to: Annotated[
        str | None, typer.Option(help="Format of the target: gguf, apr or hf; by default as its name says.")
    ] = None,
    treatment: Annotated[
        str | None,
        typer.Option("--as", help="Type for tensors whose own type the target lacks: F32 (exact), F16, Q8_0 ..."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="With --as: all matrices, also those that could keep their type.")
    ] = False,
    shard_size: Annotated[
        float, typer.Option(help="Largest safetensors file of a folder, in GB (10^9 bytes); 0: one file.")
    ] = SHARD_BYTES / 1e9,
    force: Annotated[bool, typer.Option("--force", help="Replace the target if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Convert a model between GGUF, APR and Hugging Face folders, losing nothing that is not named.

    Tensors keep their bytes where the target has their type. Otherwise say what to do with --as. The target is opened
    again and compared with the source before it gets its name.
    """
    if to is not None and to not in FORMATS:
        raise InputError(f"there is no format {to!a}", where="--to", remedy=f"Choose one of {', '.join(FORMATS)}")
    if every and treatment is None:
        raise InputError("--all needs the type that all matrices are to have", where="--all", remedy="Add --as TYPE")
    if not 0 <= shard_size < 1e9:
        raise InputError(f"{shard_size:g} GB cannot be the size of a file", where="--shard-size",
                         remedy="Give 0 or more")
    options.demand_effect("--shard-size", shard_size != SHARD_BYTES / 1e9 and (to or format_of(target)) != "hf",
                          "only a folder has more than one file")  # fmt: skip
    with bar() as progress:
        path = find(source, progress=progress)
        census = convert(path, target, to=to, treatment=treatment and treatment.upper(), every=every, force=force,
                         shard_bytes=round(shard_size * 1e9) or None, progress=progress)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(census, ensure_ascii=False))
    else:
        show(census)


def show(census: dict[str, Any]) -> None:
    """The census as tables: both sides, then what did not go over as it was."""
    source, target = census["source"], census["target"]
    rows = [("file", source["path"], target["path"]), ("bytes", f"{source['bytes']:,}", f"{target['bytes']:,}")]
    rows += [(f"tensors in {kind}", in_type(source["types"].get(kind)), in_type(target["types"].get(kind)))
             for kind in dict.fromkeys([*source["types"], *target["types"]])]  # fmt: skip
    rows += [(label, f"{source['vocabulary'][key]:,}", f"{target['vocabulary'][key]:,}")
             for key, label in (("tokens", "tokens"), ("merges", "merges"), ("template_characters", "chat template"))]
    verdicts = Counter(record["verdict"] for record in census["tensors"])
    fates = Counter(record["fate"] for record in census["metadata"])
    rows.append(("tensors compared", "", ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())))
    rows.append(("metadata keys", str(sum(fates.values())), ", ".join(f"{n} {fate}" for fate, n in fates.items())))
    options.show(f"{source['format']} to {target['format']}, {census['seconds']:.1f} s", ("", "source", "target"), rows)
    if remarks := remarks_of(census):
        options.show("What was changed", ("", "", "why or where"), remarks)


def in_type(counts: dict[str, int] | None) -> str:
    return f"{counts['tensors']} ({counts['bytes']:,} bytes)" if counts else "-"


def remarks_of(census: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A row for each key that was not simply carried and each tensor that was rounded, the largest errors first."""
    keys = [(record["key"], record["fate"], record["reason"] or f"key {record['where']}")
            for record in census["metadata"] if record["fate"] != "carried"]  # fmt: skip
    rounded = sorted((record for record in census["tensors"] if "rms_relative_error" in record),
                     key=lambda record: -record["rms_relative_error"])  # fmt: skip
    tensors = [(record["name"], f"{record['source']['type']} to {record['target']['type']}",
                f"rms error {record['rms_relative_error']:.2%} of the values' size") for record in rounded]  # fmt: skip
    return [*cut(keys, "keys"), *cut(tensors, "tensors")]


def cut(rows: list[tuple[str, str, str]], what: str) -> list[tuple[str, str, str]]:
    if len(rows) <= LISTED_AT_MOST:
        return rows
    return [*rows[:LISTED_AT_MOST], (f"and {len(rows) - LISTED_AT_MOST} more {what}", "", "--json lists them all")]
