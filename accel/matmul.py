"""The matrix product with quantised weights: ``matmul(x, stack, layer)``, and nobody else sees a block.

Exact arithmetic (``f32``): a layer's matrix is decoded to f32 inside the compiled step, used, and forgotten,
so the device never holds more than one decoded matrix. Decoding is exact, so only the order of the f32 sums
differs from the oracle's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from accel.blocks import dequantize
from accel.pack import Stack

OUTPUT_SLICES = 32  # the output matrix is decoded in this many slices of rows: whole, it is a gigabyte of f32


def matmul(x: jax.Array, stack: Stack, layer: jax.Array | int) -> jax.Array:
    """W·x[t] for the matrix of ``layer``: x f32 [n_tokens, in_features] -> f32 [n_tokens, out_features]."""

    def of_type(kind: int):
        def product(slot: jax.Array) -> jax.Array:
            raw = lax.dynamic_index_in_dim(stack.blocks[kind], slot, keepdims=False)
            return dot(x, dequantize(stack.types[kind], raw))

        return product

    branches = [of_type(kind) for kind in range(len(stack.types))]
    slot = stack.slot[layer]
    return branches[0](slot) if len(branches) == 1 else lax.switch(stack.kind[layer], branches, slot)


def matmul_tall(x: jax.Array, stack: Stack) -> jax.Array:
    """W·x[t] for a single matrix with very many rows (the output projection), slice of rows by slice."""
    raw = stack.blocks[0][0]
    n_slices = next(n for n in range(OUTPUT_SLICES, 0, -1) if raw.shape[0] % n == 0)
    slices = raw.reshape(n_slices, -1, raw.shape[1])
    parts = lax.map(lambda rows: dot(x, dequantize(stack.types[0], rows)), slices)
    return jnp.moveaxis(parts, 0, 1).reshape(x.shape[0], -1)


def lookup(stack: Stack, ids: jax.Array) -> jax.Array:
    """Rows ``ids`` [n_tokens] of a single matrix (the embedding): f32 [n_tokens, hidden_size]."""
    return dequantize(stack.types[0], stack.blocks[0][0, ids])


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """x·Wᵀ in f32 proper: the default precision of some devices would round the operands first."""
    return lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
