"""Rotary position embedding: tell attention where a token stands by rotating its queries and keys.

Dimension i is paired with dimension i + head_dim/2 (not with its neighbour), and each pair is turned like the
hand of a clock, by an angle proportional to the position. The dot product of a rotated query and a rotated
key then depends only on the distance between them.

Source: Su et al., "RoFormer", 2021, section 3.4; the pairing of halves is that of GPT-NeoX, which Qwen2 uses.
Nothing in a GGUF file says which pairing is meant: it belongs to the architecture.
"""

from __future__ import annotations

import numpy as np


def rotation_angles(positions: np.ndarray, head_dim: int, theta: float) -> np.ndarray:
    """angle[t, i] = position[t] · theta^(-2i / head_dim), i = 0 .. head_dim/2 - 1.

    positions [n_tokens] int -> [n_tokens, head_dim/2] f64, in radians. Always f64: at position 4000 an angle
    kept in f32 is off by 2e-4 rad, which is far more than any other rounding in the model.
    """
    frequencies = theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    return np.outer(positions.astype(np.float64), frequencies)


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(a, b) -> (a·cos − b·sin, b·cos + a·sin) for a = first half, b = second half of every head.

    x [n_tokens, n_heads, head_dim], angles [n_tokens, head_dim/2] f64 -> same shape and dtype as x.
    """
    cos = np.cos(angles).astype(x.dtype)[:, None, :]  # [n_tokens, 1, head_dim/2]: the same for every head
    sin = np.sin(angles).astype(x.dtype)[:, None, :]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
