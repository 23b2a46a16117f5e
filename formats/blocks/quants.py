"""The integer form that every quantised block type shares.

    value[e] = (d * scale[g]) * q[e]  -  dmin * min[g]          g = e // (elements / n_groups)

A quantised block is a handful of integers and one or two floats. The integers are what an integer dot
product multiplies (llama.cpp's arithmetic), so they are kept exact and apart from the floats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Quants(NamedTuple):
    """Blocks taken apart. ``[...]`` stands for the leading axes, ``[n_blocks]`` or ``[rows, n_blocks]``.

    q:     int8 ``[..., elements]``; the offset of the symmetric types is already subtracted, and the IQ4
           types hold the table's value, not its index
    scale: int8 ``[..., n_groups]``; all ones, one group, where a block has no scales of its own
    d:     f32 ``[...]``, the block's scale (exactly the stored f16)
    min:   int8 ``[..., n_groups]``, or None where the type has no minimum
    dmin:  f32 ``[...]``, the scale of ``min``, or None
    """

    q: np.ndarray
    scale: np.ndarray
    d: np.ndarray
    min: np.ndarray | None = None
    dmin: np.ndarray | None = None


def one_group(n_blocks: int) -> np.ndarray:
    """int8 ``[n_blocks, 1]`` of ones: the group scale (or min) of a type that has only d (or m)."""
    return np.ones((n_blocks, 1), np.int8)


def reassemble(quants: Quants) -> np.ndarray:
    """``(d * scale) * q - dmin * min`` in f32, f32 ``[..., elements]``.

    The products are exact: 11 significand bits of d and at most 12 of scale * q (7 + 5 in Q6_K, 5 + 7 in
    IQ4_XS) fit into 24. Only the subtraction rounds, so every correct decoder returns the same bits.
    """
    q, scale, d, minimum, dmin = quants
    values = q.reshape(*scale.shape, q.shape[-1] // scale.shape[-1]).astype(np.float32)
    values *= (d[..., None] * scale)[..., None]
    if minimum is not None and dmin is not None:
        values -= (dmin[..., None] * minimum)[..., None]
    return values.reshape(q.shape)
