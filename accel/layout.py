"""The layout of weights on the device: the file's integers in 16-bit words, *outputs* side by side.

A row of a GGUF matrix holds the blocks of one output. A CPU or GPU that multiplies by a vector wants the opposite: the
same element of many outputs next to one another, so that one vector instruction works on all of them. So the
integers of each group of 32 elements are put into words of 16 bits, and each word of a group becomes an array of
its own, a *plane* [n_groups, n_outputs].

How the integers share words depends only on their width; bit 0 is on the left:

    4 bits   8 planes   | e  | e  | e  | e  |           four a word
    5 bits  10 planes   |  e  |  e  |  e  |1|           three a word; every sixteenth element is spread over the
                                                        top bits of five words, bit k in word k
    6 bits  12 planes   |  e   |  e   | 4  |            two a word; the top four bits of three words hold two more:
                        |  e   |  e   | 4  |            the low nibble of the one, the low nibble of the other,
                        |  e   |  e   |2 |2 |           and the high pair of either
    8 bits  16 planes   |   e    |   e    |             two a word

    type         integer   zero   scales of a group     minimum      d, dmin (f16)
    Q4_0, Q4_1   4 bits    8, 0   -                     -            each group
    Q5_0, Q5_1   5 bits   16, 0   -                     -            each group
    Q8_0         8 bits  128      -                     -            each group
    Q4_K         4 bits    0      one, 8 bits           8 bits       each 8 groups
    Q5_K         5 bits    0      one, 8 bits           8 bits       each 8 groups
    Q6_K         6 bits   32      two, signed 8 bits    -            each 8 groups

Every weight is ``d·scale·(integer − zero) − dmin·min``. The integers are the file's own (Q8_0's are stored with 128
added), and so many bits are read as the file has, but for the 6-bit scales of Q4_K and Q5_K, which are widened to
bytes: 148 for 144. Words of 16 bits rather than bytes, because the arithmetic is in 16 bits: nothing has to be
widened, and half as many streams are read. No word is split between a low and a high part that would be multiplied
separately: that made Q5_0 1.4, Q8_0 1.5 and Q6_K 1.1 times faster than planes of nibbles, bits and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from formats.ggml_types import BY_NAME

GROUP = 32
"""Elements of a group. (Q6_K scales 16 at a time: a group has two scales.)"""


class Field(NamedTuple):
    """Some bits of a word: bits ``low`` .. ``low + bits`` of the integer of element ``element``."""

    bits: int
    element: int
    low: int = 0


Word = tuple[Field, ...]
"""The fields of a word, lowest bits first."""


class Layout(NamedTuple):
    """How the groups of one type are kept."""

    words: tuple[tuple[Word, ...], ...]
    """The planes, in runs: the products of one run are summed in 16 bits."""
    bits: int
    zero: int
    """What is subtracted from the stored integer."""
    activation: str
    """How activations are rounded before an integer dot: ``"Q8_0"``, ``"Q8_1"`` each 32, ``"Q8_K"`` each 256."""
    n_scales: int = 1
    """Dots that a group is divided into, each with a scale of its own."""


def four_bits(first: int) -> tuple[Word, ...]:
    """16 elements in 4 words."""
    return tuple(tuple(Field(4, first + 4 * k + i) for i in range(4)) for k in range(4))


def five_bits(first: int) -> tuple[Word, ...]:
    """16 elements in 5 words: 15 as they are, and the last bit by bit."""
    return tuple((*(Field(5, first + 3 * k + i) for i in range(3)), Field(1, first + 15, low=k)) for k in range(5))


def six_bits(first: int) -> tuple[Word, ...]:
    """8 elements in 3 words: 6 as they are, and the last two in a nibble and a pair each."""
    a, b = first + 6, first + 7
    rest = ((Field(4, a),), (Field(4, b),), (Field(2, a, low=4), Field(2, b, low=4)))
    return tuple((Field(6, first + 2 * k), Field(6, first + 2 * k + 1), *rest[k]) for k in range(3))


def eight_bits(first: int) -> tuple[Word, ...]:
    """2 elements in a word."""
    return ((Field(8, first), Field(8, first + 1)),)


FOUR = tuple(four_bits(first) for first in (0, 16))
FIVE = tuple(five_bits(first) for first in (0, 16))
SIX = tuple(six_bits(first) for first in range(0, GROUP, 8))
EIGHT = tuple(eight_bits(first) for first in range(0, GROUP, 2))
LAYOUTS = {
    "Q4_0": Layout(FOUR, 4, 8, "Q8_0"),
    "Q4_1": Layout(FOUR, 4, 0, "Q8_1"),
    "Q5_0": Layout(FIVE, 5, 16, "Q8_0"),
    "Q5_1": Layout(FIVE, 5, 0, "Q8_1"),
    "Q8_0": Layout(EIGHT, 8, 128, "Q8_0"),
    "Q4_K": Layout(FOUR, 4, 0, "Q8_K"),
    "Q5_K": Layout(FIVE, 5, 0, "Q8_K"),
    "Q6_K": Layout(SIX, 6, 32, "Q8_K", n_scales=2),
}
"""Types with a plane layout; any other is kept as raw blocks and decoded where it is used."""

Parts = dict[str, np.ndarray]
"""``word0`` .. [G, N] uint16, ``scale0`` .. and ``min`` [G, N] 8-bit, ``d`` and ``dmin`` [G / groups a block, N] f16; G
groups along the input, N outputs. Absent where a type has none."""


def parts_of(type_name: str, raw: np.ndarray) -> Parts:
    """Rows of blocks, uint8 [N, row_bytes], as planes. The blocks are drawn in ``formats/blocks/``.

    The bytes are transposed first, all else is elementwise along the outputs.
    """
    block_bytes = BY_NAME[type_name].block_bytes
    parts = READERS[type_name](np.ascontiguousarray(raw.T).reshape(-1, block_bytes, len(raw)))
    integers = parts.pop("integers")
    words = [word for run in LAYOUTS[type_name].words for word in run]
    return parts | {f"word{i}": pack_word(word, integers) for i, word in enumerate(words)}


def pack_word(word: Word, integers: np.ndarray) -> np.ndarray:
    """The plane of one word, uint16 [G, N], from integers uint8 [G, 32, N]."""
    plane, shift = np.zeros((len(integers), integers.shape[2]), np.uint16), 0
    for field in word:
        value = integers[:, field.element] >> np.uint8(field.low) & np.uint8((1 << field.bits) - 1)
        plane |= value.astype(np.uint16) << np.uint16(shift)
        shift += field.bits
    return plane


def half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The f16 at byte ``at`` of each block: [n_blocks, N]."""
    return (blocks[:, at] | blocks[:, at + 1].astype(np.uint16) << np.uint16(8)).view(np.float16)


