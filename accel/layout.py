"""The layout of weights on the device: the file's integers in 16-bit words, *outputs* side by side.

A row of a GGUF matrix holds the blocks of one output. A CPU or GPU that multiplies by a vector wants the opposite: the
same element of many outputs next to one another, so that one vector instruction works on all of them. So the
integers of each group of 32 elements are put into words of 16 bits, and each word of a group becomes an array of
its own, of *packed words* [n_groups, n_outputs].

How the integers share words depends only on their width; bit 0 is on the left:

    4 bits   8 words    | e  |e+16|e+1 |e+17|           four a word, e even: what two bytes of Q4_0 are already
    5 bits  10 words    |  e  |  e  |  e  |1|           three a word; every sixteenth element is spread over the
                                                        top bits of five words, bit k in word k
    6 bits  12 words    |  e   |  e   | 4  |            two a word; the top four bits of three words hold two more:
                        |  e   |  e   | 4  |            the low nibble of the one, the low nibble of the other,
                        |  e   |  e   |2 |2 |           and the high pair of either
    8 bits  16 words    |   e    |   e    |             two a word

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
separately: that made Q5_0 1.4, Q8_0 1.5 and Q6_K 1.1 times faster than arrays of nibbles, bits and bytes.

Packing goes by 16-bit words as well. The file keeps neighbouring elements in neighbouring bytes, so two bytes of it
hold a *pair* of integers, one in either byte, and every word is made of pairs shifted, masked and laid together:
half the elements to transpose, and two fields for the price of one wherever both move alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, reduce
from operator import or_
from typing import NamedTuple

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME

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
    """The packed words, in runs: the products of one run are summed in 16 bits."""
    bits: int
    zero: int
    """What is subtracted from the stored integer."""
    activation: str
    """How activations are rounded before an integer dot: ``"Q8_0"``, ``"Q8_1"`` each 32, ``"Q8_K"`` each 256."""
    n_scales: int = 1
    """Dots that a group is divided into, each with a scale of its own."""


def four_bits(first: int) -> tuple[Word, ...]:
    """16 elements in 4 words."""
    return tuple(tuple(Field(4, first + 2 * k + i) for i in (0, 16, 1, 17)) for k in range(4))


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


FOUR = tuple(four_bits(first) for first in (0, 8))
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
"""Types with a layout of packed words; any other is kept as raw blocks and decoded where it is used."""

Parts = dict[str, np.ndarray]
"""``word0`` .. [G, N] uint16, ``scale0`` .. and ``min`` [G, N] 8-bit, ``d`` and ``dmin`` [G / groups a block, N] f16; G
groups along the input, N outputs. Absent where a type has none."""


def parts_of(type_name: str, raw: np.ndarray) -> Parts:
    """Rows of blocks, uint8 [N, row_bytes], as packed words. The blocks are drawn in ``formats/blocks/``.

    The bytes are transposed first, two at a time; all else is elementwise along the outputs.
    """
    layout, block_bytes = LAYOUTS[type_name], BY_NAME[type_name].block_bytes
    parts = READERS[type_name](np.ascontiguousarray(raw.view("<u2").T).reshape(-1, block_bytes // 2, len(raw)))
    pairs = parts.pop("pairs")
    for moves, numbers in alike(layout):
        words = lay_together(moves, pairs)
        parts |= {f"word{number}": words[:, i] for i, number in enumerate(numbers)}
    return parts


class Move(NamedTuple):
    """Bits ``mask`` of each of some pairs, moved ``shift`` bits to the left."""

    shift: int
    mask: int
    pairs: slice


@cache
def alike(layout: Layout) -> list[tuple[list[Move], list[int]]]:
    """How words are made of pairs, those together that are made alike: (moves, numbers of the words)."""
    patterns: dict[tuple[tuple[int, int], ...], list[tuple[int, list[int]]]] = {}
    for number, word in enumerate(word for run in layout.words for word in run):
        taken: dict[tuple[int, int], int] = {}  # (pair, shift) -> mask: fields that move together are one
        at = 0
        for field in word:
            pair, place = field.element // 2, 8 * (field.element % 2) + field.low
            taken[pair, at - place] = taken.get((pair, at - place), 0) | ((1 << field.bits) - 1) << place
            at += field.bits
        pattern = tuple((shift, mask) for (_, shift), mask in taken.items())
        patterns.setdefault(pattern, []).append((number, [pair for pair, _ in taken]))
    whole = ((1 << layout.bits) - 1) * 0x101  # all that a pair may have: no mask needed
    return [
        ([Move(shift, 0 if mask == whole else mask, evenly_spaced(pairs))
          for (shift, mask), pairs in zip(pattern, zip(*(pairs for _, pairs in words), strict=True), strict=True)],
         [number for number, _ in words])
        for pattern, words in patterns.items()
    ]  # fmt: skip


def lay_together(moves: Sequence[Move], pairs: np.ndarray) -> np.ndarray:
    """Words made alike, uint16 [G, n_words, N], from pairs uint16 [G, 16, N]."""

    def moved(move: Move) -> np.ndarray:
        part = pairs[:, move.pairs]
        if move.mask:
            part = part & np.uint16(move.mask)
        if move.shift:
            part = part << np.uint16(move.shift) if move.shift > 0 else part >> np.uint16(-move.shift)
        return part

    return reduce(or_, map(moved, moves))


def evenly_spaced(numbers: Sequence[int]) -> slice:
    """The slice that selects these ascending numbers: a view, not a copy."""
    step = numbers[1] - numbers[0]
    assert list(numbers) == list(range(numbers[0], numbers[-1] + 1, step))
    return slice(numbers[0], numbers[-1] + 1, step)


LOW = np.uint16(0x0F0F)
"""The low nibble of either byte."""


def nibbles(blocks: np.ndarray) -> np.ndarray:
    """Words [.., n, N] -> [.., 2n, N]: the low nibbles of all, then the high ones."""
    return np.concatenate([blocks & LOW, blocks >> np.uint16(4) & LOW], axis=-2)


def bytes_of(blocks: np.ndarray) -> np.ndarray:
    """Words [n_blocks, n, N] -> their bytes in order, uint8 [n_blocks, 2n, N]."""
    both = np.stack([blocks & np.uint16(255), blocks >> np.uint16(8)], axis=2)
    return both.astype(np.uint8).reshape(len(blocks), -1, blocks.shape[-1])


def one_group(*, dmin: bool, fifth: bool) -> Callable[[np.ndarray], Parts]:
    """Reader of a 32-element type of 4 or 5 bits: d, perhaps dmin, perhaps 32 fifth bits, then nibbles."""

    def read(blocks: np.ndarray) -> Parts:
        out = {"d": blocks[:, 0].view(np.float16), "pairs": nibbles(blocks[:, 1 + dmin + 2 * fifth :])}
        if dmin:
            out["dmin"] = -blocks[:, 1].view(np.float16)  # these types *add* a minimum; a sign is all the difference
        if fifth:  # bit e of 32: element e's
            at = np.arange(8, dtype=np.uint16)[:, None] * np.uint16(2)
            two = blocks[:, 1 + dmin : 3 + dmin, None] >> at  # [n_blocks, 2, 8, N]: a pair's bits lowest
            out["pairs"] |= ((two & 1) << 4 | (two & 2) << 11).reshape(out["pairs"].shape)
        return out

    return read


def q8_0(blocks: np.ndarray) -> Parts:
    return {"d": blocks[:, 0].view(np.float16), "pairs": blocks[:, 1:] ^ np.uint16(0x8080)}


def scales_and_mins(packed: np.ndarray) -> Parts:
    """Q4_K's twelve scale bytes, words [n_blocks, 6, N], as eight scales and eight mins, uint8 [G, N] each."""
    a, b, c = np.split(bytes_of(packed), 3, axis=1)
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    mins = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)
    return {"scale0": scales.reshape(-1, scales.shape[-1]), "min": mins.reshape(-1, mins.shape[-1])}


