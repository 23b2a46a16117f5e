"""Causal grouped-query attention over a cache of fixed capacity (twin of ``reference/attention.py``).

Shapes under ``jit`` are static, so the cache is allocated with room to spare. Attention goes through it block by
block, only as far as it is written, and keeps a running softmax: with the largest score m so far, the sum l of
exp(score − m) and the mix o of values weighted likewise, a block with the larger score m' turns them into

    l ← l·exp(m − m') + Σ exp(score − m')        o ← o·exp(m − m') + Σ exp(score − m')·v

and o / l is the attention in the end (Milakov and Gimelshein, arXiv:1805.02867; the idea of FlashAttention). So the
cost of a token grows with its position, not with the capacity.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SMALLEST_CAPACITY = 256
WIDEST_BLOCK = 512
"""Positions that are looked at together at most: a block costs some 20 µs of small steps whatever its size."""
CACHE_TYPES = {"f32": jnp.float32, "bf16": jnp.uint16, "f16": jnp.float16}
"""How keys and values are stored. bf16 as bare bits: XLA's CPU backend widens a whole cache of bf16 at each update."""


class KVCache:
    """Keys and values of some sequences on the device.

    ``k`` is [n_layers, n_sequences, n_kv_heads, head_dim, capacity], positions side by side as the products with
    queries want them, and ``v`` [n_layers, n_sequences, n_kv_heads, capacity, head_dim]. ``sequences`` are the tokens
    held of each; what lies beyond them is scratch. Capacities are powers of two: a growing conversation compiles a new
    program only when it doubles. The arrays are donated to each step, which updates them in place and hands them back,
    so keep the holder, never the arrays.
    """

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int, type_name: str = "f32") -> None:
        self._size = (n_layers, 1, n_kv_heads, head_dim)
        self._dtype = CACHE_TYPES[type_name]
        self.clear()

    def clear(self) -> None:
        """Hold one empty sequence, in arrays of the smallest capacity."""
        self.sequences: list[list[int]] = [[]]
        # From the host: jnp.zeros would compile a program for each.
        self.k = jnp.asarray(np.zeros((*self._size, SMALLEST_CAPACITY), self._dtype))
        self.v = jnp.asarray(np.zeros((*self._size[:3], SMALLEST_CAPACITY, self._size[3]), self._dtype))

    @property
    def ids(self) -> list[int]:
        """The tokens of the only sequence."""
        (only,) = self.sequences
        return only

    @property
    def capacity(self) -> int:
        """Tokens there is room for in each sequence."""
        return self.k.shape[4]

    def reserve(self, n_tokens: int) -> None:
        """Make room for ``n_tokens`` in each sequence, doubling as often as it takes."""
        wanted = self.capacity
        while wanted < n_tokens:
            wanted *= 2
        if wanted > self.capacity:
            more = (0, wanted - self.capacity)
            self.k = jnp.pad(self.k, [(0, 0)] * 4 + [more])
            self.v = jnp.pad(self.v, [(0, 0)] * 3 + [more, (0, 0)])

    def join(self, others: Sequence[KVCache]) -> None:
        """Hold the sequences of ``others`` too, side by side; they must not be used afterwards."""
        caches = [self, *others]
        longest = max(cache.capacity for cache in caches)
        for cache in caches:
            cache.reserve(longest)
        self.k = jnp.concatenate([cache.k for cache in caches], axis=1)
        self.v = jnp.concatenate([cache.v for cache in caches], axis=1)
        self.sequences = [ids for cache in caches for ids in cache.sequences]

    def recover(self) -> None:
        """Start empty if the arrays are gone: a step that is interrupted may have taken them and given none back."""
        if self.k.is_deleted() or self.v.is_deleted():
            self.clear()

    def truncate(self, n_tokens: int) -> None:
        """Forget everything after the first ``n_tokens`` tokens of the only sequence."""
        del self.ids[n_tokens:]


