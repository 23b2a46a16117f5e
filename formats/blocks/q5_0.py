"""Q5_0: 32 elements in 22 bytes, value = d * (q - 16).

    byte    0      2               6                                        22
            +------+---------------+----------------------------------------+
            | d    | qh            | qs[0] qs[1] ...                 qs[15] |
            | f16  | u32, bit e is | low nibble: element j, high: 16 + j    |
            |      | bit 4 of q[e] | (bits 0..3 of q)                       |
            +------+---------------+----------------------------------------+

Source: block_q5_0 in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, halves, pack_planes, planes
from assay.formats.blocks.quants import Quants, one_group

HALVES_AT = (0,)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 22]`` -> q in -16..15, no group scales, no min."""
    q = five_bits(blocks[:, 2:6], blocks[:, 6:22])
    q -= np.int8(16)
    return Quants(q, one_group(len(blocks)), half(blocks, 0))


def five_bits(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """qh uint8 ``[n_blocks, 4]`` and qs uint8 ``[n_blocks, 16]`` -> int8 ``[n_blocks, 32]`` in 0..31."""
    q = np.unpackbits(high, axis=-1, bitorder="little")
    q <<= np.uint8(4)
    q |= planes(low, bits=4, run=16)
    return q.view(np.int8)


def pack(quants: Quants) -> np.ndarray:
    """The inverse of `unpack`: uint8 ``[n_blocks, 22]``."""
    return np.concatenate([halves(quants.d), *pack_five_bits(quants.q + np.int8(16))], axis=1)


def pack_five_bits(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `five_bits`: int8 ``[n_blocks, 32]`` in 0..31 -> qh and qs."""
    bits = q.view(np.uint8)
    return np.packbits(bits >> np.uint8(4), axis=-1, bitorder="little"), pack_planes(bits, bits=4, run=16)
