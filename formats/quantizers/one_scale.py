"""Q4_0, Q5_0, Q8_0: one scale a block; Q4_1, Q5_1: one scale and one minimum a block. No search.

    Q4_0, Q5_0    d = p / -L       p: the element of largest magnitude, with its sign; L = 8, 16
                  q = trunc(x * (1/d) + L + 1/2), at most 2 L - 1        so p itself becomes -L, the longer side
    Q8_0          d = max|x| / 127
                  q = round(x * (1/d)), ties away from zero
    Q4_1, Q5_1    d = (max - min) / H,  m = min                          H = 15, 31
                  q = trunc((x - min) * (1/d) + 1/2), at most H

The integers are those that suit d in f32, though d is stored as f16: ggml divides before it rounds. Multiplying by
1/d is not dividing by d. Source: quantize_row_*_ref in ggml-quants.c.

A block whose d is so small that 1/d is infinite gets the integers that C makes of infinity on x86-64: 0. (NumPy's own
conversion gives what the machine gives.)
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.quants import Quants, one_group
from assay.formats.quantizers.rounding import round_half_away

HALF = np.float32(0.5)
ZERO = np.float32(0)
"""Adding it makes +0 of -0 and changes nothing else."""


def q4_0(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 32]`` -> q in -8..7."""
    return centred(x, 8)


def q5_0(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 32]`` -> q in -16..15."""
    return centred(x, 16)


def q8_0(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 32]`` -> q in -127..127."""
    d = np.abs(x).max(axis=1) / np.float32(127)
    q = round_half_away(without_infinities(x * inverse(d)[:, None], d))
    return Quants(q.astype(np.int8), one_group(len(x)), d)


def q4_1(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 32]`` -> q in 0..15, and the minimum."""
    return above_minimum(x, 15)


def q5_1(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 32]`` -> q in 0..31, and the minimum."""
    return above_minimum(x, 31)


def centred(x: np.ndarray, levels: int) -> Quants:
    """``d = p / -levels``, ``q = min(trunc(x / d + levels + 1/2), 2 levels - 1) - levels``."""
    d = peak(x) / np.float32(-levels)
    v = x * inverse(d)[:, None]
    v += np.float32(levels) + HALF
    q = np.minimum(without_infinities(v, d).astype(np.int8), np.int8(2 * levels - 1))
    q -= np.int8(levels)
    return Quants(q, one_group(len(x)), d)


def above_minimum(x: np.ndarray, highest: int) -> Quants:
    """``d = (max - min) / highest``, ``q = min(trunc((x - min) / d + 1/2), highest)``; value = d q + min."""
    low = minimum(x)
    d = (x.max(axis=1) - low + ZERO) / np.float32(highest)
    v = x - low[:, None]
    v *= inverse(d)[:, None]
    v += HALF
    q = np.minimum(without_infinities(v, d).astype(np.int8), np.int8(highest))
    ones = one_group(len(x))
    return Quants(q, ones, d, ones, -low)


def peak(x: np.ndarray) -> np.ndarray:
    """The element of largest magnitude of each row, with its sign; the first of several; +0 for -0: ``[n_blocks]``."""
    high, low = x.max(axis=1), x.min(axis=1)
    peaks = np.where(high > -low, high, low)
    tied = np.flatnonzero(high == -low)
    if tied.size:
        first = np.abs(x[tied]).argmax(axis=1)
        peaks[tied] = x[tied, first]
    return peaks + ZERO


def minimum(x: np.ndarray) -> np.ndarray:
    """The least element of each row, and of several zeros the first, whose sign goes into the file: ``[n_blocks]``."""
    low = x.min(axis=1)
    zero = np.flatnonzero(low == 0)
    if zero.size:
        low[zero] = x[zero, (x[zero] == 0).argmax(axis=1)]
    return low


def inverse(d: np.ndarray) -> np.ndarray:
    """1/d, and 0 for 0."""
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def without_infinities(v: np.ndarray, d: np.ndarray) -> np.ndarray:
    """v, f32 ``[n_blocks, 32]``, with 0 in the blocks whose 1/d is infinite."""
    dead = np.isinf(inverse(d))
    if dead.any():
        v[dead] = 0
    return v
