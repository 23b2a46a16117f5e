"""BF16: the upper half of an IEEE 754 binary32, little-endian, one element of 2 bytes.

    byte    0              1
            [f f f f f f f  e e e e e e e e  s]      followed by 16 fraction bits that are zero
             fraction 7     exponent 8       sign
"""

from __future__ import annotations

import numpy as np


def decode(raw: np.ndarray) -> np.ndarray:
    """uint8 ``[..., 2 * n]`` -> f32 ``[..., n]``: the 16 stored bits, then 16 zero bits (exact)."""
    bits = np.ascontiguousarray(raw).view("<u2").astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """Finite f32 ``[..., n]`` -> uint8 ``[..., 2 * n]``, to nearest, ties to even; the largest go to infinity.

    Adding 0x7FFF, plus the lowest bit that is kept, carries into the kept half exactly when it must round up.
    """
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    kept = bits >> np.uint32(16)
    rounded = bits + (np.uint32(0x7FFF) + (kept & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2").view(np.uint8)
