"""Activations rounded to 8 bits, as llama.cpp rounds them before a quantised matrix product.

Twin of the quantisers in ``reference/block_dot.py``. The integers are held in 16 bits, because that is how they
are multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Quantized(NamedTuple):
    """Activations of some tokens, x ≈ d·q, in groups of 32."""

    q: jax.Array
    """[n_tokens, n_groups, 32] int16, values of 8 bits."""
    d: jax.Array
    """[n_tokens, n_groups] f32, the scale of the block that the group is in."""
    sums: jax.Array
    """[n_tokens, n_groups] f32, Σ x of the group as ggml computes it: what a weight's minimum multiplies."""


def quantize(x: jax.Array, activation: str) -> Quantized:
    """x f32 [n_tokens, in_features] rounded in blocks of ``activation``: 32 for Q8_0 and Q8_1, 256 for Q8_K."""
    if activation == "Q8_K":
        q, exact_d = q8_k(x)
        d = jnp.broadcast_to(exact_d[:, :, None], (*exact_d.shape, 8)).reshape(len(x), -1)
    else:
        q, exact_d = q8_0(x)
        d = stored(exact_d)
    q = q.reshape(len(x), -1, 32)
    sums = q.astype(jnp.int32).sum(2)
    return Quantized(q, d, stored(exact_d * sums) if activation == "Q8_1" else d * sums)


def stored(x: jax.Array) -> jax.Array:
    """What is left of an f32 after being kept as f16."""
    return x.astype(jnp.float16).astype(jnp.float32)


def q8_0(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks of 32: d = max|x|/127, q = round(x/d), d not yet rounded. x [t, n] -> [t, n/32, 32], [t, n/32]."""
    blocks = x.reshape(len(x), -1, 32)
    d = largest(blocks) / 127
    q = jnp.round(blocks * jnp.where(d == 0, 0, 1 / d)[:, :, None])
    return q.astype(jnp.int16), d


def q8_k(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks of 256: d = 1/(127/max|x|), q = round(x·127/max|x|). x [t, n] -> [t, n/256, 256], [t, n/256].

    ggml gives the largest element -127 whatever its sign, so its d and q may both have the other sign. Everything
    here is symmetric, rounding included: the products d·q are the same bits.
    """
    blocks = x.reshape(len(x), -1, 256)
    peak = largest(blocks)
    inverse = jnp.where(peak == 0, 0, 127 / peak)
    return jnp.round(blocks * inverse[:, :, None]).astype(jnp.int16), jnp.where(inverse == 0, 0, 1 / inverse)


def largest(blocks: jax.Array) -> jax.Array:
    """max|x| along the last axis. Bits of positive floats order as integers do, and a maximum of integers is
    vectorised where that of floats, which must care for NaN, is not; a NaN still comes out as the largest."""
    bits = lax.bitcast_convert_type(jnp.abs(blocks), jnp.int32)
    return lax.bitcast_convert_type(bits.max(-1), jnp.float32)
