"""Which tokens did flip, and whether the prediction explains it.

A flip is explained where the floor predicted it, with at least probability ``EXPLAINED``, before the candidate was
looked at; and the number of all flips must fit the prediction. The sum of independent flips with probabilities p_i has
the Poisson-binomial distribution; it is computed exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Engine
from assay.parity.distance import over
from assay.parity.divergence import Divergence, block_bootstrap, divergence
from assay.parity.precision import Precision
from assay.parity.prediction import Prediction, logit_gap, predict

EXPLAINED = 1e-3
"""A flip is explained where the floor predicted it with at least this probability."""
Read = Callable[[Engine, Sequence[int]], np.ndarray]
"""A candidate's way through the ids: logits [n_tokens, n_vocab] of every position."""


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
    moved: np.ndarray
    """The candidate's change of the difference whose margin is given; NaN where it did not name both tokens."""
    divergence: Divergence
    """How far the candidate's distribution is from the true one."""

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


def by_prefill_then_decode(engine: Engine, ids: Sequence[int], n: int) -> np.ndarray:
    """Logits [n, n_vocab] of the last ``n`` positions: what is before is read as a prompt is, the rest decoded."""
    logits, cache = engine.prefill(ids[: len(ids) - n + 1])
    rows = [np.array(logits)]
    for token in ids[len(ids) - n + 1 :]:
        logits, cache = engine.decode(token, cache)
        rows.append(np.array(logits))
    return np.stack(rows)


@checked
def teacher_forced(truth: Engine, oracle: Engine, candidate: Engine, ids: Sequence[int], declared: Precision, *,
                   n_vocab: int, runs: int = 4, read: Read = by_prefill, seed: int = 0) -> Positions:  # fmt: skip
    """Every position of ``ids``, each after the true tokens before it; ``n_vocab``: logits that stand for a token."""
    exact = truth.forward(ids)[:, :n_vocab]
    predicted = predict(exact, oracle, ids, declared, runs=runs, seed=seed)
    return observe(predicted, read(candidate, ids)[:, :n_vocab], ids[1:])


@checked
def observe(predicted: Prediction, found: np.ndarray, following: Sequence[int] = ()) -> Positions:
    """What became of the prediction in a candidate's logits ``found`` [n_positions, n_vocab]."""
    return Positions(
        top=predicted.ranked[:, 0],
        margin=predicted.logit_gaps[:, 0],
        sigma=predicted.sigmas[:, 0],
        probability=predicted.probability,
        flipped=np.nanargmax(found, 1) != predicted.ranked[:, 0],
        moved=logit_gap(found, predicted.ranked)[:, 0] - predicted.logit_gaps[:, 0],
        divergence=divergence(predicted.exact, found, following),
    )


@checked
def joined(parts: Sequence[Positions]) -> Positions:
    """Several stretches as one."""
    *arrays, divergences = zip(*parts, strict=True)
    both = Divergence(*(np.concatenate(one) for one in zip(*divergences, strict=True)))
    return Positions(*(np.concatenate(one) for one in arrays), divergence=both)


def poisson_binomial(probabilities: np.ndarray) -> np.ndarray:
    """P(exactly k of independent events happen), f64 [n + 1]; event i has probability ``probabilities[i]``.

    The coefficients of the generating polynomial Π_i (1 - p_i + p_i x). (``scipy.stats.poisson_binom`` has the same
    bits, but of all k at once it takes n² numbers: 1.6 GB for 10,000 positions.)
    """
    return reduce(np.convolve, np.stack([1 - probabilities, probabilities], axis=1), np.ones(1))


def count_p_value(probabilities: np.ndarray, observed: int) -> float:
    """Probability of a count at least as improbable as ``observed``, if events have these probabilities."""
    mass = poisson_binomial(probabilities[probabilities > 1e-12])
    likely = mass[observed] if observed < len(mass) else 0.0
    return float(min(1.0, mass[mass <= likely * (1 + 1e-9)].sum()))


def noise_ratio(moved: np.ndarray, sigma: np.ndarray) -> float:
    """Root mean square of moved / sigma, where a candidate named both tokens; NaN where it did so nowhere."""
    named = ~np.isnan(moved)
    if not named.any():
        return float("nan")
    return float(np.sqrt(np.square(over(moved[named], sigma[named])).mean()))


class Account(NamedTuple):
    """Flips expected and observed."""

    positions: int
    expected: float
    observed: int
    p_value: float
    """Probability, were the prediction right, of a count at least as improbable as this one."""
    unexplained: tuple[int, ...]
    """Positions that flipped although the floor gave that less than EXPLAINED."""
    noise: float
    """Root mean square of how far the candidate moved the first logit gap, in units of what the floor predicts: 1 is as
    declared. Where no token flips it still shows an error that is too large; NaN where an engine names too little."""
    top1: float
    kl_mean: float
    kl_error: float
    """Standard error of kl_mean by bootstrap over blocks of consecutive positions."""
    kl_is_bound: bool = False
    """Whether the candidate named only some tokens somewhere: the KL is at least kl_mean then."""


@checked
def account(positions: Positions) -> Account:
    """The flips of some positions held against the prediction."""
    p, flipped = positions.probability, positions.flipped
    observed = int(flipped.sum())
    return Account(
        positions=len(p),
        expected=float(p.sum()),
        observed=observed,
        p_value=count_p_value(p, observed),
        unexplained=tuple(np.flatnonzero(flipped & (p < EXPLAINED)).tolist()),
        noise=noise_ratio(positions.moved, positions.sigma),
        top1=float(1 - flipped.mean()),
        kl_mean=float(positions.divergence.kl.mean()),
        kl_error=block_bootstrap(positions.divergence.kl),
        kl_is_bound=bool(positions.divergence.bound.any()),
    )
