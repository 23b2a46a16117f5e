"""Q4_1: 32 elements in 20 bytes, value = d * q + m.

    byte    0      2      4                                        20
            +------+------+----------------------------------------+
            | d    | m    | qs[0] qs[1] ...                 qs[15] |
            | f16  | f16  | low nibble: element j, high: 16 + j    |
            +------+------+----------------------------------------+

Source: block_q4_1 in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves, pack_planes, planes
from assay.formats.blocks.quants import Quants, one_group

HALVES_AT = (0, 2)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 20]`` -> q in 0..15; the stored m is added, so min = 1 and dmin = -m."""
    q = planes(blocks[:, 4:20], bits=4, run=16).view(np.int8)
    ones = one_group(len(blocks))
    return Quants(q, ones, half(blocks, 0), min=ones, dmin=-half(blocks, 2))


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 20]``; m is -dmin."""
    assert quants.dmin is not None
    q = pack_planes(quants.q.view(np.uint8), bits=4, run=16)
    return np.concatenate([halves(quants.d), halves(-quants.dmin), q], axis=1)
