"""Options that several commands share, and loading an engine as they ask, with a progress bar."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from assay.engines import BUILTIN_NAME, find, load
from assay.progress import bar
from formats import open_model

Model = Annotated[
    str, typer.Option("--model", "-m", help="A path, a name from 'assay pull --list' (fetched on first use), builtin.")
]
Engine = Annotated[str, typer.Option("--engine", "-e", help="accel (JAX, fast) or reference (NumPy, the oracle).")]
Arith = Annotated[
    str | None, typer.Option("--arith", help="Arithmetic: reference f64, f32, ggml; accel f32. Default f32.")
]
NFC = Annotated[
    bool, typer.Option("--nfc/--no-nfc", help="Normalise text to NFC, as in training; llama.cpp does not.")
]
CacheWeights = Annotated[
    bool, typer.Option("--cache-weights", help="reference: keep decoded weights (4 bytes each): more memory, faster.")
]
Temperature = Annotated[float, typer.Option("--temperature", "--temp", help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that reach this probability.")]
MinP = Annotated[float, typer.Option(help="Keep tokens at least this likely, relative to the likeliest.")]
RepeatPenalty = Annotated[float, typer.Option(help="Make tokens already seen less likely; 1 is off.")]
Seed = Annotated[int, typer.Option(help="Same seed, same text, on either engine.")]
Special = Annotated[
    bool, typer.Option("--special/--no-special", help="Read <|im_start|> and its kin as control tokens.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DEFAULT_MODEL = BUILTIN_NAME


def open_engine(model: str, engine: str, arith: str | None, nfc: bool, cache_weights: bool = False) -> Any:
    """Find the model (pulling it if need be), open it and load the engine; warnings go to standard error."""
    file = open_file(model)
    with bar() as progress:
        return load(file, engine=engine, arith=arith, nfc=nfc, cache_weights=cache_weights,
                    progress=lambda done, total: progress(done, total, "packing tensors"))  # fmt: skip


def open_file(model: str) -> Any:
    """Find and open a model file, pulling it on first use."""
    with bar() as progress:
        path = find(model, progress=progress)
    file = open_model(path)
    for warning in file.warnings:
        say(f"warning: {warning}")
    return file


def say(line: str) -> None:
    """One line on standard error, where it does not mix with output."""
    print(f"assay: {line}", file=sys.stderr)


def model_of(file: Any) -> dict[str, Any]:
    """The ``model`` object of every command's JSON."""
    return {"path": str(file.path), "format": file.format, "architecture": file.architecture, "name": file.name}
