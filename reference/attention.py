"""Attention: every token looks back at all tokens before it and takes a weighted mean of what they hold.

Grouped-query attention: ``n_heads`` query heads share ``n_kv_heads`` heads of keys and values, consecutive
query heads sharing one (head h reads key/value head h // (n_heads / n_kv_heads)).

Sources: Vaswani et al., "Attention Is All You Need", 2017, equation 1; Ainslie et al., "GQA", 2023.
"""

from __future__ import annotations

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    """p_i = exp(s_i) / sum_j exp(s_j) over the last axis, shifted by the maximum so that exp cannot overflow."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q·kᵀ / sqrt(head_dim))·v for each head, causal.

    q [n_tokens, n_heads, head_dim]; k, v [n_past + n_tokens, n_kv_heads, head_dim]: the last n_tokens rows are
    those of the queries themselves. Returns [n_tokens, n_heads, head_dim].
    """
    n_tokens, n_heads, head_dim = q.shape
    n_total, n_kv_heads, _ = k.shape
    heads_per_kv = n_heads // n_kv_heads
    query_position = np.arange(n_total - n_tokens, n_total)
    future = np.arange(n_total)[None, :] > query_position[:, None]  # [n_tokens, n_total]
    out = np.empty_like(q)
    for head in range(n_heads):  # one head at a time: the scores of all heads at once would not fit in memory
        kv = head // heads_per_kv
        scores = q[:, head] @ k[:, kv].T / np.sqrt(q.dtype.type(head_dim))  # [n_tokens, n_total]
        out[:, head] = softmax(np.where(future, -np.inf, scores)) @ v[:, kv]
    return out


class KVCache:
    """Keys and values of the tokens read so far, so that each token is computed once.

    ``ids`` are the tokens it holds; ``keys[layer]`` and ``values[layer]`` are [n_past, n_kv_heads, head_dim],
    or None before the first token.
    """

    def __init__(self, n_layers: int) -> None:
        self.ids: list[int] = []
        self.keys: list[np.ndarray | None] = [None] * n_layers
        self.values: list[np.ndarray | None] = [None] * n_layers

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the new tokens' k, v [n_tokens, n_kv_heads, head_dim]; returns all keys and values so far."""
        past_k, past_v = self.keys[layer], self.values[layer]
        if past_k is not None and past_v is not None:
            k, v = np.concatenate([past_k, k]), np.concatenate([past_v, v])
        self.keys[layer], self.values[layer] = k, v
        return k, v

    def truncate(self, n_tokens: int) -> None:
        """Forget everything after the first ``n_tokens`` tokens."""
        del self.ids[n_tokens:]
        self.keys = [None if k is None else k[:n_tokens] for k in self.keys]
        self.values = [None if v is None else v[:n_tokens] for v in self.values]
