"""Q2_K: 256 elements in 84 bytes, 16 groups of 16, value = d * scale * q - dmin * min.

    byte    0                 16                            80     82     84
            +-----------------+-----------------------------+------+------+
            | scales[16]      | qs[64]: two runs of 32,     | d    | dmin |
            | low nibble:     | bits 0-1 of a run: its      | f16  | f16  |
            | scale of group, | elements 0..31, bits 2-3:   |      |      |
            | high: its min   | 32..63, 4-5: 64.., 6-7: 96..|      |      |
            +-----------------+-----------------------------+------+------+

d and dmin come last here. Source: block_q2_K in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, planes
from assay.formats.blocks.quants import Quants

HALVES_AT = (80, 82)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 84]`` -> q in 0..3, scale and min in 0..15, 16 groups."""
    q = planes(blocks[:, 16:80], bits=2, run=32).view(np.int8)
    scale_min = planes(blocks[:, :16], bits=4, run=16).view(np.int8)
    return Quants(q, scale_min[:, :16], half(blocks, 80), scale_min[:, 16:], half(blocks, 82))
