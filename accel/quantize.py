"""Activations rounded to 8 bits, as llama.cpp rounds them before a quantised matrix product.

Twin of the quantisers in ``reference/block_dot.py``. The integers are held in 16 bits, because that is how they
are multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Quantized(NamedTuple):
    """One token's activations, x ≈ d·q, group by group."""

    q: jax.Array
    """[n_groups, group] int16, values of 8 bits."""
    d: jax.Array
    """[n_groups] f32, the scale of the block that the group is in."""
    sums: jax.Array
    """[n_groups] f32, Σ x of the group as ggml computes it: what a weight's minimum multiplies."""


def quantize(x: jax.Array, activation: str, group: int) -> Quantized:
    """x f32 [in_features] rounded in blocks of ``activation`` (Q8_0, Q8_1: 32, Q8_K: 256), split into groups."""
    if activation == "Q8_K":
        q, d = q8_k(x)
        d = jnp.repeat(d, 256 // group)
        groups = q.reshape(-1, group)
        return Quantized(groups, d, d * groups.astype(jnp.int32).sum(1))
    q, exact_d = q8_0(x)
    d = stored(exact_d)
    sums = q.astype(jnp.int32).sum(1)
    return Quantized(q, d, stored(exact_d * sums) if activation == "Q8_1" else d * sums)


def stored(x: jax.Array) -> jax.Array:
    """What is left of an f32 after being kept as f16."""
    return x.astype(jnp.float16).astype(jnp.float32)


def q8_0(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks of 32: d = max|x|/127, q = round(x/d) with d not yet rounded. x [n] -> [n/32, 32], [n/32]."""
    blocks = x.reshape(-1, 32)
    d = jnp.abs(blocks).max(1, keepdims=True) / 127
    q = jnp.round(blocks * jnp.where(d == 0, 0, 1 / d))
    return q.astype(jnp.int16), d[:, 0]


def q8_k(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks of 256: the element of largest magnitude becomes -127. x [n] -> [n/256, 256], [n/256]."""
    blocks = x.reshape(-1, 256)
    largest = jnp.take_along_axis(blocks, jnp.argmax(jnp.abs(blocks), 1, keepdims=True), 1)
    inverse = jnp.where(largest == 0, 0, -127 / largest)
    q = jnp.minimum(127, jnp.round(blocks * inverse))
    return q.astype(jnp.int16), jnp.where(inverse == 0, 0, 1 / inverse)[:, 0]
