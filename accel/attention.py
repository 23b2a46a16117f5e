"""Causal grouped-query attention over a cache of fixed capacity (twin of ``reference/attention.py``).

Shapes under ``jit`` are static, so the cache is allocated with room to spare and a mask hides what is not
written yet. Capacities are powers of two: a growing conversation compiles a new program only when it doubles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

SMALLEST_CAPACITY = 256


class KVCache:
    """Keys and values on the device, [n_layers, capacity, n_kv_heads, head_dim] f32 each.

    ``ids`` are the tokens held; rows beyond them are scratch. The arrays are donated to each step, which
    updates them in place and hands them back, so keep the holder, never the arrays.
    """

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int) -> None:
        self._shape = (n_layers, SMALLEST_CAPACITY, n_kv_heads, head_dim)
        self.clear()

    def clear(self) -> None:
        """Start empty, with arrays of the smallest capacity."""
        self.ids: list[int] = []
        self.k, self.v = jnp.zeros(self._shape, jnp.float32), jnp.zeros(self._shape, jnp.float32)

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return self.k.shape[1]

    def reserve(self, n_tokens: int) -> None:
        """Make room for ``n_tokens`` in all, doubling as often as it takes."""
        wanted = self.capacity
        while wanted < n_tokens:
            wanted *= 2
        if wanted > self.capacity:
            room = [(0, 0), (0, wanted - self.capacity), (0, 0), (0, 0)]
            self.k, self.v = jnp.pad(self.k, room), jnp.pad(self.v, room)

    def recover(self) -> None:
        """Start empty if the arrays are gone: a step that is interrupted may have taken them and given none back."""
        if self.k.is_deleted() or self.v.is_deleted():
            self.clear()

    def truncate(self, n_tokens: int) -> None:
        """Forget everything after the first ``n_tokens`` tokens."""
        del self.ids[n_tokens:]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array) -> jax.Array:
    """softmax(q·kᵀ/√head_dim)·v, token t of q standing at position ``start`` + t.

    q [n_tokens, n_heads, head_dim]; k, v [capacity, n_kv_heads, head_dim], rows up to each token's own written.
    Returns [n_tokens, n_heads, head_dim].
    """
    n_tokens, n_heads, head_dim = q.shape
    capacity, n_kv_heads, _ = k.shape
    grouped = q.reshape(n_tokens, n_kv_heads, n_heads // n_kv_heads, head_dim)
    scores = jnp.einsum("tkgd,ckd->kgtc", grouped, k, precision=lax.Precision.HIGHEST)
    visible = jnp.arange(capacity)[None, :] <= start + jnp.arange(n_tokens)[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores / head_dim**0.5, -jnp.inf), axis=-1)
    mixed = jnp.einsum("kgtc,ckd->tkgd", weights, v, precision=lax.Precision.HIGHEST)
    return mixed.reshape(q.shape)
