"""Which tokens can flip, how probable that is, and which did.

The prediction uses the truth and the floor alone, before the candidate is looked at. At position i the true logits
prefer a, by a margin m_j over each rival j. In K runs of the oracle with the declared noise the lead of a over j
changed with standard deviation s_ij. K is small, so each s_ij is drawn towards what all positions have in common, as
far as they have it in common: with d degrees of freedom that the others lend, it has K + d (Smyth, "Linear Models and
Empirical Bayes Methods", 2004). Under the candidate's rounding, another draw of the same noise, j overtakes a with
probability P(T > m_j / s_ij), T of Student's distribution. Of several rivals any may win: p_i = 1 - Π_j (1 - p_ij).
Without what is lent, 4 runs predict a sixth too many flips: simulated in ``tests/parity``.

The sum of independent flips with probabilities p_i has the Poisson-binomial distribution; it is computed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from formats.protocol import Engine
from parity.precision import Precision

RIVALS = 8
"""Tokens after the first that may take its place."""
MOST_LENT = 60
"""Degrees of freedom that positions lend one another at most: more make no difference to a tail."""
EXPLAINED = 1e-3
"""A flip is explained where the floor predicted it with at least this probability."""


class Positions(NamedTuple):
    """What is known of each of some positions, arrays [n_positions]."""

    top: np.ndarray
    """The token that the truth prefers."""
    margin: np.ndarray
    """True logit of the first token minus that of the second."""
    sigma: np.ndarray
    """Standard deviation of that difference under the declared noise."""
    probability: np.ndarray
    """Predicted probability that another token comes first."""
    flipped: np.ndarray
    """bool: in the candidate another token came first."""
    kl: np.ndarray
    """KL(truth || candidate), nats."""
    moved: np.ndarray
    """The candidate's change of the difference whose margin is given; NaN where it did not name both tokens."""

    @property
    def certificate(self) -> np.ndarray:
        """Margins in units of the predicted noise: what it would take to flip each token."""
        return self.margin / np.maximum(self.sigma, np.finfo(float).tiny)


