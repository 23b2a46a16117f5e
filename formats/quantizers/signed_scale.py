"""Q6_K: for each group of 16 a signed scale s with x ~ s q, q in -32..31; scales are 8 bits of the block's d.

For each group, maximise  (sum w x q)^2 / sum w q q  with weights  w = x^2,  which for the best scale,
s = sum w x q / sum w q q,  is the same as minimising  sum w (x - s q)^2.  The candidates are  q = round(-t / p * x),
p the element of largest magnitude with its sign, t = 32 first and then 32 + 0.1 k, k = -9 .. 9. The block's d makes
the largest scale -128.
Source: make_qx_quants and quantize_row_q6_K_ref in ggml-quants.c. Arrays are ``[16, n_groups]``: see rounding.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.formats.blocks.quants import Quants
from assay.formats.quantizers.rounding import in_order, nearest_int, round_within

GROUP = 16
GROUPS = 16
LOWEST, HIGHEST = -32, 31
NOTHING = np.float32(1e-15)
"""Groups and blocks whose largest magnitude is below this are stored as zeros."""
TS = [np.float32(32) + np.float32(0.1) * np.float32(k) for k in range(-9, 10) if k]


def q6_k(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 256]`` -> Quants; d is not yet rounded to f16."""
    n_blocks = len(x)
    groups = np.ascontiguousarray(x.reshape(n_blocks * GROUPS, GROUP).T)
    fit = search(groups)
    numbers, d = eight_bits(fit.scale.reshape(n_blocks, GROUPS))
    stored = (d.astype(np.float16).astype(np.float32)[:, None] * numbers).reshape(-1)
    q = requantised(groups, fit, stored)
    q.reshape(GROUP, n_blocks, GROUPS)[:, d == 0] = LOWEST  # a block of nothing is all zero bytes
    return Quants(q.T.reshape(n_blocks, GROUPS * GROUP), numbers, d)


class Fit(NamedTuple):
    """What a search found, each f32 ``[n_groups]``: x ~ scale * q, q = round(factor * x)."""

    scale: np.ndarray
    factor: np.ndarray


def search(x: np.ndarray) -> Fit:
    """The best scale of every group of x, f32 ``[16, n_groups]``."""
    peak = x[np.abs(x).argmax(axis=0), np.arange(x.shape[1])]
    nothing = np.abs(peak) < NOTHING
    peak[nothing] = 1
    weight = x * x
    wx = weight * x
    factor = np.float32(LOWEST) / peak
    sum_xl, sum_l2 = sums(x, factor, weight, wx)
    scale = np.divide(sum_xl, sum_l2, out=np.zeros_like(sum_xl), where=sum_l2 != 0)
    fit, best = Fit(scale, factor), scale * sum_xl
    for t in TS:
        factor = -t / peak
        sum_xl, sum_l2 = sums(x, factor, weight, wx)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        scale = sum_xl / sum_l2
        for kept, new in zip((*fit, best), (scale, factor, scale * sum_xl), strict=True):
            np.copyto(kept, new, where=better)
    fit.scale[nothing] = 0
    return fit


def sums(x: np.ndarray, factor: np.ndarray, weight: np.ndarray, wx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``sum w x q`` and ``sum w q q`` for ``q = round(factor * x)``, each f32 ``[n_groups]``."""
    q = round_within(factor * x, LOWEST, HIGHEST, trusted=True)  # |factor * x| <= 32.9
    wqq = weight * q
    wqq *= q
    sum_l2 = in_order(wqq)
    q *= wx
    return in_order(q), sum_l2


def eight_bits(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups' scales, f32 ``[n_blocks, 16]`` -> int8 in -128..127, and the block's d, f32 ``[n_blocks]``.

    ``d = 1 / f,  n = min(round(f * scale), 127)``  with  ``f = -128 / the scale of largest magnitude``.
    """
    largest = scales[np.arange(len(scales)), np.abs(scales).argmax(axis=1)]
    nothing = np.abs(largest) < NOTHING
    largest[nothing] = 1
    factor = np.float32(-128) / largest
    numbers = np.minimum(nearest_int(factor[:, None] * scales), np.int32(127)).astype(np.int8)
    d = np.float32(1) / factor
    numbers[nothing] = d[nothing] = 0
    return numbers, d


def requantised(x: np.ndarray, fit: Fit, scale: np.ndarray) -> np.ndarray:
    """``q = round(x / scale)`` within -32..31, int8 ``[16, n_groups]``; where the scale is 0 the search's own q."""
    q = round_within(x / scale, LOWEST, HIGHEST, trusted=False)
    void = np.flatnonzero(scale == 0)
    if void.size:
        searched = round_within(fit.factor[void] * x[:, void], LOWEST, HIGHEST, trusted=False)
        q[:, void] = np.where(fit.scale[void] == 0, np.float32(LOWEST), searched)  # nothing: zero bytes
    return q.astype(np.int8)
