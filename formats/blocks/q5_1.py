"""Q5_1: 32 elements in 24 bytes, value = d * q + m.

    byte    0      2      4               8                                        24
            +------+------+---------------+----------------------------------------+
            | d    | m    | qh            | qs[0] qs[1] ...                 qs[15] |
            | f16  | f16  | u32, bit e is | low nibble: element j, high: 16 + j    |
            |      |      | bit 4 of q[e] | (bits 0..3 of q)                       |
            +------+------+---------------+----------------------------------------+

Source: block_q5_1 in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves
from assay.formats.blocks.q5_0 import five_bits, pack_five_bits
from assay.formats.blocks.quants import Quants, one_group

HALVES_AT = (0, 2)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 24]`` -> q in 0..31; the stored m is added, so min = 1 and dmin = -m."""
    q = five_bits(blocks[:, 4:8], blocks[:, 8:24])
    ones = one_group(len(blocks))
    return Quants(q, ones, half(blocks, 0), min=ones, dmin=-half(blocks, 2))


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 24]``; m is -dmin."""
    assert quants.dmin is not None
    return np.concatenate([halves(quants.d), halves(-quants.dmin), *pack_five_bits(quants.q)], axis=1)
