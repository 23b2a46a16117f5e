"""Q4_K and Q5_K: for each group of 32 a scale s and a minimum m >= 0 with x ~ s q - m; 6 bits each, in units of the
block's d and dmin.

For each group, minimise  E(s, m) = sum w (s q - m - x)^2  with weights  w = |x| + sqrt(mean x^2)  over a few candidate
roundings q. A candidate is  q = round(t / (max - low) * (x - low)),  t = highest + first + 0.1 k,  k = 0, 1, ...;
for its q the best s and m solve two linear equations:

    D  = sum w  sum w q q  -  (sum w q)^2
    s  = (sum w  sum w q x  -  sum w x  sum w q) / D
    -m = (sum w q q  sum w x  -  sum w q  sum w q x) / D         and if m < 0:  m = 0,  s = sum w q x / sum w q q

The candidate of least error stays, and its -m is the ``low`` of the candidates after it. At the end scales and minima
are rounded to 6 bits, and q once more to what suits the rounded ones. Source: make_qkx2_quants and
quantize_row_q4_K_ref in ggml-quants.c. Arrays are ``[32, n_groups]``; why the order matters: see rounding.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.formats.blocks.quants import Quants
from assay.formats.quantizers.rounding import TRUSTED, in_order, nearest_int, round_within

GROUP = 32
GROUPS = 8
LARGEST = 63
"""Of a 6-bit scale or minimum."""
STEP = np.float32(0.1)


def q4_k(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 256]`` -> q in 0..15, 21 candidates from t = 14 on."""
    return quants(x, 15, candidates(15, -1.0, 21))


def q5_k(x: np.ndarray) -> Quants:
    """f32 ``[n_blocks, 256]`` -> q in 0..31, 16 candidates from t = 30.5 on."""
    return quants(x, 31, candidates(31, -0.5, 16))


def candidates(highest: int, first: float, count: int) -> list[np.float32]:
    """``t = (first + 0.1 k) + highest`` for k = 0 .. count - 1, each operation in f32."""
    return [np.float32(first) + STEP * np.float32(k) + np.float32(highest) for k in range(count)]


def quants(x: np.ndarray, highest: int, ts: list[np.float32]) -> Quants:
    """f32 ``[n_blocks, 256]`` -> Quants with q in 0..highest; d and dmin are not yet rounded to f16."""
    n_blocks = len(x)
    groups = np.ascontiguousarray(x.reshape(n_blocks * GROUPS, GROUP).T)
    fit = search(groups, highest, ts)
    scale, d = six_bits(fit.scale.reshape(n_blocks, GROUPS))
    minimum, dmin = six_bits(-fit.low.reshape(n_blocks, GROUPS))
    q = requantised(groups, fit, stored(scale, d), stored(minimum, dmin), highest)
    return Quants(q.T.reshape(n_blocks, GROUPS * GROUP), scale, d, minimum, dmin)


class Fit(NamedTuple):
    """What a search found, each f32 ``[n_groups]``: x ~ scale * q + low, q = round(factor * (x - origin))."""

    scale: np.ndarray
    low: np.ndarray
    factor: np.ndarray
    origin: np.ndarray


def search(x: np.ndarray, highest: int, ts: list[np.float32]) -> Fit:
    """The best scale and minimum of every group of x, f32 ``[32, n_groups]``."""
    weight = np.abs(x)
    weight += np.sqrt(in_order(x * x) / np.float32(GROUP))
    sum_w, sum_x = in_order(weight), in_order(weight * x)
    bottom, top = x.min(axis=0), x.max(axis=0)
    low = np.minimum(bottom, np.float32(0))
    flat = low == top  # one number, not above zero: x = low exactly, no candidate does better, and the scale is 0
    factor = np.float32(highest) / span(top, low, flat)
    fit = Fit(np.float32(1) / factor, low.copy(), factor.copy(), low.copy())
    q = levels(x, factor, low, bottom, top, highest)
    best = error(q, fit.scale, fit.low, x, weight)
    for t in ts:
        factor = t / span(top, fit.low, flat)
        q = levels(x, factor, fit.low, bottom, top, highest)
        scale, low, solvable = least_squares(q, x, weight, sum_w, sum_x)
        loss = error(q, scale, low, x, weight)
        better = solvable & (loss < best)
        for kept, new in zip((*fit, best), (scale, low, factor, fit.low.copy(), loss), strict=True):
            np.copyto(kept, new, where=better)
    fit.scale[flat] = fit.factor[flat] = 0
    return fit


def span(top: np.ndarray, low: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """``top - low``, and 1 where that is no use."""
    width = top - low
    width[flat] = 1
    return width


def levels(x: np.ndarray, factor: np.ndarray, origin: np.ndarray, bottom: np.ndarray, top: np.ndarray,
           highest: int) -> np.ndarray:  # fmt: skip
    """``q = round(factor * (x - origin))`` within 0..highest, as f32 ``[32, n_groups]``."""
    farthest = np.abs(factor) * np.maximum(top - origin, np.abs(bottom - origin))
    v = x - origin
    v *= factor
    return round_within(v, 0, highest, trusted=bool((farthest < TRUSTED).all()))


def least_squares(q: np.ndarray, x: np.ndarray, weight: np.ndarray, sum_w: np.ndarray,
                  sum_x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(s, -m, whether D > 0) of the equations above, each ``[n_groups]``. Consumes nothing of its arguments."""
    wq = weight * q
    sum_l = in_order(wq)
    sum_l2 = in_order(wq * q)
    wq *= x
    sum_xl = in_order(wq)
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    above = low > 0
    np.copyto(scale, sum_xl / sum_l2, where=above)
    low[above] = 0
    return scale, low, determinant > 0


def error(q: np.ndarray, scale: np.ndarray, low: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``sum w (scale q + low - x)^2``, f32 ``[n_groups]``."""
    diff = scale * q
    diff += low
    diff -= x
    diff *= diff
    diff *= weight
    return in_order(diff)


def six_bits(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups' scales (or minima), f32 ``[n_blocks, 8]`` -> int8 in 0..63, and the block's d, f32 ``[n_blocks]``.

    ``d = max / 63,  n = round(63 / max * part)``; the conversion to a byte wraps before 63 cuts it off, as in C.
    """
    most = np.maximum(parts.max(axis=1), np.float32(0))
    factor = np.divide(np.float32(LARGEST), most, out=np.zeros_like(most), where=most > 0)
    numbers = nearest_int(factor[:, None] * parts).astype(np.uint8)
    return np.minimum(numbers, np.uint8(LARGEST)).view(np.int8), most / np.float32(LARGEST)


def stored(numbers: np.ndarray, d: np.ndarray) -> np.ndarray:
    """``f16(d) * number``, what a reader will make of them: f32 ``[n_groups]``."""
    return (d.astype(np.float16).astype(np.float32)[:, None] * numbers).reshape(-1)


def requantised(x: np.ndarray, fit: Fit, scale: np.ndarray, minimum: np.ndarray, highest: int) -> np.ndarray:
    """``q = round((x + minimum) / scale)`` within 0..highest, int8 ``[32, n_groups]``.

    Where the stored scale is 0 no q means anything; the search's own stay there, as in ggml.
    """
    v = x + minimum
    v /= scale
    q = round_within(v, 0, highest, trusted=False)
    void = np.flatnonzero(scale == 0)
    if void.size:
        searched = x[:, void] - fit.origin[void]
        searched *= fit.factor[void]
        q[:, void] = round_within(searched, 0, highest, trusted=False)
    return q.astype(np.int8)
