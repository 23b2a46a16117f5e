"""The layout of weights on the device: the file's bytes, re-ordered so that *outputs* lie side by side.

A row of a GGUF matrix holds the blocks of one output. A CPU or GPU that multiplies by a vector wants the opposite: the
same element of many outputs next to one another, so that one vector instruction works on all of them. So each
16-bit word of a group becomes an array of its own, a *plane* [n_groups, n_outputs]:

                    one group of 32 elements (Q4_K after re-pairing, Q4_0 as it is)
    bits     0   4   8   12  16                             128
            +---+---+---+---+---+---+---+---+-  -+---+---+
            |e0 |e16|e1 |e17|e2 |e18|e3 |e19| .. |e15|e31|      low[i][g, n] = word i of group g of output n:
            +---+---+---+---+---+---+---+---+-  -+---+---+      elements 2i, 16 + 2i, 2i + 1, 17 + 2i
             word 0          word 1               word 7

    type        group  low planes        high planes                       group scale, min   d, dmin (f16)
    Q4_0, Q4_1     32   8 (4 nibbles)    -                                 -                  each group
    Q5_0, Q5_1     32   8                2: bit k of word i, elem. 16i+k   -                  each group
    Q8_0           32  32 (one byte)     -                                 -                  each group
    Q4_K           32   8                -                                 8-bit, 8-bit       each 8 groups
    Q5_K           32   8                2: as Q5_0                        8-bit, 8-bit       each 8 groups
    Q6_K           16   4                2: bits 2k of word i, elem. 8i+k  signed 8-bit, -    each 16 groups

The integers are the file's own. Only the 6-bit scales of Q4_K and Q5_K are widened to bytes: 148 for 144. Every
weight is ``d·scale·(q − zero) − dmin·min`` with q put together from the planes. Words of 16 bits rather than bytes,
because the arithmetic is in 16 bits: nothing has to be widened, and half as many streams are read (8 to 16 % faster).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from formats.ggml_types import BY_NAME


class Layout(NamedTuple):
    """What the planes of one type mean."""

    group: int
    """Elements that share a scale."""
    zero: int
    """What is subtracted from the stored number."""
    high: str
    """``""``, ``"bits"`` (one more bit an element) or ``"pairs"`` (two more)."""
    activation: str
    """How activations are rounded before an integer dot: ``"Q8_0"``, ``"Q8_1"`` each 32, ``"Q8_K"`` each 256."""


LAYOUTS = {
    "Q4_0": Layout(32, 8, "", "Q8_0"),
    "Q4_1": Layout(32, 0, "", "Q8_1"),
    "Q5_0": Layout(32, 16, "bits", "Q8_0"),
    "Q5_1": Layout(32, 0, "bits", "Q8_1"),
    "Q8_0": Layout(32, 0, "", "Q8_0"),
    "Q4_K": Layout(32, 0, "", "Q8_K"),
    "Q5_K": Layout(32, 0, "bits", "Q8_K"),
    "Q6_K": Layout(16, 32, "pairs", "Q8_K"),
}
"""Types with a plane layout; any other is kept as raw blocks and decoded where it is used."""

Planes = dict[str, np.ndarray]
"""``low`` [n_low, G, N], ``high`` [n_high, G, N] uint16 (Q8_0: uint8), ``scale`` [G, N], ``min`` [G, N] 8-bit,
``d`` and ``dmin`` [G / groups a block, N] f16; G groups along the input, N outputs. Absent where a type has none."""


def planes_of(type_name: str, raw: np.ndarray) -> Planes:
    """Rows of blocks, uint8 [N, row_bytes], re-ordered into planes. The blocks are drawn in ``formats/blocks/``."""
    fields = FIELDS[type_name](raw.reshape(len(raw), -1, BY_NAME[type_name].block_bytes))
    if type_name != "Q8_0":
        fields |= {name: np.ascontiguousarray(fields[name]).view("<u2") for name in ("low", "high") if name in fields}
    return {name: outputs_last(field) for name, field in fields.items()}


def outputs_last(field: np.ndarray) -> np.ndarray:
    """[N, n_blocks, groups a block, words] -> [words, G, N]; [N, n_blocks, groups a block] -> [G, N]."""
    if field.ndim == 4:
        return np.ascontiguousarray(field.reshape(len(field), -1, field.shape[-1]).transpose(2, 1, 0))
    return np.ascontiguousarray(field.reshape(len(field), -1).T)


def half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The f16 at byte ``at`` of each block: [N, n_blocks, 1]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)


def one_group(d: int, dmin: int | None, high: int | None, low: int) -> Callable[[np.ndarray], Planes]:
    """Fields of a 32-element type, from the offsets of its parts."""

    def fields(blocks: np.ndarray) -> Planes:
        out = {"d": half(blocks, d), "low": blocks[:, :, None, low:]}
        if dmin is not None:
            out["dmin"] = -half(blocks, dmin)  # these two types *add* a minimum; a sign is all the difference
        if high is not None:
            out["high"] = blocks[:, :, None, high:low]
        return out

    return fields


def re_paired(qs: np.ndarray) -> np.ndarray:
    """Q4_K's nibbles, 32 bytes for two groups (low: the first), as 16 bytes a group: [N, n_blocks, 8, 16]."""
    runs = qs.reshape(*qs.shape[:2], 4, 32)
    low, high = runs & 15, runs >> 4
    pairs = np.stack([low[..., :16] | low[..., 16:] << 4, high[..., :16] | high[..., 16:] << 4], axis=3)
    return pairs.reshape(*qs.shape[:2], 8, 16)


