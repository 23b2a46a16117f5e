"""Attention of the oracle against three nested loops, and what grouped heads, mask and scale mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from assay.reference.attention import KVCache, attention, softmax


def random_qkv(n_tokens: int, n_past: int, n_heads: int, n_kv: int, head_dim: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(n_heads * 100 + n_tokens)
    kv = n_past + n_tokens, n_kv, head_dim
    return rng.standard_normal((n_tokens, n_heads, head_dim)), rng.standard_normal(kv), rng.standard_normal(kv)


def in_loops(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q·k / sqrt(head_dim))·v, one number at a time."""
    n_tokens, n_heads, head_dim = q.shape
    n_past, ratio = len(k) - n_tokens, n_heads // k.shape[1]
    out = np.zeros_like(q)
    for t in range(n_tokens):
        for h in range(n_heads):
            visible = range(n_past + t + 1)
            scores = [sum(a * b for a, b in zip(q[t, h], k[j, h // ratio], strict=True)) for j in visible]
            weights = [math.exp(s / math.sqrt(head_dim)) for s in scores]
            for j in visible:
                out[t, h] += weights[j] / sum(weights) * v[j, h // ratio]
    return out


@pytest.mark.parametrize("sizes", [(1, 0, 1, 1, 4), (5, 0, 4, 2, 6), (3, 4, 7, 1, 8), (1, 9, 6, 3, 2), (2, 2, 3, 3, 9)])
def test_attention_is_three_nested_loops(sizes: tuple[int, ...]) -> None:
    q, k, v = random_qkv(*sizes)
    assert np.allclose(attention(q, k, v), in_loops(q, k, v), rtol=1e-12, atol=1e-13)  # f64, sums of < 100 terms


def test_f32_stays_f32_and_near_f64() -> None:
    q, k, v = random_qkv(6, 3, 4, 2, 64)
    narrow = attention(*(a.astype(np.float32) for a in (q, k, v)))
    # the score q·k (|q·k| < 64) rounds in 64 additions of 2^-24, which softmax turns into relative error
    assert narrow.dtype == np.float32
    assert np.abs(narrow - attention(q, k, v)).max() < 64 * 2.0**-24 * np.abs(v).max()


def test_the_future_is_invisible() -> None:
    q, k, v = random_qkv(6, 0, 2, 1, 8)
    before = attention(q, k, v)
    k[4:], v[4:] = 1e3, -1e3
    after = attention(q, k, v)
    assert np.array_equal(after[:4], before[:4])
    assert not np.allclose(after[4:], before[4:])


def test_the_first_token_sees_only_itself() -> None:
    q, k, v = random_qkv(3, 0, 4, 2, 8)
    assert np.allclose(attention(q, k, v)[0], np.repeat(v[0], 2, axis=0), rtol=1e-15)


def test_query_head_h_reads_kv_head_h_over_ratio() -> None:
    q, k, v = random_qkv(2, 1, 6, 3, 4)
    v[:] = np.arange(3.0)[None, :, None]  # every value of kv head i is i, whatever the weights
    heads = attention(q, k, v).mean(axis=(0, 2))
    assert np.allclose(heads, [0, 0, 1, 1, 2, 2], rtol=1e-14)  # tiling would give 0 1 2 0 1 2


def test_the_scale_is_one_over_the_root_of_head_dim() -> None:
    for head_dim in (4, 64, 128):
        q = np.full((1, 1, head_dim), 1.0)
        k = np.zeros((2, 1, head_dim))
        k[0] = 3 / math.sqrt(head_dim)  # q·k / sqrt(head_dim) = 3
        v = np.zeros((2, 1, head_dim))
        v[0] = 1
        assert np.allclose(attention(q, k, v), math.exp(3) / (math.exp(3) + 1), rtol=1e-13)


def test_softmax_sums_to_one_and_bears_large_scores() -> None:
    scores = np.array([[1e4, 1e4 - 1, -np.inf], [-1e4, -1e4, -1e4], [0, 1, 2]])
    p = softmax(scores)
    assert np.allclose(p.sum(-1), 1, rtol=1e-15)
    assert np.allclose(p[0], [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0])
    assert np.allclose(p[1], 1 / 3)
    assert np.allclose(softmax(scores[2] + 100), p[2], rtol=1e-13)


def test_a_cache_appends_and_forgets() -> None:
    cache = KVCache(2)
    _, k, v = random_qkv(5, 0, 1, 1, 4)
    for start, stop in ((0, 2), (2, 5)):
        for layer in range(2):
            all_k, all_v = cache.append(layer, k[start:stop] + layer, v[start:stop])
            assert np.array_equal(all_k, k[:stop] + layer) and np.array_equal(all_v, v[:stop])
        cache.ids.extend(range(start, stop))
    cache.truncate(3)
    assert cache.ids == [0, 1, 2]
    all_k, all_v = cache.append(1, k[:1], v[:1])
    assert np.array_equal(all_k, np.concatenate([k[:3] + 1, k[:1]])) and len(all_v) == 4
    cache.truncate(0)
    assert cache.ids == [] and np.array_equal(cache.append(0, k, v)[0], k)


def test_an_empty_cache_can_be_truncated() -> None:
    cache = KVCache(1)
    cache.truncate(0)
    assert cache.ids == [] and cache.keys == [None]
