"""Choosing a token on the device (twin of ``reference/sampler.py``; the rules stand in ``Sampling``).

Sorting 152,000 logits is slow under XLA, so no filter sorts. A threshold is found bit by bit instead: the bits
of a float, suitably flipped, order like an unsigned integer, and 32 rounds of "does the set above this value
still hold enough?" give the exact k-th largest logit or the exact edge of the top-p set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

from assay.formats.contract.engine import Sampling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """``Sampling`` as arguments of a program, so that changing a setting compiles nothing.

    But greedy and drawn are two programs: most generations never need to compile the filters.
    """

    temperature: jax.Array | np.float32
    top_k: jax.Array | np.int32
    top_p: jax.Array | np.float32
    min_p: jax.Array | np.float32
    repeat_penalty: jax.Array | np.float32
    key: jax.Array | np.ndarray  # [2] uint32: the seed, high word first
    greedy: bool = field(metadata={"static": True})


class SampledToken(NamedTuple):
    """What the host needs to know about a step: a few numbers instead of the logits."""

    token: jax.Array
    finite: jax.Array
    margin: jax.Array
    logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def settings_of(sampling: Sampling) -> Settings:
    """The settings in the types of the device, on the host: a step takes them along."""
    return Settings(
        temperature=np.float32(sampling.temperature),
        top_k=np.int32(min(sampling.top_k, np.iinfo(np.int32).max)),
        top_p=np.float32(sampling.top_p),
        min_p=np.float32(sampling.min_p),
        repeat_penalty=np.float32(sampling.repeat_penalty),
        key=np.array([sampling.seed >> 32, sampling.seed & 0xFFFFFFFF], np.uint32),
        greedy=sampling.temperature == 0,
    )


def choose(logits: jax.Array, seen: jax.Array, settings: Settings, counter: jax.Array, *, n_top: int,
           n_vocab: int) -> SampledToken:  # fmt: skip
    """Choose the ``counter``-th token of an answer from raw logits; ``seen`` bool, both [n_rows].

    Only the first ``n_vocab`` rows have a token; ``n_top`` most likely ones are reported.
    """
    logits = logits[:n_vocab]
    penalty = settings.repeat_penalty
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    biased = jnp.where(seen[:n_vocab], penalized, logits)
    token = first_largest(biased) if settings.greedy else draw(biased, settings, counter)
    best = first_largest(logits)
    others = jnp.where(jnp.arange(n_vocab) == best, -jnp.inf, logits)
    log_total = jax.nn.logsumexp(logits)
    ranked, ids = jnp.empty(0), jnp.empty(0, jnp.int32)
    if n_top:
        # The barrier keeps what follows out of top_k, which XLA would otherwise replace by a whole sort: 27 ms, not 1.
        ranked, ids = lax.optimization_barrier(tuple(lax.top_k(logits, min(n_top, n_vocab))))
    return SampledToken(
        token=token,
        finite=jnp.isfinite(logits).all(),
        margin=logits[best] - others[first_largest(others)],
        logprob=logits[token] - log_total,
        top_ids=ids,
        top_logprobs=ranked - log_total,
    )


def first_largest(x: jax.Array) -> jax.Array:
    """The first index of the largest of x, int32: argmax, by two reductions over integers, which are vectorised where
    that over (float, index) pairs is not: 0.1 ms for 151,936 logits, not 0.7."""
    keys = ordered_bits(x)
    return jnp.where(keys == keys.max(), jnp.arange(len(x), dtype=jnp.int32), len(x)).min().astype(jnp.int32)


def draw(logits: jax.Array, settings: Settings, counter: jax.Array) -> jax.Array:
    """Temper, filter by top-k, top-p and min-p, and invert the cumulative distribution at one uniform."""
    logits = logits / settings.temperature
    n_vocab = logits.shape[0]

    k = jnp.where(settings.top_k > 0, settings.top_k, n_vocab)
    edge = threshold(logits, lambda above: above.sum() >= k)
    logits = jnp.where(ordered_bits(logits) >= edge, logits, -jnp.inf)

    probabilities = jax.nn.softmax(logits)
    edge = threshold(probabilities, lambda above: jnp.where(above, probabilities, 0).sum() >= settings.top_p)
    keep = (settings.top_p >= 1) | (ordered_bits(probabilities) >= edge)
    logits = jnp.where(keep, logits, -jnp.inf)

    logits = jnp.where(logits < logits.max() + jnp.log(settings.min_p), -jnp.inf, logits)
    probabilities = jax.nn.softmax(logits)
    # The sum is made in a tree, so it wavers by an ulp between survivors: only these may be where it is inverted.
    reached = jnp.where(probabilities > 0, jnp.cumsum(probabilities), 0)
    return jnp.argmax(reached > uniform(settings.key, counter) * reached.max()).astype(jnp.int32)


def uniform(key: jax.Array, counter: jax.Array) -> jax.Array:
    """A number in [0, 1) with 24 random bits from Threefry-2x32 at (0, counter)."""
    words = threefry_2x32(key, jnp.stack([jnp.uint32(0), counter.astype(jnp.uint32)]))
    return (words[0] >> 8).astype(jnp.float32) * 2.0**-24


def ordered_bits(x: jax.Array) -> jax.Array:
    """f32 -> uint32 with the same order: flip all bits of a negative number, the sign bit of a positive."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # -0 and 0 are equal
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def threshold(x: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest value t, as ordered bits, for which ``enough(x >= t)`` holds; built from the top bit down."""
    keys = ordered_bits(x)

    def settle_bit(i: jax.Array, t: jax.Array) -> jax.Array:
        candidate = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(keys >= candidate), candidate, t)

    return lax.fori_loop(0, 32, settle_bit, jnp.uint32(0))
