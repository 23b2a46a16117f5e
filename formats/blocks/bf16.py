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
