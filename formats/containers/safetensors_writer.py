"""Writing safetensors: one file, or a folder's shards with the index that says which tensor is where.

    write_safetensors(path, tensors, {"format": "pt"})
    names = write_shards(folder, tensors, {"format": "pt"}, shard_bytes=5_000_000_000)

The layout is drawn in ``safetensors.py``. The header is padded with spaces so that the data begins at a
multiple of 8 bytes; tensors of wide elements come first, as the ``safetensors`` package has it, so that every tensor
is aligned to its element. No more than one tensor is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from assay.formats.containers.base import Stored, demand_distinct
from assay.formats.containers.cursor import shown
from assay.formats.containers.hf_folder import INDEX, WHOLE
from assay.formats.containers.safetensors import DTYPES, MAX_DIMS, MAX_HEADER, MAX_NAME, MAX_TENSORS, METADATA
from assay.formats.errors import InputError
from assay.formats.system.atomic_file import replacing
from assay.formats.system.progress import Progress, quiet


def write_safetensors(path: str | Path, tensors: Sequence[Stored], metadata: Mapping[str, str], *, force: bool = False,
                      progress: Progress = quiet) -> None:  # fmt: skip
    """Write a safetensors file; ``progress`` counts bytes of tensors.

    Raises InputError if the format cannot hold what is given (a type that it has no name for, a name too long or
    twice), if a tensor's bytes are not as many as its shape says, and as :func:`atomic_file.replacing`.
    """
    tensors = sorted(tensors, key=lambda tensor: (-tensor.type.block_bytes, tensor.name))
    demand_distinct(tensors)
    sizes = [demand_storable(tensor) for tensor in tensors]
    header = header_of(tensors, sizes, metadata)
    with replacing(path, force=force) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        done, total = 0, sum(sizes)
        for tensor, nbytes in zip(tensors, sizes, strict=True):
            for piece in tensor.pieces(nbytes):
                file.write(piece)
                done += len(piece)
                progress(done, total, "writing")


def header_of(tensors: Sequence[Stored], sizes: Sequence[int], metadata: Mapping[str, str]) -> bytes:
    """The JSON object and the spaces after it. Raises InputError if a reader would not take it."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    begin = 0
    for tensor, nbytes in zip(tensors, sizes, strict=True):
        header[tensor.name] = {"dtype": tensor.type.name, "shape": list(tensor.shape),
                               "data_offsets": [begin, begin + nbytes]}  # fmt: skip
        begin += nbytes
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER or len(tensors) > MAX_TENSORS:
        raise InputError(f"a header of {len(tensors)} tensors is more than a reader takes", where="safetensors file",
                         remedy="Write several files")  # fmt: skip
    return raw


def write_shards(folder: Path, tensors: Sequence[Stored], metadata: Mapping[str, str], *, shard_bytes: int | None,
                 progress: Progress = quiet) -> None:  # fmt: skip
    """Write ``model.safetensors`` into ``folder``, or shards of about ``shard_bytes`` and their index.

    A tensor is never cut: one larger than ``shard_bytes`` is a shard by itself. Raises as :func:`write_safetensors`.
    """
    sizes = {tensor.name: demand_storable(tensor) for tensor in tensors}
    demand_distinct(tensors)
    shards = split(tensors, sizes, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / WHOLE, tensors, metadata, progress=progress)
        return
    done, total = 0, sum(sizes.values())
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {tensor.name: name for tensor in shard}
        before = done
        write_safetensors(folder / name, shard, metadata,
                          progress=lambda n, _, label, before=before: progress(before + n, total, label))  # fmt: skip
        done += sum(sizes[tensor.name] for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with replacing(folder / INDEX) as file:
        file.write(json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n")


def split(tensors: Sequence[Stored], sizes: Mapping[str, int], shard_bytes: int | None) -> list[list[Stored]]:
    """Tensors in the order given, in runs of at most ``shard_bytes``."""
    shards: list[list[Stored]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        size = sizes[tensor.name]
        if room is not None and shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room = None if room is None else room - size
    return shards


def demand_storable(tensor: Stored) -> int:
    """Bytes that the tensor takes. Raises InputError if the format cannot hold it."""
    if not 0 < len(tensor.name.encode()) <= MAX_NAME or "\0" in tensor.name or tensor.name == METADATA:
        raise refusal(tensor, f"a tensor's name in a safetensors file has 1 to {MAX_NAME} bytes", "Rename it")
    if len(tensor.shape) > MAX_DIMS:
        raise refusal(tensor, f"it has {len(tensor.shape)} axes, but a reader takes up to {MAX_DIMS}", "Reshape it")
    if tensor.type.name not in DTYPES:
        raise refusal(tensor, f"safetensors has no type {tensor.type.name}",
                      "It has F32, F16 and BF16; ask for a conversion to one of them")  # fmt: skip
    return prod(tensor.shape) * tensor.type.block_bytes


def refusal(tensor: Stored, complaint: str, remedy: str) -> InputError:
    return InputError(complaint, where=f"tensor {shown(tensor.name)}", remedy=remedy)
