"""Q3_K: 256 elements in 110 bytes, 16 groups of 16, value = d * (scale - 32) * (q - 4).

    byte    0                 32                            96              108    110
            +-----------------+-----------------------------+---------------+------+
            | hmask[32]       | qs[64]: two runs of 32,     | scales[12]    | d    |
            | bit i of byte j | bits 0-1 of a run: its      | (below)       | f16  |
            | is bit 2 of q   | elements 0..31, bits 2-3:   |               |      |
            | of 32 i + j     | 32..63, 4-5: 64.., 6-7: 96..|               |      |
            +-----------------+-----------------------------+---------------+------+

    scales  bytes 0..7:   low nibble: bits 0-3 of scale k, high nibble: of scale 8 + k
            bytes 8..11:  bits 4-5 of scale k in bits 0-1, of 4 + k in 2-3, of 8 + k in 4-5, of 12 + k in 6-7

A clear mask bit is often told as "subtract 4": the same as the third bit of an offset-4 number. d comes last.
Source: block_q3_K in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, planes
from assay.formats.blocks.quants import Quants

HALVES_AT = (108,)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 110]`` -> q in -4..3, signed scale in -32..31, 16 groups, no min."""
    q = planes(blocks[:, :32], bits=1, run=32)
    q <<= np.uint8(2)
    q |= planes(blocks[:, 32:96], bits=2, run=32)
    low = planes(blocks[:, 96:104], bits=4, run=8)
    high = planes(blocks[:, 104:108], bits=2, run=4)
    scale = low | high << np.uint8(4)
    return Quants(q.view(np.int8) - np.int8(4), scale.view(np.int8) - np.int8(32), half(blocks, 108))
