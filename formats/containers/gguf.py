"""GGUF, the container of llama.cpp: metadata and quantised tensors in one little-endian file.

    0   magic "GGUF"        u32 version (2, 3)  u64 n_tensors        u64 n_kv
    24  n_kv x     key, type, value                                       (formats/containers/gguf_metadata.py)
        n_tensors x  u64 length, name,  u32 n_dims,  u64 dims[n_dims],  u32 type,  u64 offset
        zeros up to a multiple of the alignment (key ``general.alignment``, 32 if absent)
    data_start      tensor data; each ``offset`` counts from here and is a multiple of the alignment

``dims`` runs from the fastest axis to the slowest, the reverse of a NumPy shape. Source: ggml docs/gguf.md.

A file is hostile until read. Every declared number is checked against the bytes that remain before it is
used, and what fails raises :class:`assay.formats.errors.FormatError` with one of these codes:

    no-file not-a-file unreadable   the path names nothing, no regular file, or one that may not be read
    empty-file git-lfs-pointer ...  something else lies in the file's place: formats/containers/foreign.py
    file-changed                    the file shrank or was written to while it was read or in use
    bad-magic bad-version           not GGUF; GGUF of another version
    big-endian                      GGUF for big-endian machines
    truncated                       the file ends inside a field
    bad-count bad-length            more records, or a longer string, than remain in the file or than allowed
    header-too-large                metadata and tensor infos exceed 128 MiB
    bad-name                        a key or tensor name is empty, not UTF-8, or holds a NUL
    duplicate-key duplicate-tensor  two of the same name
    bad-value-type nested-array     a value of unknown type; an array of arrays
    bad-alignment                   general.alignment is not a uint32, not a power of two, or above 1 MiB
    bad-shape                       not 1 to 4 dims, 2**63 or more elements or bytes, rows of broken blocks
    bad-tensor-type                 an unknown or withdrawn tensor type
    misaligned out-of-file overlap  tensor data where it cannot be
    missing-key bad-value           raised when metadata is used (strict: any bad bool or string, at once)
    missing-tensor no-data          raised by Container.raw: no such tensor; opened with metadata_only
    bad-key not-contiguous trailing-bytes missing-padding
                                    only in strict mode, which also wants an alignment of 8 or more
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path

from assay.formats.blocks.ggml_types import BY_ID, GGMLType
from assay.formats.containers.base import Container, TensorInfo
from assay.formats.containers.cursor import CHANGED, Cursor, demand_unchanged, opened, shown
from assay.formats.containers.gguf_metadata import MAX_PAIRS, MIN_PAIR, Metadata, read_metadata
from assay.formats.errors import FormatError

__all__ = ["GGUF", "Metadata", "TensorInfo", "read_gguf"]

MAX_TENSORS = 1 << 16
MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
MAX_NAME = 63
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
LIMIT = 1 << 63
INCOMPLETE = "The download is incomplete or the file damaged; fetch it again."
LENIENT = "Write the file again with a current converter, or open it without strict."


@dataclass(frozen=True, eq=False, kw_only=True)
class GGUF(Container):
    """An open GGUF file."""

    format: str = "gguf"
    version: int
    alignment: int
    metadata: Metadata
    data_start: int
    """Byte offset at which tensor data begins."""


def read_gguf(path: str | Path, *, metadata_only: bool = False, strict: bool = False) -> GGUF:
    """Open a GGUF file.

    ``metadata_only`` does not ask whether the tensor data is there and does not map it. ``strict`` also
    rejects what is otherwise a warning: tensors not packed in declaration order, bytes missing or left over
    at the end, keys outside ``[a-z0-9._-]``; and bool or string values that would fail when used.

    Raises FormatError with the codes above; no other exception, whatever the file holds.
    """
    path = Path(path)
    with opened(path) as (fd, before):
        cursor = Cursor(fd, before.st_size, path)
        version, n_tensors, n_pairs = _read_header(cursor)
        metadata = read_metadata(cursor, n_pairs)
        alignment = _alignment(metadata)
        infos = _read_infos(cursor, n_tensors, alignment)
        demand_unchanged(fd, before, path)
        data_start = padded(cursor.pos, alignment)
        _check_overlap(cursor, infos, data_start)
        if not metadata_only:
            _check_extents(cursor, infos, data_start)
        oddities = [*_odd_metadata(metadata, alignment), *_odd_layout(infos, alignment)]
        if not metadata_only:
            oddities += _odd_end(infos, alignment, data_start, cursor.size)
        if strict:
            _reject_oddities(cursor, oddities, metadata)
        data = None if metadata_only else _mapped(cursor, fd)
    tensors = {info.name: replace(info, offset=data_start + info.offset) for info in infos}
    warnings = tuple(text for _, text in oddities)
    return GGUF(path=path, version=version, alignment=alignment, metadata=metadata, tensors=tensors,
                data_start=data_start, size=cursor.size, warnings=warnings, map=data)


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    """(version, n_tensors, n_kv)."""
    magic = cursor.take(4, "header.magic")
    if magic != b"GGUF":
        raise cursor.fail("bad-magic", f"the file starts with {magic!r}, but a GGUF file starts with b'GGUF'",
                          "header.magic", 0,
                          "Fetch a model file of a format that Assay reads.")
    version = cursor.u32("header.version")
    if version & 0xFFFF == 0 and version:
        raise cursor.fail("big-endian", "the file is written for big-endian machines", "header.version", 4,
                          "Fetch or convert a little-endian file.")
    if version not in (2, 3):
        raise cursor.fail("bad-version", f"GGUF version {version} is not supported, only 2 and 3 are",
                          "header.version", 4, "Convert the model again with a current converter.")
    n_tensors = cursor.count("header.n_tensors", MIN_TENSOR, MAX_TENSORS)
    return version, n_tensors, cursor.count("header.n_kv", MIN_PAIR, MAX_PAIRS)


def _alignment(metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    alignment, kind = metadata[key], metadata.type_of(key)
    if kind != "uint32" or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        given = alignment if kind == "uint32" else kind
        detail = f"the alignment is {given}, but must be a uint32, a power of two and at most {MAX_ALIGNMENT}"
        raise metadata.fail(key, detail, "bad-alignment")
    return alignment


def _read_infos(cursor: Cursor, n: int, alignment: int) -> list[TensorInfo]:
    """Tensor infos in declaration order, their offsets still relative to the data section."""
    infos: dict[str, TensorInfo] = {}
    for i in range(n):
        start, where = cursor.pos, f"tensor[{i}]"
        name = cursor.name(f"{where}.name", MAX_NAME)
        if name in infos:
            raise cursor.fail("duplicate-tensor", f"{shown(name)} appears twice", f"{where}.name", start)
        dims = _read_dims(cursor, where)
        kind = _read_type(cursor, where)
        nbytes = _nbytes(cursor, dims, kind, where)
        offset = cursor.u64(f"{where}.offset")
        if offset % alignment:
            raise cursor.fail("misaligned", f"offset {offset} is not a multiple of the alignment {alignment}",
                              f"{where}.offset", cursor.pos - 8)
        infos[name] = TensorInfo(name, kind, tuple(reversed(dims)), offset, nbytes)
    return list(infos.values())


def _read_dims(cursor: Cursor, where: str) -> list[int]:
    n_dims = cursor.u32(f"{where}.n_dims")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail("bad-shape", f"the tensor has {n_dims} dims, but may have 1 to {MAX_DIMS}",
                          f"{where}.n_dims", cursor.pos - 4)
    start = cursor.pos
    dims = [cursor.u64(f"{where}.dims[{axis}]") for axis in range(n_dims)]
    # A zero dim empties the tensor but must not hide an absurd one beside it, so it counts as 1 here.
    if prod(max(dim, 1) for dim in dims) >= LIMIT:
        raise cursor.fail("bad-shape", f"dims {dims} make 2**63 or more elements", f"{where}.dims", start)
    return dims


def _read_type(cursor: Cursor, where: str) -> GGMLType:
    number = cursor.u32(f"{where}.type")
    if number not in BY_ID:
        raise cursor.fail("bad-tensor-type", f"tensor type {number} is unknown or withdrawn", f"{where}.type",
                          cursor.pos - 4, "Quantise the model again with a current version of llama.cpp.")
    return BY_ID[number]


def _nbytes(cursor: Cursor, dims: list[int], kind: GGMLType, where: str) -> int:
    """elements / block_elements * block_bytes; a row (the fastest axis) must consist of whole blocks."""
    start = cursor.pos - 4 - 8 * len(dims)
    if dims[0] % kind.block_elements:
        raise cursor.fail("bad-shape", f"rows of {dims[0]} elements are not whole {kind.name} blocks of "
                          f"{kind.block_elements}", f"{where}.dims[0]", start)
    nbytes = prod(dims) // kind.block_elements * kind.block_bytes
    if nbytes >= LIMIT:
        raise cursor.fail("bad-shape", f"dims {dims} make 2**63 or more bytes", f"{where}.dims", start)
    return nbytes


def _check_overlap(cursor: Cursor, infos: list[TensorInfo], data_start: int) -> None:
    stored = sorted((t.offset, t.offset + t.nbytes, i) for i, t in enumerate(infos) if t.nbytes)
    for (_, end, before), (start, _, i) in pairwise(stored):
        if start < end:
            raise cursor.fail("overlap", f"the data shares bytes with tensor[{before}]",
                              f"tensor[{i}].offset", data_start + start)


def _check_extents(cursor: Cursor, infos: list[TensorInfo], data_start: int) -> None:
    available = max(cursor.size - data_start, 0)
    for i, info in enumerate(infos):
        if info.offset > available or info.nbytes > available - info.offset:
            end = data_start + info.offset + info.nbytes
            raise cursor.fail("out-of-file", f"{shown(info.name)} ends at byte {end}, but the file ends at "
                              f"{cursor.size}", f"tensor[{i}].offset", cursor.size, INCOMPLETE)


def _odd_metadata(metadata: Metadata, alignment: int) -> list[tuple[str, str]]:
    """(code for strict mode, warning) of what is legal to read but no current writer produces."""
    oddities = []
    odd = [key for key in metadata if not re.fullmatch(r"[a-z0-9._-]+", key)]
    if odd:
        oddities.append(("bad-key", f"{len(odd)} keys are not [a-z0-9._-], as {shown(odd[0])}"))
    if alignment < 8:
        oddities.append(("bad-alignment", f"the alignment is {alignment}, below 8"))
    return oddities


def _odd_layout(infos: list[TensorInfo], alignment: int) -> list[tuple[str, str]]:
    """llama.cpp wants every tensor where the one declared before it ends, padded."""
    expected = 0
    for i, info in enumerate(infos):
        if info.offset != expected:
            return [("not-contiguous", f"tensor[{i}] {shown(info.name)} is at {info.offset} of the data "
                     f"section, not at {expected}, where the one declared before it ends")]
        expected += padded(info.nbytes, alignment)
    return []


def _odd_end(infos: list[TensorInfo], alignment: int, data_start: int, size: int) -> list[tuple[str, str]]:
    """Whether the file ends where the padding after its last tensor does."""
    end = data_start + padded(max((info.offset + info.nbytes for info in infos), default=0), alignment)
    if size > end:
        return [("trailing-bytes", f"{size - end} bytes follow the last tensor")]
    if size < end:
        return [("missing-padding", f"{end - size} bytes of padding are missing at the end")]
    return []


def _reject_oddities(cursor: Cursor, oddities: list[tuple[str, str]], metadata: Metadata) -> None:
    if oddities:
        code, text = oddities[0]
        raise FormatError(code, text, path=cursor.path, field="strict mode", remedy=LENIENT)
    for key in metadata:
        metadata[key]  # interprets the value, and raises if it cannot be


def _mapped(cursor: Cursor, fd: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, cursor.size, access=mmap.ACCESS_READ)
    except ValueError as error:  # the file is shorter than the map would be
        raise cursor.fail("file-changed", "the file became shorter while it was read", "path", cursor.size,
                          CHANGED) from error


def padded(n: int, alignment: int) -> int:
    """``n`` rounded up to a multiple of ``alignment``."""
    return -(-n // alignment) * alignment
