"""Q8_0: 32 elements in 34 bytes, value = d * q.

    byte    0      2                                  34
            +------+----------------------------------+
            | d    | qs[0] qs[1] ...           qs[31] |
            | f16  | int8, signed, element j          |
            +------+----------------------------------+

Source: block_q8_0 in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves
from assay.formats.blocks.quants import Quants, one_group

HALVES_AT = (0,)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 34]`` -> q in -128..127 (a view of the bytes), no group scales, no min."""
    return Quants(blocks[:, 2:34].view(np.int8), one_group(len(blocks)), half(blocks, 0))


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 34]``."""
    return np.concatenate([halves(quants.d), quants.q.view(np.uint8)], axis=1)
