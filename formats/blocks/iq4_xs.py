"""IQ4_XS: 256 elements in 136 bytes, 8 groups of 32, value = d * (scale - 32) * TABLE[index].

    byte    0      2          4             8                                       136
            +------+----------+-------------+---------------------------------------+
            | d    | scales_h | scales_l[4] | qs[128]: eight runs of 16 bytes,      |
            | f16  | u16: bits| nibble g:   | run g holds group g: low nibble:      |
            |      | 4-5 of 8 | bits 0-3 of | its element j, high nibble: 16 + j    |
            |      | scales   | scale g     |                                       |
            +------+----------+-------------+---------------------------------------+

Table of IQ4_NL. Source: block_iq4_xs in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.iq4_nl import TABLE
from assay.formats.blocks.packing import half, planes
from assay.formats.blocks.quants import Quants

HALVES_AT = (0,)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 136]`` -> q from the table, -127..113, signed scale in -32..31, 8 groups, no min."""
    high = planes(blocks[:, 2:4], bits=2, run=1)
    low = planes(blocks[:, 4:8], bits=4, run=1)
    scale = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    q = np.take(TABLE, planes(blocks[:, 8:136], bits=4, run=16))
    return Quants(q, scale, half(blocks, 0))
