"""Rounding and summing exactly as ggml's C code does, in f32.

A quantiser compares sums of rounded numbers to choose between nearly equal candidates, so the last bit of a sum
decides about whole blocks. To give ggml's bytes, every operation below rounds once, in f32, in the order in which
the C code does it: no product is fused into a sum, and sums run from the first element to the last. Arrays of
groups therefore have the elements along the FIRST axis, ``[elements, n_groups]``: adding row after row sums all
groups at once, each in its own order, where NumPy's sum along a last axis would add pairwise.

ggml's quantisers are compiled for the plainest machine of a family (ggml-quants.c is part of ggml-base, not of the
tuned CPU backend). For x86-64 that has no fused multiply-add, and the bytes are these. A compiler for arm64 may fuse
``a * b + c`` into one rounding, and such a build differs from this one, and from its x86-64 sibling, in rare blocks.
"""

from __future__ import annotations

import numpy as np

MAGIC = np.float32(12582912.0)
"""1.5 * 2**23: f32 of this size are spaced 1 apart, so that adding it rounds to an integer, ties to even."""
TRUSTED = np.float32(2**22 - 1)
"""Below this magnitude MAGIC + v stays in [2**23, 2**24), and rounding by it is exact."""


def nearest_int(v: np.ndarray) -> np.ndarray:
    """ggml's ``nearest_int``: the low 23 bits of ``v + 1.5 * 2**23``, less 2**22; int32 of v's shape.

    v rounded to nearest, ties to even, where ``|v| < 2**22``. What is larger, infinite or NaN gives what those
    bits happen to be, as in C: such v come of groups that are flat up to a rounding, or subnormal.
    """
    return ((v + MAGIC).view(np.int32) & np.int32(0x7FFFFF)) - np.int32(0x400000)


def round_within(v: np.ndarray, low: int, high: int, *, trusted: bool) -> np.ndarray:
    """``clip(nearest_int(v), low, high)`` as f32, in place of v. ``trusted``: |v| < TRUSTED, so rint will do."""
    if trusted:
        np.rint(v, out=v)
    else:
        v[...] = nearest_int(v)
    return np.clip(v, np.float32(low), np.float32(high), out=v)


def round_half_away(v: np.ndarray) -> np.ndarray:
    """C's ``roundf``: to nearest, ties away from zero. ``t + trunc(2 (v - t))`` with ``t = trunc(v)``, all exact."""
    whole = np.trunc(v)
    rest = v - whole
    rest *= np.float32(2)
    whole += np.trunc(rest, out=rest)
    return whole


def in_order(terms: np.ndarray) -> np.ndarray:
    """``((t[0] + t[1]) + t[2]) + ...`` along the first axis: f32 ``[elements, n_groups]`` -> f32 ``[n_groups]``.

    NumPy adds row to row when there are at least two columns, and pairwise when there is one; hence the demand.
    """
    assert terms.shape[1] > 1, "a sum over one group would be pairwise"
    return np.add.reduce(terms, axis=0)
