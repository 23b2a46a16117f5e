"""F32: IEEE 754 binary32, little-endian, one element of 4 bytes.

    byte    0               1               2               3
            [f f f f f f f f f f f f f f f f f f f f f f f  e e e e e e e e  s]
             fraction 23 bits                               exponent 8       sign
"""

from __future__ import annotations

import numpy as np


def decode(raw: np.ndarray) -> np.ndarray:
    """uint8 ``[..., 4 * n]`` -> f32 ``[..., n]``: a copy of the same bits, NaN payloads included."""
    return np.ascontiguousarray(raw).view("<f4").astype(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """f32 ``[..., n]`` -> uint8 ``[..., 4 * n]``: the same bits."""
    return np.ascontiguousarray(values, "<f4").view(np.uint8)
