"""Rotary position embedding from a table (twin of ``reference/rope.py``).

Angles are made once on the host in f64 and stored as f32 cosines and sines: computing ``position · frequency``
in f32 on the device would be off by 2e-4 rad at position 4000.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def rope_table(n_positions: int, head_dim: int, theta: float) -> jax.Array:
    """[n_positions, 2, head_dim/2] f32: cosines and sines of position · theta^(-2i/head_dim)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    angles = np.arange(n_positions, dtype=np.float64)[:, None] / np.power(theta, exponents)[None, :]
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)


def rotate(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Turn each pair (i, i + head_dim/2) of x [n_tokens, n_heads, head_dim] by the table rows ``turns``.

    turns [n_tokens, 2, head_dim/2]: the rows of :func:`rope_table` at the tokens' positions.
    """
    pairs = x.reshape(*x.shape[:-1], 2, -1)  # [n_tokens, n_heads, (first, second half), head_dim/2]
    cos, sin = turns[:, None, 0], turns[:, None, 1]
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    return jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2).reshape(x.shape)
