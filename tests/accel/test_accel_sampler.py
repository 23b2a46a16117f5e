"""The accelerated sampler: thresholds found bit by bit against sorting, and the same rules as the oracle's."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.accel.sampler import SampledToken, choose, draw, ordered_bits, settings_of, threshold, uniform
from assay.formats.contract.engine import Sampling

N = 8
_choose = jax.jit(partial(choose, n_vocab=N), static_argnames="n_top")
_draw = jax.jit(jax.vmap(draw, (None, None, 0)))
FLOOR = -30.0  # e^-30: so unlikely that a draw of 24 bits cannot meet it


def pick(
    logits: list[float], seen: Collection[int] = (), counter: int = 0, top: int = 0, **settings: Any
) -> SampledToken:
    """``choose`` on a few logits; rows 8 and 9 are padding with the largest logits of all."""
    padded = jnp.asarray([*logits, *[FLOOR] * (N - len(logits)), 99, 99], jnp.float32)
    marks = jnp.zeros(N + 2, bool).at[jnp.asarray(sorted(seen), int)].set(True)
    return _choose(padded, marks, settings_of(Sampling(**settings)), np.int32(counter), n_top=top)


def drawn(logits: list[float], **settings: Any) -> set[int]:
    """Every token that 300 draws bring up, at a temperature that makes all survivors likely."""
    full = jnp.asarray([*logits, *[FLOOR] * (N - len(logits))], jnp.float32)
    chosen = _draw(full, settings_of(Sampling(**{"temperature": 1.0, **settings})), jnp.arange(300, dtype=jnp.int32))
    return set(np.asarray(chosen).tolist())


def test_uniform_is_threefry_with_the_seed_as_key() -> None:
    first = uniform(jnp.array([0, 0], jnp.uint32), jnp.int32(0))  # Random123: 6b200159 for key 0, counter 0
    assert float(first) == (0x6B200159 >> 8) / 2**24
    key = settings_of(Sampling(seed=(5 << 32) | 7)).key
    assert np.asarray(key).tolist() == [5, 7]


def test_ordered_bits_order_like_floats() -> None:
    x = np.array([-np.inf, -3e38, -1, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1, 3e38, np.inf], np.float32)
    bits = np.asarray(ordered_bits(jnp.asarray(x))).astype(np.int64)
    assert np.array_equal(np.sign(np.diff(bits)), np.sign(np.diff(x)))  # -0 and 0 equal, all else ascending


@pytest.mark.parametrize("k", [1, 2, 17, 64])
def test_a_threshold_is_the_kth_largest(k: int) -> None:
    x = np.random.default_rng(k).standard_normal(64).astype(np.float32)
    x[:8] = x[8:16]  # ties
    edge = threshold(jnp.asarray(x), lambda above: above.sum() >= k)
    assert int(edge) == int(ordered_bits(jnp.asarray(np.sort(x)[-k])))


def test_greedy_takes_the_first_of_the_largest_and_ignores_filters_and_padding() -> None:
    assert int(pick([1, 5, 5, 0]).token) == 1
    assert int(pick([1, 5, 5, 0], top_k=1, top_p=0.1, min_p=1, seed=9).token) == 1
    assert int(pick([1, 5, 5, 0], {1, 9}, repeat_penalty=2).token) == 2


def test_top_k() -> None:
    logits = [1.0, 1.3, 1.2, 1.2, 1.0]
    assert drawn(logits, top_k=1) == {1}
    assert drawn(logits, top_k=2) == drawn(logits, top_k=3) == {1, 2, 3}
    assert drawn(logits, top_k=0) == drawn(logits, top_k=10**12) == {0, 1, 2, 3, 4}


def test_top_p() -> None:
    logits = np.log([0.1, 0.5, 0.25, 0.15]).tolist()
    assert drawn(logits, top_p=1e-6) == drawn(logits, top_p=0.4999) == {1}
    assert drawn(logits, top_p=0.51) == {1, 2}
    assert drawn(logits, top_p=0.76) == {1, 2, 3}
    assert drawn(logits, top_p=0.91) == drawn(logits, top_p=1.0) == {0, 1, 2, 3}
    assert drawn(np.log([0.5, 0.25, 0.25]).tolist(), top_p=0.6) == {0, 1, 2}
    assert drawn(np.log([0.3, 0.2, 0.2, 0.15, 0.15]).tolist(), top_k=1, top_p=0.9) == {0}  # of the survivors


def test_min_p() -> None:
    logits = np.log([0.5, 0.25, 0.125, 0.0625]).tolist()
    assert drawn(logits, min_p=0.3) == {0, 1}
    assert drawn(logits, min_p=0.2) == {0, 1, 2}
    assert drawn(logits, min_p=1.0) == {0}


def test_penalty() -> None:
    logits = [2.0, 1.9, -1.0, -1.5]
    assert int(pick(logits, repeat_penalty=1.5).token) == 0
    assert int(pick(logits, {0}, repeat_penalty=1.5).token) == 1
    assert int(pick([-1.0, -1.2, *[-9.0] * 6], {0}, repeat_penalty=1.5).token) == 1  # multiplied, not divided


def test_what_is_reported_is_of_the_raw_logits() -> None:
    logits = np.array([0.5, 2.0, -1.0, 1.5], np.float32)
    full = np.array([*logits, *[FLOOR] * 4], np.float64)
    log_p = full - np.log(np.exp(full).sum())
    step = pick(logits.tolist(), {1}, top=3, repeat_penalty=9.0)
    assert int(step.token) == 3 and bool(step.finite)
    assert float(step.margin) == 0.5
    # logsumexp of 8 terms in f32: a few roundings of 2^-24 at size 2
    assert float(step.logprob) == pytest.approx(log_p[3], abs=1e-6)
    assert np.asarray(step.top_ids).tolist() == [1, 3, 0]
    assert np.allclose(step.top_logprobs, log_p[[1, 3, 0]], rtol=0, atol=1e-6)


def test_more_alternatives_than_tokens_are_as_many_as_there_are() -> None:
    assert np.asarray(pick([1, 2, 3], top=100).top_ids).tolist() == [2, 1, 0, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_is_reported(bad: float) -> None:
    assert not bool(pick([1.0, bad]).finite)
    assert not bool(pick([1.0, bad], temperature=1.0, top_k=2).finite)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_are_distributed_as_the_probabilities_say(temperature: float) -> None:
    logits = np.array([2.0, 0.0, -1.0, 1.0, 1.0, -3.0, 0.5, -2.0])
    n = 4000
    tokens = _draw(jnp.asarray(logits, jnp.float32), settings_of(Sampling(temperature=temperature, seed=12)),
                   jnp.arange(n, dtype=jnp.int32))  # fmt: skip
    expected = np.exp(logits / temperature)
    expected *= n / expected.sum()
    chi_square = float((((np.bincount(np.asarray(tokens), minlength=N) - expected) ** 2) / expected).sum())
    assert chi_square < 24.3  # 7 degrees of freedom: exceeded once in 1000 seeds, and the seed is fixed


@pytest.mark.parametrize(("sums", "u"), [
    ([0.5, 0.5 + 2**-20, 0.5, 1.0, 1.0], 0.5),  # more over token 1 than over token 0, though it adds nothing
    ([0.5, 0.5, 0.5, 1 - 2**-20, 1.0], 1 - 2**-24),  # the whole is more than what the last survivor reaches
])  # fmt: skip
def test_what_was_filtered_is_not_drawn_where_the_sum_wavers(
    sums: list[float], u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cumulative sum made in a tree wavers by an ulp over tokens of probability 0; u may fall into that ulp."""
    monkeypatch.setattr("assay.accel.sampler.jnp.cumsum", lambda p: jnp.asarray(sums, jnp.float32))
    monkeypatch.setattr("assay.accel.sampler.uniform", lambda key, counter: jnp.float32(u))
    logits = jnp.asarray([1.0, 0.0, 0.0, 1.0, 0.0], jnp.float32)
    assert int(draw(logits, settings_of(Sampling(temperature=1.0, top_k=2)), jnp.int32(0))) == 3
