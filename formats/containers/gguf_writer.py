"""Writing GGUF v3, or v2: typed metadata and tensors, laid out as llama.cpp wants them, one after the other.

    write_gguf(path, metadata, tensors)

    metadata = {"general.architecture": typed("string", "qwen2"), "qwen2.block_count": typed("uint32", 24)}
    metadata = gguf.metadata.stored                  # or all of an open file's, in its own types
    tensors = [stored(gguf, name) for name in gguf.tensors]

A file that llama.cpp or the ``gguf`` package wrote comes out byte for byte the same. The layout is drawn in
``gguf.py``. No more than one tensor is in memory at a time, and none if it is a view of a mapped file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import Stored, demand_distinct
from assay.formats.containers.cursor import shown
from assay.formats.containers.gguf import DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_DIMS, MAX_NAME, padded
from assay.formats.containers.gguf_metadata import ARRAY, MAX_KEY, NUMBERS, STRING, Value
from assay.formats.errors import InputError
from assay.formats.system.atomic_file import replacing
from assay.formats.system.progress import Progress, quiet

VERSIONS = (2, 3)
"""Both have one layout; 3 says that there are big-endian files, too."""
TYPE_NUMBERS = {"string": STRING, **{name: number for number, (name, _) in NUMBERS.items()}}


def write_gguf(path: str | Path, metadata: Mapping[str, Value], tensors: Sequence[Stored], *, version: int = 3,
               force: bool = False, progress: Progress = quiet) -> None:  # fmt: skip
    """Write a GGUF file: keys and tensors in the order given; ``progress`` counts bytes of tensors.

    ``version`` is 3, or 2 for what is to be the same file as another of that version. Raises InputError if the format
    cannot hold what is given (a version that is neither, a name too long or twice, more than 4 axes, a type that ggml
    does not have, rows that are not whole blocks), if a tensor's bytes are not as many as its shape says, and as
    :func:`assay.formats.system.atomic_file.replacing`.
    """
    if type(version) is not int or version not in VERSIONS:
        raise InputError(f"GGUF version {version!r} cannot be written", where="version", remedy="Give 2 or 3")
    alignment = alignment_of(metadata)
    sizes = [nbytes_of(tensor) for tensor in tensors]
    demand_distinct(tensors)
    header = b"".join([
        struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata)),
        *(piece for key, value in metadata.items() for piece in pair(key, value)),
        *infos(tensors, sizes, alignment),
    ])  # fmt: skip
    with replacing(path, force=force) as file:
        file.write(header)
        file.write(bytes(padded(len(header), alignment) - len(header)))
        done, total = 0, sum(sizes)
        for tensor, nbytes in zip(tensors, sizes, strict=True):
            for piece in tensor.pieces(nbytes):
                file.write(piece)
                done += len(piece)
                progress(done, total, "writing")
            file.write(bytes(padded(nbytes, alignment) - nbytes))


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """The alignment that the metadata declares, 32 if none. Raises InputError if no reader would accept it."""
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    alignment = int(value.items[0]) if value.type == "uint32" and not value.is_array else 0
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise InputError("general.alignment must be a uint32, a power of two and at most 1 MiB", where="GGUF metadata",
                         remedy="Leave it out; then it is 32")  # fmt: skip
    return alignment


def pair(key: str, value: Value) -> Iterator[bytes]:
    """``u64 key length, key, u32 type, value``."""
    name = key.encode()
    if not 0 < len(name) <= MAX_KEY or b"\0" in name:
        raise InputError(f"{shown(key)} cannot be a key", where="GGUF metadata", remedy="Rename or drop it")
    yield struct.pack("<Q", len(name)) + name
    number = TYPE_NUMBERS[value.type]
    if value.is_array:
        yield struct.pack("<IIQ", ARRAY, number, len(value.items))
    else:
        yield struct.pack("<I", number)
    if isinstance(value.items, np.ndarray):
        yield value.items.tobytes()
    else:
        for item in value.items:
            yield struct.pack("<Q", len(item)) + item


def infos(tensors: Sequence[Stored], sizes: Sequence[int], alignment: int) -> Iterator[bytes]:
    """``u64 length, name, u32 n_dims, u64 dims[], u32 type, u64 offset`` each; data packed in this order."""
    offset = 0
    for tensor, nbytes in zip(tensors, sizes, strict=True):
        name, dims = tensor.name.encode(), tensor.shape[::-1]
        yield struct.pack("<Q", len(name)) + name
        yield struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, BY_NAME[tensor.type.name].id, offset)
        offset += padded(nbytes, alignment)


def nbytes_of(tensor: Stored) -> int:
    """Bytes that the tensor takes in a GGUF file. Raises InputError if the format cannot hold it."""

    def refuse(complaint: str, remedy: str) -> InputError:
        return InputError(complaint, where=f"tensor {shown(tensor.name)}", remedy=remedy)

    kind = tensor.type
    if not 0 < len(tensor.name.encode()) <= MAX_NAME or "\0" in tensor.name:
        raise refuse(f"a tensor's name in a GGUF file has 1 to {MAX_NAME} bytes", "Rename it")
    if not 1 <= len(tensor.shape) <= MAX_DIMS:
        raise refuse(f"it has {len(tensor.shape)} axes, but in a GGUF file a tensor has 1 to {MAX_DIMS}", "Reshape it")
    if kind.name not in BY_NAME:
        raise refuse(f"GGUF has no type {kind.name}", "Convert the tensor to a type that it has, such as F32")
    if tensor.shape[-1] % kind.block_elements:
        raise refuse(f"rows of {tensor.shape[-1]} are not whole {kind.name} blocks of {kind.block_elements}, and GGUF "
                     "pads no rows", "Convert the tensor to a type with smaller blocks, such as Q8_0")  # fmt: skip
    return prod(tensor.shape) // kind.block_elements * kind.block_bytes

