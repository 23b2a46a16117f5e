"""Q4_K: 256 elements in 144 bytes, 8 groups of 32, value = d * scale * q - dmin * min.

    byte    0      2      4                16                                     144
            +------+------+----------------+--------------------------------------+
            | d    | dmin | scales[12]     | qs[128]: four runs of 32 bytes,      |
            | f16  | f16  | (below)        | low nibbles of run c: group 2c,      |
            |      |      |                | high nibbles: group 2c + 1           |
            +------+------+----------------+--------------------------------------+

    scales  eight 6-bit scales and eight 6-bit mins, of groups 0..3 (A, a) and 4..7 (E, e)

            bit          7 6 5 4 3 2 1 0
            byte 0..3    E E A A A A A A      E: bits 4-5 of scale 4 + k;  A: scale k
            byte 4..7    e e a a a a a a      e: bits 4-5 of min 4 + k;    a: min k
            byte 8..11   e e e e E E E E      bits 0-3 of min and scale 4 + k

Source: block_q4_K in ggml-common.h, get_scale_min_k4 in ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves, pack_planes, planes
from assay.formats.blocks.quants import Quants

HALVES_AT = (0, 2)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 144]`` -> q in 0..15, scale and min in 0..63, 8 groups."""
    q = planes(blocks[:, 16:144], bits=4, run=32).view(np.int8)
    scale, minimum = scales_and_mins(blocks[:, 4:16])
    return Quants(q, scale, half(blocks, 0), minimum, half(blocks, 2))


def scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 12 bytes of 6-bit numbers, uint8 ``[n_blocks, 12]`` -> two int8 ``[n_blocks, 8]`` in 0..63."""
    first = packed[:, :8] & np.uint8(63)
    top = packed[:, :8] >> np.uint8(6) << np.uint8(4)
    last = packed[:, 8:]
    scale = np.concatenate([first[:, :4], (last & np.uint8(15)) | top[:, :4]], axis=1)
    minimum = np.concatenate([first[:, 4:], (last >> np.uint8(4)) | top[:, 4:]], axis=1)
    return scale.view(np.int8), minimum.view(np.int8)


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 144]``."""
    assert quants.min is not None
    assert quants.dmin is not None
    scales = pack_scales_and_mins(quants.scale, quants.min)
    q = pack_planes(quants.q.view(np.uint8), bits=4, run=32)
    return np.concatenate([halves(quants.d), halves(quants.dmin), scales, q], axis=1)


def pack_scales_and_mins(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """The inverse of `scales_and_mins`: two int8 ``[n_blocks, 8]`` in 0..63 -> uint8 ``[n_blocks, 12]``."""
    first = np.concatenate([scale[:, :4], minimum[:, :4]], axis=1).view(np.uint8)
    last = np.concatenate([scale[:, 4:], minimum[:, 4:]], axis=1).view(np.uint8)
    top = last >> np.uint8(4) << np.uint8(6)
    return np.concatenate([first | top, pack_planes(last, bits=4, run=4)], axis=1)
