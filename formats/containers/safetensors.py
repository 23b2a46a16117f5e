"""safetensors, the container of Hugging Face: one JSON object that lists tensors, then their bytes.

    0    u64 header_size
    8    header, JSON:  {"__metadata__": {str: str, ...},
                         name: {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, ...}
         spaces up to ``8 + header_size``
    8 + header_size     tensor data; offsets count from here

Shapes are row-major, numbers little-endian. Tensors lie one after the other from the first byte of the data to the
last of the file, in any order, with neither holes nor overlap; so no byte of the file is without an owner. Source:
huggingface/safetensors, README (format) and safetensors/src/tensor.rs (what is checked).

A file is hostile until read, as in ``gguf.py``. It fails with FormatError and one of
these codes:

    no-file not-a-file unreadable file-changed     as in formats/containers/gguf.py
    truncated            fewer than 8 bytes, or the header runs beyond the file
    header-too-large     more than 16 MiB (the format's own bound is 100 MB; a header of 65,536 tensors takes 8 MB)
    bad-header           the header does not begin with "{", or a tensor's entry is not as drawn above
    bad-json             as in formats/containers/strict_json.py: not JSON, a key twice, nested too deeply ...
    bad-count            more than 65,536 tensors
    bad-name             a tensor's name is empty, longer than 256 bytes, or holds a NUL
    bad-tensor-type      a dtype that the format does not have, or whose elements are not whole bytes
    bad-shape            more than 8 dims, a negative one, 2**63 or more elements or bytes
    bad-size             not the bytes that dtype and shape make
    overlap hole out-of-file trailing-bytes     tensor data where it cannot be
    missing-tensor       raised by Container.raw
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import Container, StorageType, TensorInfo
from assay.formats.containers.cursor import CHANGED, Cursor, demand_unchanged, opened, shown, shown_number
from assay.formats.containers.strict_json import parse_object
from assay.formats.errors import FormatError

MAX_HEADER = 16 << 20
MAX_TENSORS = 1 << 16
MAX_NAME = 256
MAX_DIMS = 8
LIMIT = 1 << 63
METADATA = "__metadata__"
INCOMPLETE = "The download is incomplete or the file damaged; fetch it again."


class PlainType(NamedTuple):
    """A number type that ggml does not have."""

    name: str
    block_elements: int
    block_bytes: int


DTYPES: dict[str, StorageType] = {
    **{name: BY_NAME[name] for name in ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")},
    **{name: PlainType(name, 1, size) for name, size in (
        ("BOOL", 1), ("U8", 1), ("U16", 2), ("U32", 4), ("U64", 8), ("C64", 8),
        ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("F8_E4M3FNUZ", 1), ("F8_E5M2FNUZ", 1),
    )},
}  # fmt: skip
"""Storage type by the header's name for it. The format's 4 and 6 bit floats are refused: no model here has them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Safetensors(Container):
    """An open safetensors file; ``metadata`` is its ``__metadata__``, strings by strings."""

    format: str = "safetensors"


def read_safetensors(path: str | Path) -> Safetensors:
    """Open a safetensors file. Raises FormatError with the codes above; no other exception, whatever it holds."""
    path = Path(path)
    with opened(path) as (fd, before):
        cursor = Cursor(fd, before.st_size, path)
        header, data_start = read_header(cursor)
        metadata = metadata_of(cursor, header)
        infos = [entry(cursor, name, value, data_start) for name, value in header.items()]
        check_layout(cursor, infos, data_start)
        demand_unchanged(fd, before, path)
        data = mapped(cursor, fd)
    return Safetensors(path=path, metadata=metadata, tensors={info.name: info for info in infos}, size=cursor.size,
                       map=data)  # fmt: skip


