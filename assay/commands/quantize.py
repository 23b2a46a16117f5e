"""``assay quantize``: a model's matrices in smaller types, as llama.cpp would store them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.formats import InputError, ModelFile
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import Stored
from assay.formats.containers.gguf_metadata import Metadata, Value, typed
from assay.formats.containers.gguf_writer import write_gguf
from assay.formats.model_file import Tensor
from assay.formats.quantizers.quantization_mix import ALIASES, BY_LAYER, FLOATS, MIXES, chosen_types, named
from assay.formats.quantizers.whole_tensors import Requantized, census, counting
from assay.formats.system.atomic_file import demand_apart
from assay.formats.system.progress import Progress
from assay.progress import bar

QUANTIZATION_VERSION = 2
"""Of the block formats as a whole; llama.cpp writes it beside general.file_type."""
TYPES = ", ".join([*MIXES, *ALIASES])


def command(
    source: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")],
    target: Annotated[Path, typer.Argument(help="The GGUF file to write.")],
    mix: Annotated[str, typer.Option("--type", "-t", help=f"One of {TYPES}.")] = "Q4_K_M",
    pure: Annotated[bool, typer.Option("--pure", help="No matrix gets more bits than the others.")] = False,
    by_name: Annotated[
        bool, typer.Option("--by-name", help="Count layers by name (0, 1, 10, 11, .., 2), as older llama.cpp did.")
    ] = False,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Also quantise what is quantised already: errors add up.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the target if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a model with its matrices quantised: the same types and the same bytes as llama.cpp's own quantiser."""
    mix, began = named(mix), time.perf_counter()
    options.demand_effect("--by-name", by_name and (pure or mix not in BY_LAYER), "no layer is favoured")
    file = options.open_file(source)
    demand_apart(target, file.files)
    metadata = metadata_for(file, mix)
    with bar() as progress:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        types = chosen_types(shapes, mix, pure=pure, by_name=by_name)
        moves = moves_of(file, types, progress)
        if not requantize:
            demand_floats(file, moves)
        write_gguf(target, metadata, [move.stored for move in moves], force=force)
    report = {
        "type": mix,
        "pure": pure,
        "by_name": by_name,
        "source": {**options.model_of(file), **census([facts(m.tensor, m.tensor.type.name) for m in moves])},
        "target": {"path": str(target), "format": "gguf", **census([facts(m.tensor, m.type) for m in moves])},
        "tensors": [row_of(move) for move in moves],
        "seconds": round(time.perf_counter() - began, 1),
    }
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        show(report)


@dataclass(frozen=True)
class Move:
    """One tensor: what it is, what it becomes (`work` is None where the bytes stay as they are)."""

    tensor: Tensor
    type: str
    stored: Stored
    work: Requantized | None


def moves_of(file: ModelFile, types: dict[str, str], progress: Progress) -> list[Move]:
    """A move for every tensor of the file, in its order; ``progress`` counts the elements that are quantised."""
    changed = [t for t in file.tensors.values() if types.get(t.name, t.type.name) != t.type.name]
    count = counting(sum(math.prod(t.shape) for t in changed), progress)
    moves = []
    for tensor in file.tensors.values():
        kind = types.get(tensor.name, tensor.type.name)
        if kind == tensor.type.name:
            same = Stored(tensor.name, BY_NAME[kind], tensor.shape, tensor.raw)
            moves.append(Move(tensor, kind, same, None))
        else:
            work = Requantized(tensor, BY_NAME[kind], count)
            moves.append(Move(tensor, kind, work.stored(), work))
    return moves


def demand_floats(file: ModelFile, moves: list[Move]) -> None:
    """Raise InputError if a tensor that is to be quantised is quantised already."""
    again = [m.tensor for m in moves if m.work is not None and m.tensor.type.name not in FLOATS]
    if again:
        raise InputError(f"{len(again)} tensors are quantised already, such as {again[0].name} ({again[0].type.name})",
                         where=str(file.path), remedy="Start from a file in F32, F16 or BF16; or add --requantize, "
                         "which adds a second loss to the first")  # fmt: skip


def metadata_for(file: ModelFile, mix: str) -> dict[str, Value]:
    """The source's metadata, with the two keys that say how the tensors are stored. Raises InputError: not GGUF."""
    if not isinstance(file.metadata, Metadata):
        raise InputError(f"the file is {file.format}, and only the metadata of a GGUF file is carried over here",
                         where=str(file.path), remedy="Convert it first: assay convert FILE FILE.gguf")  # fmt: skip
    stated = {
        "general.file_type": typed("uint32", MIXES[mix].file_type),
        "general.quantization_version": typed("uint32", QUANTIZATION_VERSION),
    }
    return {**file.metadata.stored, **stated}


def facts(tensor: Tensor, kind: str) -> tuple[str, int, int]:
    """(type, elements, bytes) of a tensor stored as ``kind``."""
    elements, block = math.prod(tensor.shape), BY_NAME[kind]
    return kind, elements, elements // block.block_elements * block.block_bytes


def row_of(move: Move) -> dict[str, Any]:
    """One tensor in the JSON. ``relative_rms`` is what was lost, None where nothing was touched."""
    return {
        "name": move.tensor.name,
        "shape": list(move.tensor.shape),
        "from": move.tensor.type.name,
        "to": move.type,
        "relative_rms": None if move.work is None else move.work.lost,
    }


def show(report: dict[str, Any]) -> None:
    """Print a line for each kind of change, then the sizes."""
    groups: dict[tuple[str, str], list[float | None]] = {}
    for row in report["tensors"]:
        groups.setdefault((row["from"], row["to"]), []).append(row["relative_rms"])
    rows = []
    for (old, new), lost in sorted(groups.items(), key=lambda item: -len(item[1])):
        known = [x for x in lost if x is not None]
        rows.append((str(len(lost)), old, new, f"{max(known):.2e}" if known else "as it was"))
    old, new = report["source"], report["target"]
    options.show(f"{new['path']} ({report['type']})", ("tensors", "from", "to", "largest relative error"), rows)
    typer.echo(f"{old['weights'] / 1e6:,.1f} MB of weights ({old['bits_per_weight']} bits each) became "
               f"{new['weights'] / 1e6:,.1f} MB ({new['bits_per_weight']}), in {report['seconds']} s")  # fmt: skip
