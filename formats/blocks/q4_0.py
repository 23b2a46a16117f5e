"""Q4_0: 32 elements in 18 bytes, value = d * (q - 8).

    byte    0      2                                        18
            +------+----------------------------------------+
            | d    | qs[0] qs[1] ...                 qs[15] |
            | f16  | low nibble: element j, high: 16 + j    |
            +------+----------------------------------------+

Source: block_q4_0 in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves, pack_planes, planes
from assay.formats.blocks.quants import Quants, one_group

HALVES_AT = (0,)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 18]`` -> q in -8..7, no group scales, no min."""
    q = planes(blocks[:, 2:18], bits=4, run=16).view(np.int8)
    q -= np.int8(8)
    return Quants(q, one_group(len(blocks)), half(blocks, 0))


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 18]``."""
    q = (quants.q + np.int8(8)).view(np.uint8)
    return np.concatenate([halves(quants.d), pack_planes(q, bits=4, run=16)], axis=1)
