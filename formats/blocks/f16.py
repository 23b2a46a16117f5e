"""F16: IEEE 754 binary16, little-endian, one element of 2 bytes.

    byte    0               1
            [f f f f f f f f f f  e e e e e  s]
             fraction 10          exponent 5 sign
"""

from __future__ import annotations

import numpy as np


def decode(raw: np.ndarray) -> np.ndarray:
    """uint8 ``[..., 2 * n]`` -> f32 ``[..., n]``; exact, since every f16 (subnormals too) is a normal f32."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """f32 ``[..., n]`` -> uint8 ``[..., 2 * n]``, to nearest, ties to even; above 65519 to infinity."""
    return np.ascontiguousarray(values).astype("<f2").view(np.uint8)
