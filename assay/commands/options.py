"""Options that several commands share, and loading an engine as they ask, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from assay.engines import BUILTIN_NAME, find, load
from assay.fetch.pull import say
from assay.formats import AssayError, open_model
from assay.formats.containers.base import Container
from assay.formats.containers.opening import open_container
from assay.progress import bar

Model = Annotated[
    str, typer.Option("--model", "-m", help="A path, a name from 'assay pull --list' (fetched on first use), builtin.")
]
Engine = Annotated[str, typer.Option("--engine", "-e", help="accel (JAX, fast) or reference (NumPy, the oracle).")]
Arith = Annotated[
    str | None, typer.Option("--arith", help="reference: f32 (default), f64, ggml; accel: fast (default), f32.")
]
NFC = Annotated[
    bool, typer.Option("--nfc/--no-nfc", help="Normalise text to NFC, as in training; llama.cpp does not.")
]
CacheType = Annotated[
    str | None, typer.Option("--cache-type", help="accel: keys and values in f16, bf16 or f32.")
]
CacheWeights = Annotated[
    bool, typer.Option("--cache-weights", help="reference: keep decoded weights (4 bytes each): more memory, faster.")
]
Temperature = Annotated[float, typer.Option("--temperature", "--temp", help="0 is greedy, else 1e-6 to 1e6.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that reach this probability, 1e-6 to 1.")]
MinP = Annotated[float, typer.Option(help="Keep tokens at least this likely, relative to the likeliest, 0 to 1.")]
RepeatPenalty = Annotated[float, typer.Option(help="Make tokens already seen less likely, 1e-6 to 1e6; 1 is off.")]
Seed = Annotated[int, typer.Option(help="Same seed, same text, on either engine; 0 to 2^64 - 1.")]
Special = Annotated[
    bool, typer.Option("--special/--no-special", help="Read <|im_start|> and its kin as control tokens.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DEFAULT_MODEL = BUILTIN_NAME
UNWRAPPED = 10_000
"""Characters: wider than any table, for a program that reads it."""


def open_engine(model: str, engine: str, arith: str | None, nfc: bool, cache_weights: bool = False,
                cache_type: str | None = None) -> Any:  # fmt: skip
    """Find the model (pulling it if need be), open it and load the engine; warnings go to standard error."""
    file = open_file(model)
    with bar() as progress:
        return load(file, engine=engine, arith=arith, nfc=nfc, cache_weights=cache_weights, cache_type=cache_type,
                    progress=lambda done, total: progress(done, total, "packing tensors"))  # fmt: skip


def open_file(model: str) -> Any:
    """Find and open a model file, pulling it on first use."""
    with bar() as progress:
        path = find(model, progress=progress)
    file = open_model(path)
    for warning in file.warnings:
        say(f"warning: {warning}")
    return file


def open_any(model: str, *, alone: bool = False) -> Container:
    """Find and open a file of tensors of any format, whether or not it is a model that can be run.

    ``alone``: of a split model this one file.
    """
    with bar() as progress:
        return open_container(find(model, progress=progress), alone=alone)


def container_of(container: Container) -> dict[str, Any]:
    """The ``model`` object in the JSON of commands that look inside any file."""
    return {"path": str(container.path), "format": container.format, "bytes": container.size}


class Output(Console):
    """A Rich console that leaves a pipe whose reader has gone to ``assay/cli.py``; Rich itself would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Cells are data: nothing in them is markup, and what is too long for a terminal is wrapped."""
    table = Table(title=title, show_header=any(columns))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else UNWRAPPED  # None: that of the terminal
    Output(width=width, markup=False, emoji=False, highlight=False).print(table)


def error_of(error: AssayError) -> dict[str, str]:
    """The ``error`` object of every command's JSON."""
    return {"type": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}


def model_of(file: Any) -> dict[str, Any]:
    """The ``model`` object of every command's JSON."""
    return {"path": str(file.path), "format": file.format, "architecture": file.architecture, "name": file.name,
            "warnings": list(file.warnings)}  # fmt: skip