def nibbles(blocks: np.ndarray) -> np.ndarray:
    """Bytes [.., n, N] -> [.., 2n, N]: all low nibbles, then all high ones."""
    return np.concatenate([blocks & np.uint8(15), blocks >> np.uint8(4)], axis=-2)


def one_group(d: int, dmin: int | None, high: int | None, low: int) -> Callable[[np.ndarray], Parts]:
    """Reader of a 32-element type of 4 or 5 bits, from the offsets of its parts."""

    def read(blocks: np.ndarray) -> Parts:
        out = {"d": half(blocks, d), "integers": nibbles(blocks[:, low:])}
        if dmin is not None:
            out["dmin"] = -half(blocks, dmin)  # these two types *add* a minimum; a sign is all the difference
        if high is not None:
            bits = np.unpackbits(blocks[:, high:low], axis=1, bitorder="little")  # bit e: the fifth of element e
            out["integers"] |= bits << np.uint8(4)
        return out

    return read


def q8_0(blocks: np.ndarray) -> Parts:
    return {"d": half(blocks, 0), "integers": blocks[:, 2:] ^ np.uint8(128)}


def scales_and_mins(packed: np.ndarray) -> Parts:
    """Q4_K's twelve scale bytes [n_blocks, 12, N] as eight scales and eight mins, uint8 [G, N] each."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    mins = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)
    return {"scale0": scales.reshape(-1, scales.shape[-1]), "min": mins.reshape(-1, mins.shape[-1])}


def q4_k(blocks: np.ndarray) -> Parts:
    """32 bytes hold two groups: the low nibbles one, the high nibbles the next."""
    n_out = blocks.shape[-1]
    integers = nibbles(blocks[:, 16:].reshape(-1, 4, 32, n_out)).reshape(-1, GROUP, n_out)
    return {"integers": integers, **scales_and_mins(blocks[:, 4:16]), "d": half(blocks, 0), "dmin": half(blocks, 2)}


def q5_k(blocks: np.ndarray) -> Parts:
    """As Q4_K; bit g of high byte l is the fifth bit of element l of group g."""
    parts = q4_k(np.delete(blocks, np.s_[16:48], axis=1))
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None, None] & np.uint8(1)  # [n_blocks, g, l, N]
    parts["integers"] |= high.reshape(parts["integers"].shape) << np.uint8(4)
    return parts


def q6_k(blocks: np.ndarray) -> Parts:
    """Half h (of 128), quarter k (of 32), l: nibbles in ql[h, k & 1, l], high ones for k >= 2; pairs in qh[h, l]."""
    n_out = blocks.shape[-1]
    low = nibbles(blocks[:, :128].reshape(-1, 2, 64, n_out)).reshape(-1, 2, 4, 32, n_out)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32, n_out) >> np.array([0, 2, 4, 6], np.uint8)[:, None, None]
    scales = blocks[:, 192:208].view(np.int8).reshape(-1, 2, n_out)
    return {
        "integers": (low | (pairs & np.uint8(3)) << np.uint8(4)).reshape(-1, GROUP, n_out),
        "scale0": scales[:, 0],
        "scale1": scales[:, 1],
        "d": half(blocks, 208),
    }


READERS: dict[str, Callable[[np.ndarray], Parts]] = {
    "Q4_0": one_group(d=0, dmin=None, high=None, low=2),
    "Q4_1": one_group(d=0, dmin=2, high=None, low=4),
    "Q5_0": one_group(d=0, dmin=None, high=2, low=6),
    "Q5_1": one_group(d=0, dmin=2, high=4, low=8),
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
"""From bytes [n_blocks, block_bytes, N] to the parts of ``Parts``, and ``integers``: uint8 [G, 32, N]."""
