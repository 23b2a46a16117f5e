"""APR v2, the container of aprender: a JSON object and tensors in one little-endian file.

    0   magic "APR\\0"    u8 major (2)  u8 minor (0)   u16 flags      u32 n_tensors
    12  u64 metadata_offset             u32 metadata_size (unpadded)  u64 index_offset   u64 data_offset
    40  u32 CRC-32 of the 60 other bytes of this header: left out, not taken as zero
    44  20 zeros
    64  metadata, one JSON object                                      (formats/containers/apr_metadata.py)
        n_tensors x  u16 length, name,  u8 type,  u8 n_dims,  u64 dims[n_dims],  u64 offset,  u64 size
    data_offset       tensor data; each ``offset`` counts from here, ``size`` is without padding
    end   u32 CRC-32 of every byte before it, the footer

Each section, and each tensor's data, is padded with zeros to a multiple of 64 bytes. The index is sorted by name, the
data need not be. ``dims`` are in the order of a NumPy shape, the reverse of GGUF's; the bytes of a matrix are the
same in both. Source: aprender, crates/apr-format; storage types in ``formats/containers/apr_types.py``.

A file is hostile until read, as in ``gguf.py``. The footer is another matter: to check it is to read the
whole file, about a second a gigabyte. :meth:`Apr.verify` does so, and so does ``strict``; opening does not. It fails
with :class:`assay.formats.errors.FormatError` and one of these codes:

    no-file not-a-file unreadable file-changed        as in formats/containers/gguf.py
    bad-magic bad-version        not APR; APR of another version (v1, "APRN", holds no language model)
    truncated                    the file ends before what its header promises
    bad-checksum                 the header or the footer is not what its CRC was made of
    column-major                 a file that upstream too calls dirty: its matrices are transposed
    unsupported                  compressed, encrypted, or one shard of several
    bad-section                  metadata, index and data overlap, or come in another order
    metadata-too-large bad-metadata
                                 more than 16 MiB; no JSON object, nested too deeply, or with too many values
    bad-count                    more tensors than there are bytes for
    bad-name unsorted duplicate-tensor
    bad-tensor-type bad-shape    a type that APR does not have; more than 8 dims, or 2**63 elements or bytes
    bad-size                     not the bytes that type and shape make
    misaligned out-of-file overlap  tensor data where it cannot be
    missing-key bad-value        raised when metadata is used
    missing-tensor               raised by Container.raw
    bad-flags bad-padding missing-footer trailing-bytes
                                 only in strict mode
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import numpy as np

from assay.formats.blocks.ggml_types import BY_ID, BY_NAME
from assay.formats.containers.apr_metadata import MAX_METADATA, AprMetadata, parse
from assay.formats.containers.apr_types import (
    APR_Q4,
    APR_Q8,
    CODES,
    LEGACY_CODES,
    nbytes_of,
    q4_as_q4_0,
    q4_values,
    q8_values,
)
from assay.formats.containers.base import Container, StorageType, TensorInfo
from assay.formats.containers.cursor import CHANGED, Cursor, demand_unchanged, opened, shown
from assay.formats.errors import FormatError
from assay.formats.system.atomic_file import CHUNK
from assay.formats.system.progress import Progress, quiet

MAGIC = b"APR\0"
HEADER = Struct("<4sBBHIQIQQI20s")
ALIGNMENT = 64
MAX_TENSORS = 1 << 16
MIN_ENTRY = 2 + 1 + 1 + 1 + 8 + 8
MAX_NAME = 256
MAX_DIMS = 8
LIMIT = 1 << 63
ROW_MAJOR, COLUMN_MAJOR = 0x0400, 0x0800
REFUSED_FLAGS = {0x0001: "compressed (LZ4)", 0x0002: "compressed (Zstandard)", 0x0004: "encrypted",
                 0x0010: "one shard of several"}  # fmt: skip
SIGNED = 0x0008
KNOWN_FLAGS = 0x0FFF
INCOMPLETE = "The download is incomplete or the file damaged; fetch it again."
LENIENT = "Write the file again with a current converter, or open it without strict."


class Header(NamedTuple):
    """The fields of the first 64 bytes."""

    magic: bytes
    major: int
    minor: int
    flags: int
    n_tensors: int
    metadata_offset: int
    metadata_size: int
    index_offset: int
    data_offset: int
    checksum: int
    reserved: bytes

    def checksum_of(self) -> int:
        """What ``checksum`` should be."""
        raw = HEADER.pack(*self)
        return zlib.crc32(raw[44:], zlib.crc32(raw[:40]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Apr(Container):
    """An open APR file."""

    format: str = "apr"
    header: Header
    metadata: AprMetadata
    footer: int | None
    """CRC-32 as the file states it; None if it ends without one, as some real files do."""

    def row_type(self, name: str) -> StorageType:
        info = self.tensors[name]
        if info.type.name == APR_Q4.name and whole_rows(info):
            return BY_NAME["Q4_0"]
        return BY_NAME["F32"] if info.type.name in (APR_Q4.name, APR_Q8.name) else info.type

    def rows(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        info, raw = self.tensors[name], self.raw(name)
        if info.type.name not in (APR_Q4.name, APR_Q8.name):
            return super().rows(name, rows)
        start, stop, _ = rows.indices(info.n_rows)
        stop, width = max(start, stop), info.shape[-1] if info.shape else 1
        if info.type.name == APR_Q4.name and whole_rows(info):
            return q4_as_q4_0(raw.reshape(info.n_rows, width // 32, 18)[start:stop]).reshape(-1, width // 32 * 18)
        values = (q8_values if info.type.name == APR_Q8.name else q4_values)(raw, start * width, stop * width)
        return values.astype("<f4").view(np.uint8).reshape(stop - start, 4 * width)

    def verify(self, progress: Progress = quiet) -> bool:
        """Read the whole file and check its footer; False if it has none. Raises FormatError bad-checksum."""
        if self.footer is None or self.map is None:
            return False
        crc, end = 0, self.size - 4
        for start in range(0, end, CHUNK):
            crc = zlib.crc32(self.map[start : min(start + CHUNK, end)], crc)
            self.release()  # memory does not grow with the file
            progress(min(start + CHUNK, end), end, "checking")
        if crc != self.footer:
            raise FormatError("bad-checksum", f"the file's CRC-32 is {crc:08x}, but its footer says {self.footer:08x}",
                              path=self.path, field="footer", offset=end, remedy=INCOMPLETE)  # fmt: skip
        return True


def whole_rows(info: TensorInfo) -> bool:
    """Whether each row of an APR_Q4 tensor begins with a block."""
    return bool(info.shape) and info.shape[-1] % 32 == 0 and prod(info.shape) > 0


def read_apr(path: str | Path, *, strict: bool = False) -> Apr:
    """Open an APR v2 file.

    ``strict`` also checks the footer, and rejects what is otherwise a warning: bytes between or after the sections,
    reserved bytes that are not zero, unknown flags, a missing footer.

    Raises FormatError with the codes above; no other exception, whatever the file holds.
    """
    path = Path(path)
    with opened(path) as (fd, before):
        cursor = Cursor(fd, before.st_size, path)
        header = read_header(cursor)
        oddities = [*odd_header(header)]
        metadata = read_json(cursor, header)
        infos, index_end = read_index(cursor, header)
        demand_unchanged(fd, before, path)
        check_overlap(cursor, infos)
        end = check_extents(cursor, infos, header)
        oddities += [*odd_sections(header, index_end), *odd_end(end, cursor.size)]
        if strict and oddities:
            code, text = oddities[0]
            raise FormatError(code, text, path=path, field="strict mode", remedy=LENIENT)
        data = mapped(cursor, fd)
    footer = None if cursor.size == end else int.from_bytes(data[cursor.size - 4 : cursor.size], "little")
    apr = Apr(path=path, header=header, metadata=metadata, tensors={info.name: info for info in infos},
              size=cursor.size, warnings=tuple(text for _, text in oddities), map=data, footer=footer)  # fmt: skip
    if strict:
        apr.verify()
    return apr


def read_header(cursor: Cursor) -> Header:
    """The header, its checksum right and nothing in it that this reader does not know."""
    magic = cursor.take(4, "header.magic")
    if magic == b"APRN":
        raise cursor.fail("bad-version", "this is APR v1, a format for classic machine learning models", "header.magic",
                          0, "It holds no language model; convert the original to APR v2.")  # fmt: skip
    if magic != MAGIC:
        raise cursor.fail("bad-magic", f"the file starts with {magic!r}, but an APR v2 file starts with {MAGIC!r}",
                          "header.magic", 0, "Fetch a model file of a format that Assay reads.")  # fmt: skip
    header = Header(*HEADER.unpack(magic + cursor.take(HEADER.size - 4, "header")))
    if (header.major, header.minor) != (2, 0):
        raise cursor.fail("bad-version", f"APR version {header.major}.{header.minor} is not supported, only 2.0 is",
                          "header.version", 4, "Convert the model again with a current converter.")  # fmt: skip
    if header.checksum != header.checksum_of():
        raise cursor.fail("bad-checksum", f"the header's CRC-32 is {header.checksum_of():08x}, but it says "
                          f"{header.checksum:08x}", "header.checksum", 40)  # fmt: skip
    if header.flags & COLUMN_MAJOR:
        raise cursor.fail("column-major", "the file says that its matrices are column-major", "header.flags", 6,
                          "A broken import wrote it; import the original again.")  # fmt: skip
    for flag, what in REFUSED_FLAGS.items():
        if header.flags & flag:
            raise cursor.fail("unsupported", f"the file says that it is {what}", "header.flags", 6,
                              "Write it again as one file, neither compressed nor encrypted.")  # fmt: skip
    return header


def read_json(cursor: Cursor, header: Header) -> AprMetadata:
    """The metadata section, once it is known to lie between the header and the index."""
    end = header.metadata_offset + header.metadata_size
    if header.metadata_size > MAX_METADATA:
        raise cursor.fail("metadata-too-large", f"{header.metadata_size} bytes of metadata, but at most {MAX_METADATA} "
                          "are allowed", "header.metadata_size", 20)  # fmt: skip
    for offset, least, field, at in ((header.metadata_offset, HEADER.size, "metadata", 12),
                                     (header.index_offset, end, "tensor index", 24),
                                     (header.data_offset, header.index_offset, "tensor data", 32)):  # fmt: skip
        if offset < least:
            raise cursor.fail("bad-section", f"the {field} begins at {offset}, inside what comes before it, which ends "
                              f"at {least}", "header", at)  # fmt: skip
        if offset > cursor.size:
            raise cursor.fail("truncated", f"the {field} begins at {offset}, but the file ends at {cursor.size}",
                              "header", at, INCOMPLETE)  # fmt: skip
    cursor.seek(header.metadata_offset, "metadata")
    raw = cursor.take(header.metadata_size, "metadata")
    return parse(raw, cursor.path, header.metadata_offset)


def read_index(cursor: Cursor, header: Header) -> tuple[list[TensorInfo], int]:
    """Tensor infos in the order of the index, and where it ends."""
    room = header.data_offset - header.index_offset
    if header.n_tensors * MIN_ENTRY > room or header.n_tensors > MAX_TENSORS:
        raise cursor.fail("bad-count", f"{header.n_tensors} tensors do not fit an index of {room} bytes, or are more "
                          f"than the {MAX_TENSORS} allowed", "header.n_tensors", 8)  # fmt: skip
    cursor.seek(header.index_offset, "tensor index")
    infos: list[TensorInfo] = []
    before = b""
    for i in range(header.n_tensors):
        start, where = cursor.pos, f"tensor[{i}]"
        info = read_entry(cursor, header, where)
        name = info.name.encode()
        if infos and name <= before:
            code, what = ("duplicate-tensor", "appears twice") if name == before else ("unsorted", "is out of order")
            raise cursor.fail(code, f"{shown(info.name)} {what}", f"{where}.name", start)
        if cursor.pos > header.data_offset:
            raise cursor.fail("bad-section", "the index runs into the tensor data", where, start)
        infos.append(info)
        before = name
    return infos, cursor.pos


def read_entry(cursor: Cursor, header: Header, where: str) -> TensorInfo:
    """One entry of the index, its numbers consistent."""
    name = read_name(cursor, f"{where}.name")
    kind = read_type(cursor, f"{where}.type")
    shape = read_shape(cursor, f"{where}.dims")
    at = cursor.pos
    offset, size = cursor.u64(f"{where}.offset"), cursor.u64(f"{where}.size")
    wanted = nbytes_of(kind, shape)
    if wanted >= LIMIT:
        raise cursor.fail("bad-shape", f"dims {list(shape)} make 2**63 or more bytes", f"{where}.dims", at)
    if size != wanted:
        raise cursor.fail("bad-size", f"{list(shape)} in {kind.name} takes {wanted} bytes, but the index says {size}",
                          f"{where}.size", at + 8)  # fmt: skip
    if (header.data_offset + offset) % ALIGNMENT:
        raise cursor.fail("misaligned", f"the data at {header.data_offset + offset} is not at a multiple of "
                          f"{ALIGNMENT}", f"{where}.offset", at)  # fmt: skip
    return TensorInfo(name, kind, shape, header.data_offset + offset, size)


def read_name(cursor: Cursor, field: str) -> str:
    """``u16 length, name``."""
    start = cursor.pos
    length = int.from_bytes(cursor.take(2, field), "little")
    try:
        name = cursor.take(length, field).decode() if length <= MAX_NAME else ""
    except UnicodeDecodeError as error:
        raise cursor.fail("bad-name", "the name is not valid UTF-8", field, start) from error
    if not name or "\0" in name:
        raise cursor.fail("bad-name", f"a name has 1 to {MAX_NAME} bytes and no NUL, not so this one of {length} bytes",
                          field, start)
    return name


def read_type(cursor: Cursor, field: str) -> StorageType:
    code = cursor.take(1, field)[0]
    kind = CODES.get(code) or LEGACY_CODES.get(code)
    if kind is None:
        hint = f" (in GGUF it is {BY_ID[code].name})" if code in BY_ID else ""
        raise cursor.fail("bad-tensor-type", f"APR has no tensor type {code}{hint}", field, cursor.pos - 1,
                          "Convert the model again to types that APR has.")  # fmt: skip
    return kind


def read_shape(cursor: Cursor, field: str) -> tuple[int, ...]:
    """``u8 n_dims, u64 dims[n_dims]``."""
    start, n_dims = cursor.pos, cursor.take(1, field)[0]
    if n_dims > MAX_DIMS:
        raise cursor.fail("bad-shape", f"the tensor has {n_dims} dims, but may have up to {MAX_DIMS}", field, start)
    shape = tuple(cursor.u64(f"{field}[{axis}]") for axis in range(n_dims))
    # A zero dim empties the tensor but must not hide an absurd one beside it, so it counts as 1 here.
    if prod(max(dim, 1) for dim in shape) >= LIMIT:
        raise cursor.fail("bad-shape", f"dims {list(shape)} make 2**63 or more elements", field, start)
    return shape


def check_overlap(cursor: Cursor, infos: list[TensorInfo]) -> None:
    stored = sorted((t.offset, t.offset + t.nbytes, i) for i, t in enumerate(infos) if t.nbytes)
    for (_, end, before), (start, _, i) in pairwise(stored):
        if start < end:
            raise cursor.fail("overlap", f"the data shares bytes with tensor[{before}]", f"tensor[{i}].offset", start)


def check_extents(cursor: Cursor, infos: list[TensorInfo], header: Header) -> int:
    """Where the last tensor's padding ends; every writer pads it, and the file must reach so far.

    What may follow is the footer: no byte, or four, or more (which is odd), never one to three.
    """
    end = header.data_offset
    for i, info in enumerate(infos):
        stop = info.offset + aligned(info.nbytes)
        if stop > cursor.size:
            raise cursor.fail("out-of-file", f"{shown(info.name)} and its padding end at byte {stop}, but the file "
                              f"ends at {cursor.size}", f"tensor[{i}].offset", cursor.size, INCOMPLETE)  # fmt: skip
        end = max(end, stop)
    if 0 < cursor.size - end < 4:
        raise cursor.fail("truncated", f"the footer has {cursor.size - end} of its 4 bytes", "footer", end, INCOMPLETE)
    return end


def odd_header(header: Header) -> Iterator[tuple[str, str]]:
    """(code for strict mode, warning) of what is legal to read but no current writer produces."""
    if header.flags & ~KNOWN_FLAGS:
        yield "bad-flags", f"flags {header.flags & ~KNOWN_FLAGS:#06x} are unknown"
    if header.flags & SIGNED:
        yield "bad-flags", "the file says that it is signed; the signature was not checked"
    if any(header.reserved):
        yield "bad-padding", "reserved bytes of the header are not zero"


def odd_sections(header: Header, index_end: int) -> Iterator[tuple[str, str]]:
    """Sections that do not follow one another, padded to 64 bytes."""
    metadata_end = header.metadata_offset + header.metadata_size
    for what, begins, expected in (("metadata", header.metadata_offset, HEADER.size),
                                   ("tensor index", header.index_offset, aligned(metadata_end)),
                                   ("tensor data", header.data_offset, aligned(index_end))):  # fmt: skip
        if begins != expected:
            yield "bad-padding", f"the {what} begins at {begins}, not at {expected}, where what precedes it ends"


def odd_end(end: int, size: int) -> Iterator[tuple[str, str]]:
    if size == end:
        yield "missing-footer", "the file has no footer, so damage to its data would not show"
    elif size > end + 4:
        yield "trailing-bytes", f"{size - end - 4} bytes lie between the last tensor and the footer"


def mapped(cursor: Cursor, fd: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, cursor.size, access=mmap.ACCESS_READ)
    except ValueError as error:  # the file is shorter than the map would be
        raise cursor.fail("file-changed", "the file became shorter while it was read", "path", cursor.size,
                          CHANGED) from error  # fmt: skip


def aligned(n: int) -> int:
    """``n`` rounded up to a multiple of 64."""
    return -(-n // ALIGNMENT) * ALIGNMENT

