"""Q6_K: 256 elements in 210 bytes, 16 groups of 16, value = d * scale * (q - 32).

    byte    0                           128                          192          208    210
            +---------------------------+----------------------------+------------+------+
            | ql[128]: two runs of 64,  | qh[64]: two runs of 32,    | scales[16] | d    |
            | low nibbles: the first 64 | bits 0-1: its elements     | int8,      | f16  |
            | elements of a half, high: | 0..31, bits 2-3: 32..63,   | SIGNED     |      |
            | the next 64 (bits 0..3)   | 4-5: 64.., 6-7: 96..       |            |      |
            |                           | (bits 4..5 of q)           |            |      |
            +---------------------------+----------------------------+------------+------+

d comes last. Source: block_q6_K in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves, pack_planes, planes
from assay.formats.blocks.quants import Quants

HALVES_AT = (208,)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 210]`` -> q in -32..31, signed scale in -128..127, 16 groups, no min."""
    bits = planes(blocks[:, 128:192], bits=2, run=32)
    bits <<= np.uint8(4)
    bits |= planes(blocks[:, :128], bits=4, run=64)
    q = bits.view(np.int8)
    q -= np.int8(32)
    return Quants(q, blocks[:, 192:208].view(np.int8), half(blocks, 208))


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 210]``."""
    q = (quants.q + np.int8(32)).view(np.uint8)
    low, high = pack_planes(q, bits=4, run=64), pack_planes(q >> np.uint8(4), bits=2, run=32)
    return np.concatenate([low, high, quants.scale.view(np.uint8), halves(quants.d)], axis=1)
