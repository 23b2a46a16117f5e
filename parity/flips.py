"""Which tokens did flip, and whether the prediction explains it.

The number of flips must fit the prediction, and so must the least probable of them (``counting.py``). Where no token
flips, an error still moves logits: those of the likeliest tokens, whose gaps are held against the predicted noise here,
and all the others (``distribution.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Engine
from assay.parity import distribution
from assay.parity.counting import count_p_value, unexplained
from assay.parity.distance import over
from assay.parity.distribution import Floor, Moved, measures_of, moved_logits, signed_of
from assay.parity.divergence import Divergence, block_bootstrap, divergence
from assay.parity.limits import CHANCE, DEPENDENT, INEXACT, MOST_LENT, Measure
from assay.parity.precision import Precision
from assay.parity.prediction import Prediction, logit_gap, predict

IN_DOUBT = 1e-3
"""Tokens are listed whose flip the floor gave at least this probability. Only a list: no verdict rests on it."""
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
    freedom: int = MOST_LENT
    """Degrees of freedom of ``sigma``."""
    all_logits: tuple[Moved, Floor] | None = None
    """How far all logits moved, and what the noisy runs showed of that; None where it is not known."""

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
    """What became of the prediction in a candidate's logits ``found`` [n_positions, n_vocab], NaN where unnamed."""
    apart = divergence(predicted.exact, found, following)
    return Positions(
        top=predicted.ranked[:, 0],
        margin=predicted.logit_gaps[:, 0],
        sigma=predicted.sigmas[:, 0],
        probability=predicted.probability,
        flipped=np.nanargmax(found, 1) != predicted.ranked[:, 0],
        moved=logit_gap(found, predicted.ranked)[:, 0] - predicted.logit_gaps[:, 0],
        divergence=apart,
        freedom=predicted.freedom,
        all_logits=predicted.floor and (moved_by(predicted, found, apart), predicted.floor),
    )


def moved_by(predicted: Prediction, found: np.ndarray, apart: Divergence) -> Moved:
    """How far all logits moved. Where a candidate named only some tokens only its KL is known, from below."""
    if not apart.bound.any():
        return moved_logits(predicted.exact, found)[0]
    unknown = np.full(len(found), np.nan)
    return Moved(unknown, apart.kl, unknown, np.full(found.shape[1], np.nan))


@checked
def joined(parts: Sequence[Positions]) -> Positions:
    """Several stretches as one."""
    *arrays, divergences, freedoms, others = zip(*parts, strict=True)
    top, margin, sigma, probability, flipped, moved = (np.concatenate(one) for one in arrays)
    both = Divergence(*(np.concatenate(one) for one in zip(*divergences, strict=True)))
    known = [one for one in others if one is not None]
    return Positions(top, margin, sigma, probability, flipped, moved, both, min(freedoms),
                     distribution.joined(known) if len(known) == len(parts) else None)  # fmt: skip


def noise_ratio(moved: np.ndarray, sigma: np.ndarray) -> float:
    """Root mean square of moved / sigma, where a candidate named both tokens; NaN where it did so nowhere."""
    named = ~np.isnan(moved)
    if not named.any():
        return float("nan")
    return float(np.sqrt(np.square(over(moved[named], sigma[named])).mean()))


def gap_measures(moved: np.ndarray, gaps: np.ndarray, sigmas: np.ndarray, freedom: int,
                 common: float | None = None) -> Iterator[Measure]:  # fmt: skip
    """How far logit gaps [n_positions] moved, where they are known: their size, and whether they grew or shrank.

    The size is ``noise_ratio``; a mean of n squares over estimated variances is distributed as F, n taken ``DEPENDENT``
    times fewer. The gain is that by which all gaps grew, fitted with the weights that the noise gives them. ``common``:
    ``distribution.Signed.common``; where it is not known, positions may have everything in common.
    """
    from scipy.special import fdtri, stdtrit

    named = ~np.isnan(moved)
    if (n := int(named.sum())) == 0:
        return
    alone = max(1.0, n / DEPENDENT)
    yield Measure("logit gaps", noise_ratio(moved, sigmas),
                  float(INEXACT * fdtri(alone, freedom * alone, 1 - CHANCE) ** 0.5))  # fmt: skip
    moved, gaps, sigmas = (array[named & (sigmas > 0)] for array in (moved, gaps, sigmas))
    weights = np.square(gaps / sigmas).sum()
    if weights > 0:
        limit = INEXACT * (common or n**0.5) * weights**-0.5 * -stdtrit(freedom, CHANCE / 2)
        yield Measure("gain of leads", float((moved * gaps / sigmas**2).sum() / weights), float(limit))


class Account(NamedTuple):
    """Flips expected and observed."""

    positions: int
    expected: float
    observed: int
    p_value: float
    """Probability, were the prediction right, of a count at least as improbable as this one."""
    unexplained: tuple[int, ...]
    """Positions that flipped and are too improbable together (``counting.unexplained``)."""
    noise: float
    """Root mean square of how far the candidate moved the first logit gap, in units of what the floor predicts: 1 is as
    declared. Where no token flips it still shows an error that is too large; NaN where an engine names too little."""
    top1: float
    kl_mean: float
    kl_error: float
    """Standard error of kl_mean by bootstrap over blocks of consecutive positions."""
    kl_is_bound: bool = False
    """Whether the candidate named only some tokens somewhere: the KL is at least kl_mean then."""
    measures: tuple[Measure, ...] = ()
    """All that was measured of logit gaps and logits, with limits."""


@checked
def account(positions: Positions) -> Account:
    """The flips of some positions held against the prediction."""
    p, flipped = positions.probability, positions.flipped
    observed = int(flipped.sum())
    measures = tuple(measures_of(*positions.all_logits)) if positions.all_logits else ()
    return Account(
        positions=len(p),
        expected=float(p.sum()),
        observed=observed,
        p_value=count_p_value(p, observed),
        unexplained=unexplained(p, flipped),
        noise=noise_ratio(positions.moved, positions.sigma),
        top1=float(1 - flipped.mean()),
        kl_mean=float(positions.divergence.kl.mean()),
        kl_error=block_bootstrap(positions.divergence.kl),
        kl_is_bound=bool(positions.divergence.bound.any()),
        measures=(*gap_measures(positions.moved, positions.margin, positions.sigma, positions.freedom,
                                common_of(positions)), *measures),
    )  # fmt: skip


def common_of(positions: Positions) -> float | None:
    """``Signed.common``, where all logits are known."""
    if positions.all_logits is None or positions.divergence.bound.any():
        return None
    return signed_of(*positions.all_logits).common
