"""Raw GGUF bytes for tests, in which every field can lie. Knows nothing of the reader under test."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

# Value types, as numbered in ggml docs/gguf.md.
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
WIDTH = {U8: 1, I8: 1, U16: 2, I16: 2, U32: 4, I32: 4, F32: 4, BOOL: 1, U64: 8, I64: 8, F64: 8}
FORMAT = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q",
          F64: "d"}  # fmt: skip
U64_MAX = 2**64 - 1

# Tensor types: number -> (elements of a block, bytes of a block), from ggml-common.h; kept apart from the
# reader's table, so that one wrong entry cannot hide in both.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
T_F32, T_Q4_0, T_I8, T_I64 = 0, 2, 24, 27


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """``length`` may claim another number of bytes than follow."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def scalar(kind: int, value: float) -> bytes:
    """Type and value of a number."""
    return u32(kind) + struct.pack("<" + FORMAT[kind], value)


def array(kind: int, payload: bytes, count: int) -> bytes:
    """Type and value of an array; ``count`` need not be what ``payload`` holds."""
    return u32(ARRAY) + u32(kind) + u64(count) + payload


def pair(key: str | bytes, value: bytes, key_length: int | None = None) -> bytes:
    return string(key, key_length) + value


@dataclass
class Tensor:
    """One tensor info. ``dims`` fastest axis first; what is None is filled in truthfully."""

    name: str | bytes = "my_tensor"
    dims: Sequence[int] = (32,)
    type: int = T_F32
    offset: int | None = None
    n_dims: int | None = None
    name_length: int | None = None

    @property
    def nbytes(self) -> int:
        elements, size = BLOCKS.get(self.type, (1, 1))
        n = 1
        for dim in self.dims:
            n *= dim
        return n // elements * size


@dataclass
class File:
    """A GGUF file to be. ``bytes(file)`` is the header, padded, and ``data``: i % 256 unless given."""

    pairs: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None
    alignment: int = 32
    """Used for offsets and padding; not declared unless a pair declares it."""
    data: bytes | None = None

    def offsets(self) -> list[int]:
        """Where each tensor starts in the data section, packed in order, then where the last one ends."""
        ends = [0]
        for tensor in self.tensors:
            ends.append(padded(ends[-1] + tensor.nbytes, self.alignment))
        return ends

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        parts = [self.magic, u32(self.version), u64(n_tensors), u64(n_pairs), *self.pairs]
        for tensor, offset in zip(self.tensors, self.offsets(), strict=False):
            parts += [
                string(tensor.name, tensor.name_length),
                u32(len(tensor.dims) if tensor.n_dims is None else tensor.n_dims),
                *map(u64, tensor.dims),
                u32(tensor.type),
                u64(offset if tensor.offset is None else tensor.offset),
            ]
        raw = b"".join(parts)
        return raw + bytes(padded(len(raw), self.alignment) - len(raw))

    def __bytes__(self) -> bytes:
        data = counting_bytes(self.offsets()[-1]) if self.data is None else self.data
        return self.header() + data


def padded(n: int, alignment: int) -> int:
    return (n + alignment - 1) // alignment * alignment


def counting_bytes(n: int) -> bytes:
    """Byte i is i % 256, as in llama.cpp's own data section."""
    return (bytes(range(256)) * (n // 256 + 1))[:n]


def alignment_pair(value: int, kind: int = U32) -> bytes:
    return pair("general.alignment", scalar(kind, value))


def random_pairs(seed: int, n: int = 60) -> list[bytes]:
    """As llama.cpp's test makes them: every type, random bytes; bools are not 0/1, strings not UTF-8."""
    rng = random.Random(seed)
    pairs = []
    for i in range(n):
        kind = rng.choice([*WIDTH, STRING])
        if kind == STRING:
            items = [string(rng.randbytes(rng.randrange(20))) for _ in range(rng.randrange(8))]
        else:
            items = [rng.randbytes(WIDTH[kind]) for _ in range(rng.randrange(8))]
        if items and rng.random() < 0.5:
            value = u32(kind) + items[0]
        else:
            value = array(kind, b"".join(items), len(items))
        pairs.append(pair(f"my_key_{i}", value))
    return pairs


def random_tensors(seed: int, n: int = 40) -> list[Tensor]:
    """Every tensor type of a known size, rows of 1 to 10 blocks, other dims 1 to 10, up to four of them."""
    rng = random.Random(seed)
    tensors = []
    for i in range(n):
        kind = rng.choice(list(BLOCKS))
        dims = [rng.randint(1, 10) * BLOCKS[kind][0], *(rng.randint(1, 4) for _ in range(rng.randrange(4)))]
        tensors.append(Tensor(f"my_tensor_{i}", dims, kind))
    return tensors


def small_file() -> bytes:
    """A well-formed file with one of everything, whose last byte belongs to a tensor, not to padding."""
    pairs = [
        pair("general.architecture", u32(STRING) + string("test")),
        pair("a.integer", scalar(I32, -7)),
        pair("a.truth", scalar(BOOL, 1)),
        pair("a.float", scalar(F32, 0.5)),
        pair("some.words", array(STRING, string("eins") + string("") + string("drei"), 3)),
        pair("some.numbers", array(U16, struct.pack("<3H", 1, 2, 65535), 3)),
    ]
    tensors = [Tensor("matrix", (32, 3), T_Q4_0), Tensor("vector", (8,), T_F32)]
    return bytes(File(pairs, tensors))
