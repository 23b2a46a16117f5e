"""Writing APR v2: a JSON object and tensors, byte for byte as aprender's ``AprV2Writer`` lays them out.

    write_apr(path, {"architecture": "qwen2", "hidden_size": 896, ...}, tensors)

Tensors are sorted by name, their data in the same order, each padded to 64 bytes; the header and the whole file get
their CRC-32. The layout is drawn in ``formats/containers/apr.py``. No more than one tensor is in memory at a time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from struct import pack
from typing import Any, BinaryIO

import numpy as np

from assay.formats.containers.apr import HEADER, MAGIC, MAX_DIMS, MAX_NAME, MAX_TENSORS, ROW_MAJOR, Header, aligned
from assay.formats.containers.apr_metadata import MAX_METADATA
from assay.formats.containers.apr_types import CODE_OF, nbytes_of
from assay.formats.containers.base import Stored, demand_distinct
from assay.formats.containers.cursor import shown
from assay.formats.containers.strict_json import MAX_VALUES, shallow
from assay.formats.errors import InputError
from assay.formats.system.atomic_file import replacing
from assay.formats.system.progress import Progress, quiet


def write_apr(path: str | Path, metadata: Mapping[str, Any], tensors: Sequence[Stored], *, flags: int = 0,
              force: bool = False, progress: Progress = quiet) -> None:  # fmt: skip
    """Write an APR v2 file; ``flags`` beside the one for row-major; ``progress`` counts bytes of tensors.

    ``metadata`` holds what JSON can (str, bool, int, float, None, lists and dicts of them), and NumPy's arrays.

    Raises InputError if the format cannot hold what is given (a type that it has no code for, a name too long or
    twice, more than 8 axes, metadata that is not JSON or above 16 MiB), if a tensor's bytes are not as many as its
    shape says, and as :func:`assay.formats.system.atomic_file.replacing`.
    """
    tensors = sorted(tensors, key=lambda tensor: tensor.name.encode())
    demand_distinct(tensors)
    sizes = [demand_storable(tensor) for tensor in tensors]
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"{len(tensors)} tensors are more than a reader takes", where="APR file")
    raw, index = json_of(metadata), index_of(tensors, sizes)
    front = b"".join([header_of(len(tensors), len(raw), len(index), flags), raw, zeros(len(raw)), index,
                      zeros(len(index))])  # fmt: skip
    with replacing(path, force=force) as file:
        crc, done, total = put(file, front, 0), 0, sum(sizes)
        for tensor, nbytes in zip(tensors, sizes, strict=True):
            for piece in tensor.pieces(nbytes):
                crc = put(file, piece, crc)
                done += len(piece)
                progress(done, total, "writing")
            crc = put(file, zeros(nbytes), crc)
        file.write(pack("<I", crc))


def put(file: BinaryIO, data: bytes | memoryview, crc: int) -> int:
    """Write ``data`` and return the CRC-32 that includes it."""
    file.write(data)
    return zlib.crc32(data, crc)


def zeros(n: int) -> bytes:
    """The padding after ``n`` bytes."""
    return bytes(aligned(n) - n)


def header_of(n_tensors: int, metadata_size: int, index_size: int, flags: int) -> bytes:
    """The first 64 bytes."""
    index_offset = HEADER.size + aligned(metadata_size)
    header = Header(MAGIC, 2, 0, flags | ROW_MAJOR, n_tensors, HEADER.size, metadata_size, index_offset,
                    index_offset + aligned(index_size), 0, b"")  # fmt: skip
    return HEADER.pack(*header._replace(checksum=header.checksum_of()))


def index_of(tensors: Sequence[Stored], sizes: Sequence[int]) -> bytes:
    """``u16 length, name, u8 type, u8 n_dims, u64 dims[], u64 offset, u64 size`` each; data in the same order."""
    entries, offset = [], 0
    for tensor, nbytes in zip(tensors, sizes, strict=True):
        name, n_dims = tensor.name.encode(), len(tensor.shape)
        entries.append(pack("<H", len(name)) + name + pack(f"<BB{n_dims}QQQ", CODE_OF[tensor.type.name], n_dims,
                                                           *tensor.shape, offset, nbytes))  # fmt: skip
        offset += aligned(nbytes)
    return b"".join(entries)


def json_of(metadata: Mapping[str, Any]) -> bytes:
    """Compact JSON. Raises InputError for what JSON cannot say, and beyond the sizes that a reader takes."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__} is not JSON")

    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain)
        raw = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the metadata cannot be written: {error}", where="APR metadata",
                         remedy="Drop or change the value") from error  # fmt: skip
    if len(raw) > MAX_METADATA or raw.count(b",") > MAX_VALUES or not shallow(dict(metadata)):
        raise InputError(f"the metadata ({len(raw)} bytes) is larger or deeper than a reader takes",
                         where="APR metadata", remedy="Drop what no reader needs")  # fmt: skip
    return raw


def demand_storable(tensor: Stored) -> int:
    """Bytes that the tensor takes in an APR file. Raises InputError if the format cannot hold it."""
    if not 0 < len(tensor.name.encode()) <= MAX_NAME or "\0" in tensor.name:
        raise refusal(tensor, f"a tensor's name in an APR file has 1 to {MAX_NAME} bytes", "Rename it")
    if len(tensor.shape) > MAX_DIMS:
        raise refusal(tensor, f"it has {len(tensor.shape)} axes, but in an APR file a tensor has up to {MAX_DIMS}",
                      "Reshape it")  # fmt: skip
    if tensor.type.name not in CODE_OF:
        raise refusal(tensor, f"APR has no type {tensor.type.name}",
                      f"It has {', '.join(CODE_OF)}; ask for a conversion to one of them")  # fmt: skip
    return nbytes_of(tensor.type, tensor.shape)


def refusal(tensor: Stored, complaint: str, remedy: str) -> InputError:
    return InputError(complaint, where=f"tensor {shown(tensor.name)}", remedy=remedy)