def write(k_cache: jax.Array, v_cache: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array,
          start: jax.Array) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Put k, v [n_sequences, n_tokens, n_kv_heads, head_dim] of ``layer`` at positions ``start`` [n_sequences] .. ."""
    columns = narrowed(k.transpose(0, 2, 3, 1)[None], k_cache.dtype)
    rows = narrowed(v.transpose(0, 2, 1, 3)[None], v_cache.dtype)
    for s in range(len(start)):
        k_cache = lax.dynamic_update_slice(k_cache, columns[:, s : s + 1], (layer, s, 0, 0, start[s]))
        v_cache = lax.dynamic_update_slice(v_cache, rows[:, s : s + 1], (layer, s, 0, start[s], 0))
    # The barrier keeps the update from being fused into a later read, which would need the old cache as well: a copy.
    return lax.optimization_barrier((k_cache, v_cache))


def narrowed(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """f32 as it is stored in a cache of ``dtype``."""
    return lax.bitcast_convert_type(x.astype(jnp.bfloat16), dtype) if dtype == jnp.uint16 else x.astype(dtype)


def widened(x: jax.Array) -> jax.Array:
    """What a cache holds, as f32."""
    if x.dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
    return x.astype(jnp.float32)


def attention(q: jax.Array, k_cache: jax.Array, v_cache: jax.Array, layer: jax.Array,
              positions: jax.Array) -> jax.Array:  # fmt: skip
    """softmax(q·kᵀ/√head_dim)·v over the cache of ``layer``, up to each token's own position.

    q [n_sequences, n_tokens, n_heads, head_dim], positions [n_sequences, n_tokens] with everything up to them
    written. Returns the shape of q.
    """
    n_sequences, n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, capacity = k_cache.shape[2], k_cache.shape[4]
    width = block_width(capacity)
    n_shared = n_heads // n_kv_heads  # query heads that look at the same keys
    heads = q.reshape(n_sequences, n_tokens, n_kv_heads, n_shared, head_dim).transpose(0, 2, 3, 1, 4)
    heads = heads.reshape(n_sequences, n_kv_heads, n_shared * n_tokens, head_dim)
    heads = widened(narrowed(heads, k_cache.dtype))  # llama.cpp meets f16 keys with an f16 query; no difference in f32
    limits = jnp.tile(positions, (1, n_shared))[:, None, :, None]  # of each row of ``heads``

    def block(cache: jax.Array, axis: int, at: jax.Array) -> jax.Array:
        start, size = [layer, 0, 0, 0, 0], [1, *cache.shape[1:]]
        start[axis], size[axis] = at, width
        return widened(lax.dynamic_slice(cache, start, size)[0])

    def look(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        peak, total, mixed = state
        at = i * width
        scores = multiply(heads, block(k_cache, 4, at)) / head_dim**0.5
        scores = jnp.where(at + jnp.arange(width) <= limits, scores, -jnp.inf)
        higher = jnp.maximum(peak, scores.max(-1, keepdims=True))
        weights, fade = jnp.exp(scores - higher), jnp.exp(peak - higher)
        total = total * fade + weights.sum(-1, keepdims=True)
        return higher, total, mixed * fade + multiply(weights, block(v_cache, 3, at))

    empty = jnp.zeros((*heads.shape[:3], 1), jnp.float32)
    state = (empty - jnp.inf, empty, jnp.zeros_like(heads))  # block 0 has a position that every token sees
    _, total, mixed = lax.fori_loop(0, positions.max() // width + 1, look, state)
    out = (mixed / total).reshape(n_sequences, n_kv_heads, n_shared, n_tokens, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def block_width(capacity: int) -> int:
    """Positions of a cache that are looked at together. Never the whole cache: reading that does not depend on the
    block, and XLA would copy it out before the loop."""
    return min(WIDEST_BLOCK, capacity // 2)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """a·b of the last two axes, f32, for each sequence and head."""
    return lax.dot_general(a, b, (((3,), (2,)), ((0, 1), (0, 1))), precision=lax.Precision.HIGHEST)
