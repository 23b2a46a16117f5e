"""Q5_K: 256 elements in 176 bytes, 8 groups of 32, value = d * scale * q - dmin * min.

    byte    0      2      4            16                  48                               176
            +------+------+------------+-------------------+--------------------------------+
            | d    | dmin | scales[12] | qh[32]            | qs[128]: four runs of 32 bytes,|
            | f16  | f16  | as in Q4_K | bit g of byte j:  | low nibbles of run c: group 2c,|
            |      |      |            | bit 4 of q of     | high nibbles: group 2c + 1     |
            |      |      |            | element 32 g + j  | (bits 0..3 of q)               |
            +------+------+------------+-------------------+--------------------------------+

Source: block_q5_K in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves, pack_planes, planes
from assay.formats.blocks.q4_k import pack_scales_and_mins, scales_and_mins
from assay.formats.blocks.quants import Quants

HALVES_AT = (0, 2)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 176]`` -> q in 0..31, scale and min in 0..63, 8 groups."""
    q = planes(blocks[:, 16:48], bits=1, run=32)
    q <<= np.uint8(4)
    q |= planes(blocks[:, 48:176], bits=4, run=32)
    scale, minimum = scales_and_mins(blocks[:, 4:16])
    return Quants(q.view(np.int8), scale, half(blocks, 0), minimum, half(blocks, 2))


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 176]``."""
    assert quants.min is not None
    assert quants.dmin is not None
    q = quants.q.view(np.uint8)
    high, low = pack_planes(q >> np.uint8(4), bits=1, run=32), pack_planes(q, bits=4, run=32)
    scales = pack_scales_and_mins(quants.scale, quants.min)
    return np.concatenate([halves(quants.d), halves(quants.dmin), scales, high, low], axis=1)
