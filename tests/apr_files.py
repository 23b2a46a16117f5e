"""Raw APR v2 bytes for tests, in which every field can lie. Knows nothing of the reader or the writer under test."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Type codes: elements of a block, bytes of a block; kept apart from the reader's table.
F32, F16, F64, I32, I64, I8, U8, Q4_K, Q6_K, BF16, APR_Q4, APR_Q8 = 0, 1, 3, 4, 5, 6, 7, 12, 14, 30, 128, 129
BLOCKS = {F32: (1, 4), F16: (1, 2), F64: (1, 8), I32: (1, 4), I64: (1, 8), I8: (1, 1), U8: (1, 1), Q4_K: (256, 144),
          Q6_K: (256, 210), BF16: (1, 2)}  # fmt: skip
ROW_MAJOR, COLUMN_MAJOR = 0x0400, 0x0800


def padded(n: int) -> int:
    return (n + 63) // 64 * 64


@dataclass
class Tensor:
    """One index entry and its data. What is None is filled in truthfully."""

    name: str | bytes = "my_tensor"
    dims: Sequence[int] = (8,)
    type: int = F32
    data: bytes | None = None
    offset: int | None = None
    size: int | None = None
    n_dims: int | None = None
    name_length: int | None = None

    @property
    def nbytes(self) -> int:
        n = 1
        for dim in self.dims:
            n *= dim
        if self.type in (APR_Q8, 9):
            return 4 + n
        if self.type in (APR_Q4, 8):
            return (n + 31) // 32 * 18
        elements, size = BLOCKS.get(self.type, (1, 1))
        row = self.dims[-1] if self.dims else 1
        return n // max(row, 1) * ((row + elements - 1) // elements) * size

    def content(self) -> bytes:
        return counting_bytes(self.nbytes) if self.data is None else self.data

    def entry(self, offset: int) -> bytes:
        name = self.name.encode() if isinstance(self.name, str) else self.name
        n_dims = len(self.dims) if self.n_dims is None else self.n_dims
        return b"".join([
            struct.pack("<H", len(name) if self.name_length is None else self.name_length), name,
            struct.pack("<BB", self.type, n_dims), *(struct.pack("<Q", dim) for dim in self.dims),
            struct.pack("<QQ", offset if self.offset is None else self.offset,
                        self.nbytes % 2**64 if self.size is None else self.size),
        ])  # fmt: skip


@dataclass
class File:
    """An APR file to be: ``bytes(file)``. Data lies in the order of ``tensors``, the index is sorted unless told."""

    metadata: Any = field(default_factory=dict)
    """A value to be written as JSON, or bytes as they are."""
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"APR\0"
    version: tuple[int, int] = (2, 0)
    flags: int = ROW_MAJOR
    n_tensors: int | None = None
    metadata_offset: int | None = None
    metadata_size: int | None = None
    index_offset: int | None = None
    data_offset: int | None = None
    reserved: bytes = bytes(20)
    header_checksum: int | None = None
    footer: bytes | None = None
    tail: bytes = b""
    """Between the last tensor and the footer."""
    sort: bool = True
    data: bytes | None = None

    def __bytes__(self) -> bytes:
        meta = self.metadata if isinstance(self.metadata, bytes) else json.dumps(
            self.metadata, ensure_ascii=False, separators=(",", ":")).encode()  # fmt: skip
        offsets = [0]
        for tensor in self.tensors:
            offsets.append(padded(offsets[-1] + len(tensor.content())))
        pairs = list(zip(self.tensors, offsets, strict=False))
        if self.sort:
            pairs.sort(key=lambda p: p[0].name.encode() if isinstance(p[0].name, str) else p[0].name)
        index = b"".join(tensor.entry(offset) for tensor, offset in pairs)
        index_offset = 64 + padded(len(meta))
        data_offset = index_offset + padded(len(index))
        head = struct.pack(
            "<4sBBHIQIQQ", self.magic, *self.version, self.flags, told(self.n_tensors, len(self.tensors)),
            told(self.metadata_offset, 64), told(self.metadata_size, len(meta)), told(self.index_offset, index_offset),
            told(self.data_offset, data_offset),
        )  # fmt: skip
        checksum = told(self.header_checksum, binascii.crc32(head + self.reserved))
        body = b"".join(tensor.content().ljust(padded(len(tensor.content())), b"\0") for tensor in self.tensors)
        whole = b"".join([
            head, struct.pack("<I", checksum), self.reserved, meta.ljust(padded(len(meta)), b"\0"),
            index.ljust(padded(len(index)), b"\0"), body if self.data is None else self.data, self.tail,
        ])  # fmt: skip
        return whole + (struct.pack("<I", binascii.crc32(whole)) if self.footer is None else self.footer)


def told(value: int | None, truth: int) -> int:
    return truth if value is None else value


def counting_bytes(n: int) -> bytes:
    """Byte i is i % 256."""
    return (bytes(range(256)) * (n // 256 + 1))[:n]


def resealed(data: bytes) -> bytes:
    """``data`` with the header's checksum and the footer made right again."""
    header = struct.pack("<I", binascii.crc32(data[:40] + data[44:64]))
    whole = data[:40] + header + data[44:-4]
    return whole + struct.pack("<I", binascii.crc32(whole))


def small_file() -> bytes:
    """A well-formed file with one of everything, its last tensor without padding."""
    tensors = [Tensor("b.matrix", (2, 300), Q4_K), Tensor("a.vector", (8,)), Tensor("c.words", (16,), I32)]
    return bytes(File({"name": "small", "numbers": [1, 2, 3], "tokenizer.vocabulary": ["a", "Ġb"]}, tensors))