def six_bits(packed: np.ndarray) -> Planes:
    """Q4_K's twelve scale bytes as eight scales and eight mins: [N, n_blocks, 8] uint8 each."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    return {
        "scale": np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1),
        "min": np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1),
    }


def q4_k(blocks: np.ndarray) -> Planes:
    return {"low": re_paired(blocks[..., 16:]), **six_bits(blocks[..., 4:16]),
            "d": half(blocks, 0), "dmin": half(blocks, 2)}  # fmt: skip


def q5_k(blocks: np.ndarray) -> Planes:
    """As Q4_K; bit g of high byte l belongs to element l of group g, and moves into the bit string of its group."""
    bits = np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little")  # [N, n_blocks, l, g]
    high = np.packbits(bits.swapaxes(-1, -2), axis=-1, bitorder="little")  # [N, n_blocks, g, 4]
    return {**q4_k(np.delete(blocks, np.s_[16:48], axis=-1)), "high": high}


def q6_k(blocks: np.ndarray) -> Planes:
    """Half h (of 128), quarter k (of 32), l: nibbles in ql, pairs in qh; regrouped by 16 consecutive elements."""
    shape = blocks.shape[:2]
    ql = blocks[..., :128].reshape(*shape, 2, 2, 32)  # [half, quarter & 1, l]; high nibble: quarter + 2
    nibbles = np.stack([ql & 15, ql >> 4], axis=3).reshape(*shape, 16, 16)  # [group, element]
    qh = blocks[..., 128:192].reshape(*shape, 2, 1, 32)
    pairs = (qh >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(*shape, 16, 4, 4)
    return {
        "low": nibbles[..., :8] | nibbles[..., 8:] << 4,
        "high": pairs[..., 0] | pairs[..., 1] << 2 | pairs[..., 2] << 4 | pairs[..., 3] << 6,
        "scale": blocks[..., 192:208].view(np.int8),
        "d": half(blocks, 208),
    }


FIELDS: dict[str, Callable[[np.ndarray], Planes]] = {
    "Q4_0": one_group(d=0, dmin=None, high=None, low=2),
    "Q4_1": one_group(d=0, dmin=2, high=None, low=4),
    "Q5_0": one_group(d=0, dmin=None, high=2, low=6),
    "Q5_1": one_group(d=0, dmin=2, high=4, low=8),
    "Q8_0": one_group(d=0, dmin=None, high=None, low=2),
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