def read_header(cursor: Cursor) -> tuple[dict[str, Any], int]:
    """The header's object, and where the data begins."""
    size = cursor.u64("header_size")
    if size > MAX_HEADER:
        raise cursor.fail("header-too-large", f"the header claims {size} bytes, but at most {MAX_HEADER} are allowed",
                          "header_size", 0, "Check that it is a safetensors file.")  # fmt: skip
    raw = cursor.take(size, "header")
    if not raw.startswith(b"{"):
        raise cursor.fail("bad-header", "the header does not begin with '{'", "header", 8)
    header = parse_object(raw, cursor.path, "header", offset=8)
    if len(header) > MAX_TENSORS + 1:
        raise cursor.fail("bad-count", f"{len(header)} tensors are more than the {MAX_TENSORS} allowed", "header", 8)
    return header, 8 + size


def metadata_of(cursor: Cursor, header: dict[str, Any]) -> dict[str, str]:
    """``__metadata__``, taken out of the header."""
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise cursor.fail("bad-header", "the value must be an object of strings", METADATA, 8)
    return metadata


def entry(cursor: Cursor, name: str, value: Any, data_start: int) -> TensorInfo:
    """One tensor of the header, its numbers consistent, its place in the file not yet judged."""
    where = f"tensor {shown(name)}"
    if not 0 < len(name.encode()) <= MAX_NAME or "\0" in name:
        raise cursor.fail("bad-name", f"a name must have 1 to {MAX_NAME} bytes and no NUL", where, 8)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise cursor.fail("bad-header", "the entry must have dtype, shape and data_offsets, and nothing else", where, 8)
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise cursor.fail("bad-tensor-type", f"dtype {shown(str(dtype))} is unknown", where, 8,
                          f"Store it as one of {', '.join(DTYPES)}.")  # fmt: skip
    if not naturals(shape) or len(shape) > MAX_DIMS:
        raise cursor.fail("bad-shape", f"the shape must be up to {MAX_DIMS} integers, none negative", where, 8)
    if not naturals(span) or len(span) != 2 or span[0] > span[1]:
        raise cursor.fail("bad-header", "data_offsets must be [begin, end]", where, 8)
    kind, (begin, end) = DTYPES[dtype], span
    # A zero dim empties the tensor but must not hide an absurd one beside it, so it counts as 1 here.
    if prod(max(dim, 1) for dim in shape) * kind.block_bytes >= LIMIT:
        raise cursor.fail("bad-shape", "the shape makes 2**63 or more bytes", where, 8)
    if (nbytes := prod(shape) * kind.block_bytes) != end - begin:
        raise cursor.fail("bad-size", f"{shape} in {dtype} takes {nbytes} bytes, but its data_offsets span "
                          f"{shown_number(end - begin)}", where, 8)  # fmt: skip
    return TensorInfo(name, kind, tuple(shape), data_start + begin, nbytes)


def naturals(value: Any) -> bool:
    """Whether ``value`` is a list of integers, none negative (JSON's true is not an integer, though Python's is)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def check_layout(cursor: Cursor, infos: list[TensorInfo], data_start: int) -> None:
    """Tensors in the order of their offsets follow one another, from the first byte of data to the file's last."""
    end = data_start
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        where = f"tensor {shown(info.name)}"
        if info.offset < end:
            raise cursor.fail("overlap", f"the data begins at byte {info.offset}, inside another tensor's, which ends "
                              f"at {end}", where, info.offset)  # fmt: skip
        if info.offset + info.nbytes > cursor.size:
            raise cursor.fail("out-of-file", f"the data ends at byte {shown_number(info.offset + info.nbytes)}, but "
                              f"the file ends at {cursor.size}", where, cursor.size, INCOMPLETE)  # fmt: skip
        if info.offset > end:
            raise cursor.fail("hole", f"{info.offset - end} bytes before it belong to no tensor", where, end)
        end = info.offset + info.nbytes
    if end < cursor.size:
        raise cursor.fail("trailing-bytes", f"{cursor.size - end} bytes follow the last tensor", "data", end)


def mapped(cursor: Cursor, fd: int) -> mmap.mmap:
    """The whole file, mapped read-only."""
    try:
        return mmap.mmap(fd, cursor.size, access=mmap.ACCESS_READ)
    except ValueError as error:  # the file is shorter than the map would be
        raise FormatError("file-changed", "the file became shorter while it was read", path=cursor.path, field="path",
                          offset=cursor.size, remedy=CHANGED) from error  # fmt: skip