def by_prefill(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    """Logits [n_tokens, n_vocab] of all positions, read at once."""
    return engine.forward(ids)


def by_decode(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    """Logits [n_tokens, n_vocab] of all positions, read one token at a time as a generation does."""
    cache, rows = None, []
    for token in ids:
        logits, cache = engine.prefill([token], cache)
        rows.append(np.array(logits))
    return np.stack(rows)


def teacher_forced(truth: Engine, oracle: Engine, candidate: Engine, ids: Sequence[int], declared: Precision, *,
                   n_vocab: int, runs: int = 4, read: Callable[[Engine, Sequence[int]], np.ndarray] = by_prefill,
                   seed: int = 0) -> Positions:  # fmt: skip
    """Every position of ``ids``, each after the true tokens before it; ``n_vocab``: logits that stand for a token.

    ``runs`` (even) perturbed runs of ``oracle`` make the floor; ``read`` is the candidate's way through the ids.
    """
    exact = np.asarray(truth.forward(ids), np.float64)[:, :n_vocab]
    ranked = np.argpartition(-exact, RIVALS, axis=1)[:, : RIVALS + 1]
    ranked = np.take_along_axis(ranked, np.argsort(-np.take_along_axis(exact, ranked, 1), axis=1, kind="stable"), 1)
    leads = lead(exact, ranked)
    squares = np.zeros_like(leads)
    for run in range(runs):
        noisy = declared.noisy(oracle, seed + run).forward(ids, declared.noise(seed + run))
        squares += np.square(lead(noisy, ranked) - leads)
    sigmas, freedom = moderated(squares / runs, runs)
    probability = flip_probability(leads, sigmas, freedom)

    found = read(candidate, ids)[:, :n_vocab]
    return Positions(
        top=ranked[:, 0],
        margin=leads[:, 0],
        sigma=sigmas[:, 0],
        probability=probability,
        flipped=np.nanargmax(found, 1) != ranked[:, 0],
        kl=kl_divergence(exact, found),
        moved=lead(found, ranked)[:, 0] - leads[:, 0],
    )


def lead(logits: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """By how much the first of ``ranked`` [n, 1 + RIVALS] leads each of the others, f64 [n, RIVALS]."""
    chosen = np.take_along_axis(logits, ranked, axis=1).astype(np.float64)
    return chosen[:, :1] - chosen[:, 1:]


def moderated(variances: np.ndarray, runs: int) -> tuple[np.ndarray, int]:
    """Standard deviations from variances that ``runs`` draws gave, and their degrees of freedom (even).

    Where the logarithms of the variances scatter as ``runs`` draws make equal ones scatter, trigamma(runs / 2), all of
    them are equal and each is estimated by all. What they scatter beyond that is real, and limits what they lend.
    """
    positive = variances[variances > 0]
    if len(positive) < 2:
        return np.sqrt(variances), runs
    logs = np.log(positive)
    scatter = float(logs.var(ddof=1)) - trigamma(runs / 2)
    lent = next((d for d in range(2, MOST_LENT, 2) if trigamma(d / 2) <= scatter), MOST_LENT)
    common = np.exp(logs.mean() - log_bias(runs) + log_bias(lent))
    return np.sqrt((lent * common + runs * variances) / (lent + runs)), lent + runs


def log_bias(freedom: float) -> float:
    """E[log s²] - log σ², s² estimated with so many degrees of freedom: digamma(f / 2) - log(f / 2)."""
    x, h = freedom / 2, 1e-4
    return (math.lgamma(x + h) - math.lgamma(x - h)) / (2 * h) - math.log(x)


def trigamma(x: float) -> float:
    """The second derivative of log Γ, by differences."""
    h = 1e-3
    return (math.lgamma(x + h) - 2 * math.lgamma(x) + math.lgamma(x - h)) / h**2


def flip_probability(leads: np.ndarray, sigmas: np.ndarray, freedom: int) -> np.ndarray:
    """Probability [n] that one of the rivals overtakes; leads and sigmas [n, RIVALS]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(sigmas > 0, leads / sigmas, np.where(leads > 0, np.inf, 0.0))
    return 1 - np.prod(1 - student_tail(t, freedom), axis=1)


def student_tail(t: np.ndarray, freedom: int) -> np.ndarray:
    """P(T > t) for Student's t with an even number of degrees of freedom (Abramowitz and Stegun 26.7.4)."""
    if freedom < 2 or freedom % 2:
        raise ValueError(f"{freedom} degrees of freedom: the closed form is for even numbers")
    cosine2 = freedom / (freedom + np.square(t))
    sine = np.sign(t) * np.sqrt(1 - cosine2)
    term, total = np.ones_like(cosine2), np.ones_like(cosine2)
    for k in range(1, freedom // 2):
        term = term * cosine2 * (2 * k - 1) / (2 * k)
        total = total + term
    return np.clip((1 - sine * total) / 2, 0.0, 1.0)


def kl_divergence(exact: np.ndarray, found: np.ndarray, rows: int = 64) -> np.ndarray:
    """KL(softmax(exact) || softmax(found)) of each position [n], in nats, ``rows`` positions at a time.

    NaN in ``found`` is a token that an engine did not name; what it did name are log-probabilities then. All the
    unnamed count as one outcome, which can only make the divergence smaller (data processing inequality).
    """
    parts = []
    for at in range(0, len(exact), rows):
        p, q = log_softmax(exact[at : at + rows]), found[at : at + rows].astype(np.float64)
        unnamed = np.isnan(q)
        if not unnamed.any():
            parts.append((np.exp(p) * (p - log_softmax(q))).sum(1))
            continue
        named = np.where(unnamed, 0.0, np.exp(p) * (p - q)).sum(1)
        p_rest = np.where(unnamed, np.exp(p), 0.0).sum(1)
        q_rest = np.maximum(1 - np.where(unnamed, 0.0, np.exp(q)).sum(1), np.finfo(np.float64).tiny)
        parts.append(named + np.where(p_rest > 0, p_rest * np.log(np.maximum(p_rest, 1e-300) / q_rest), 0.0))
    return np.concatenate(parts)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """x_i - log Σ_j exp(x_j) over the last axis, in f64, shifted so that exp cannot overflow."""
    x = x.astype(np.float64) - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def joined(parts: Sequence[Positions]) -> Positions:
    """Several stretches as one."""
    return Positions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def poisson_binomial(probabilities: np.ndarray) -> np.ndarray:
    """P(exactly k of independent events happen), f64 [n + 1]; event i has probability ``probabilities[i]``."""
    mass = np.zeros(len(probabilities) + 1)
    mass[0] = 1.0
    for n, p in enumerate(probabilities, start=1):
        mass[1 : n + 1] = mass[1 : n + 1] * (1 - p) + mass[:n] * p
        mass[0] *= 1 - p
    return mass


class Account(NamedTuple):
    """Flips expected and observed."""

    positions: int
    expected: float
    observed: int
    p_value: float
    """Probability, were the prediction right, of a count at least as improbable as this one."""
    unexplained: tuple[int, ...]
    """Positions that flipped although the floor gave that less than EXPLAINED."""
    top1: float
    kl_mean: float
    kl_error: float
    """Standard error of kl_mean by bootstrap over blocks of consecutive positions."""


def account(positions: Positions) -> Account:
    """The flips of some positions held against the prediction."""
    p, flipped = positions.probability, positions.flipped
    mass = poisson_binomial(p[p > 1e-12])
    observed = int(flipped.sum())
    likely = mass[observed] if observed < len(mass) else 0.0
    return Account(
        positions=len(p),
        expected=float(p.sum()),
        observed=observed,
        p_value=float(min(1.0, mass[mass <= likely * (1 + 1e-9)].sum())),
        unexplained=tuple(np.flatnonzero(flipped & (p < EXPLAINED)).tolist()),
        top1=float(1 - flipped.mean()),
        kl_mean=float(positions.kl.mean()),
        kl_error=block_bootstrap(positions.kl),
    )


def block_bootstrap(values: np.ndarray, block: int = 32, draws: int = 500, seed: int = 0) -> float:
    """Standard error of the mean of neighbouring, hence dependent, values (Künsch, 1989)."""
    block = min(block, math.ceil(len(values) / 8))  # of a short text, shorter blocks: one would have no spread
    n_blocks = math.ceil(len(values) / block)
    starts = np.random.default_rng(seed).integers(0, len(values) - block + 1, (draws, n_blocks))
    index = (starts[..., None] + np.arange(block)).reshape(draws, -1)
    return float(values[index].mean(1).std(ddof=1))