def q4_k(blocks: np.ndarray, quants: int = 8) -> Parts:
    """32 bytes hold two groups: the low nibbles one, the high nibbles the next. They begin at word ``quants``."""
    n_out = blocks.shape[-1]
    return {
        "pairs": nibbles(blocks[:, quants:].reshape(-1, 16, n_out)).reshape(-1, 16, n_out),
        **scales_and_mins(blocks[:, 2:8]),
        "d": blocks[:, 0].view(np.float16),
        "dmin": blocks[:, 1].view(np.float16),
    }


def q5_k(blocks: np.ndarray) -> Parts:
    """As Q4_K; bit g of high byte l is the fifth bit of element l of group g."""
    parts = q4_k(blocks, 24)
    high = blocks[:, None, 8:24] >> np.arange(8, dtype=np.uint16)[:, None, None] & np.uint16(0x0101)
    parts["pairs"] |= high.reshape(parts["pairs"].shape) << np.uint16(4)
    return parts


def q6_k(blocks: np.ndarray) -> Parts:
    """Half h (of 128), quarter k (of 32), l: nibbles in ql[h, k & 1, l] (high: k >= 2), top bits in qh[h, l]."""
    n_out = blocks.shape[-1]
    low = nibbles(blocks[:, :64].reshape(-1, 32, n_out)).reshape(-1, 2, 4, 16, n_out)
    top = blocks[:, 64:96].reshape(-1, 2, 1, 16, n_out) >> np.array([0, 2, 4, 6], np.uint16)[:, None, None]
    low |= (top & np.uint16(0x0303)) << np.uint16(4)
    scales = bytes_of(blocks[:, 96:104]).view(np.int8).reshape(-1, 2, n_out)
    return {
        "pairs": low.reshape(-1, 16, n_out),
        "scale0": scales[:, 0],
        "scale1": scales[:, 1],
        "d": blocks[:, 104].view(np.float16),
    }


READERS: dict[str, Callable[[np.ndarray], Parts]] = {
    "Q4_0": one_group(dmin=False, fifth=False),
    "Q4_1": one_group(dmin=True, fifth=False),
    "Q5_0": one_group(dmin=False, fifth=True),
    "Q5_1": one_group(dmin=True, fifth=True),
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
"""From words [n_blocks, block_bytes / 2, N] to the parts of ``Parts``, and ``pairs``: uint16 [G, 16, N], elements 2j
and 2j + 1 of a group in the low and the high byte."""
