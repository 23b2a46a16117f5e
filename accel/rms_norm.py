"""Root-mean-square normalisation (twin of ``reference/rms_norm.py``)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """x · rsqrt(mean(x²) + eps) · gain over the last axis, in f32. x [n_tokens, hidden_size]."""
    mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean_square + eps) * gain
