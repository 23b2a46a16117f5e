"""Options that several commands share, and loading an engine as they ask, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from assay.engines import BUILTIN_NAME, find, load
from assay.formats import AssayError, InputError, open_model
from assay.formats.containers.base import Container
from assay.formats.containers.opening import open_container
from assay.formats.contract.engine import Sampling
from assay.formats.system.printable import printable
from assay.output import console, say
from assay.progress import bar

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A path, a name from 'assay pull --list' (fetched on first use), or builtin."),
]
Engine = Annotated[str, typer.Option("--engine", "-e", help="accel (JAX, fast) or reference (NumPy, the oracle).")]
Arith = Annotated[
    str | None,
    typer.Option("--arith", help="Arithmetic. reference: f32 (default), f64, ggml; accel: fast (default), f32."),
]
NFC = Annotated[
    bool, typer.Option("--nfc/--no-nfc", help="Normalise text to NFC, as in training; llama.cpp does not.")
]
CacheType = Annotated[
    str | None,
    typer.Option("--cache-type", help="accel: type of cached keys and values: f16 (default of fast), bf16 or f32."),
]
CacheWeights = Annotated[
    bool, typer.Option("--cache-weights", help="reference: keep decoded weights: faster, for 4 bytes a weight.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", "--temp", help="0 (greedy) takes the likeliest token; else 1e-6 to 1e6.")
]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that reach this probability, 1e-6 to 1.")]
MinP = Annotated[float, typer.Option(help="Keep tokens at least this likely, relative to the likeliest, 0 to 1.")]
RepeatPenalty = Annotated[float, typer.Option(help="Make tokens already seen less likely, 1e-6 to 1e6; 1 is off.")]
Seed = Annotated[
    int,
    typer.Option(
        help="Seed of the draws, 0 to 2^64 - 1. The same seed gives the same ids on one engine, arithmetic, machine "
        "and version; elsewhere the draws are the same, but rounding can tip one to another token."
    ),
]
Special = Annotated[
    bool, typer.Option("--special/--no-special", help="Read <|im_start|> and the like as control tokens.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DEFAULT_MODEL = BUILTIN_NAME


def demand_effect(option: str, idle: bool, why: str) -> None:
    """Raise InputError for an option that is given where it changes nothing; ``why`` it does not.

    One whose wish is fulfilled anyway (--no-stream with --json) may be given; one that people leave set while they
    change another is warned of (``sampling_of``).
    """
    if idle:
        raise InputError(f"it has no effect: {why}", where=option, remedy="Leave it out")


def sampling_of(temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float,
                seed: int) -> Sampling:  # fmt: skip
    """The settings as options give them. Says which of them do nothing at temperature 0, where nothing is drawn."""
    given = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    greedy = Sampling(repeat_penalty=repeat_penalty)
    idle = [f"--{field.name.replace('_', '-')}" for field in fields(Sampling)
            if temperature == 0 and getattr(given, field.name) != getattr(greedy, field.name)]  # fmt: skip
    if idle:
        say(f"warning: {', '.join(idle)}: no effect at temperature 0, where the likeliest token is taken")
    return given


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


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Cells are data: nothing in them is markup, and what is too long for a terminal is wrapped."""
    table = Table(title=printable(title), show_header=any(columns))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def error_of(error: AssayError) -> dict[str, str]:
    """The ``error`` object of every command's JSON."""
    return {"type": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}


def model_of(file: Any) -> dict[str, Any]:
    """The ``model`` object of every command's JSON."""
    return {"path": str(file.path), "format": file.format, "architecture": file.architecture, "name": file.name,
            "warnings": list(file.warnings)}  # fmt: skip
