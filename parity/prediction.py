"""Which tokens can flip, and how probable that is: from truth and floor alone, before the candidate is looked at.

At position i the true logits prefer a, by a margin m_j over each rival j. In K runs of the oracle with the declared
noise the logit gap of a over j changed with standard deviation s_ij. K is small, so each s_ij is drawn towards what all
positions have in common, as far as they have it in common: with d degrees of freedom that the others lend, it has K + d
(Smyth, "Linear Models and Empirical Bayes Methods", 2004). Under the candidate's rounding, another draw of the same
noise, j overtakes a with probability P(T > m_j / s_ij), T of Student's distribution. Of several rivals any may win:
p_i = 1 - Π_j (1 - p_ij). Without what is lent, 4 runs predict a sixth too many flips: simulated in ``tests/parity``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.parity.precision import Precision, Tapped, each_run

RIVALS = 8
"""Tokens after the first that may take its place."""
MOST_LENT = 60
"""Degrees of freedom that positions lend one another at most: more make no difference to a tail."""


Kept = Callable[[Callable[[], np.ndarray]], np.ndarray]
"""Given how to compute an array, the array: computed, or as it was computed before."""


def anew(compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Nothing was kept."""
    return compute()


class Prediction(NamedTuple):
    """What is known of each of some positions before the candidate is looked at."""

    exact: np.ndarray
    """True logits [n_positions, n_vocab], f64."""
    ranked: np.ndarray
    """The likeliest tokens [n_positions, 1 + RIVALS], best first."""
    logit_gaps: np.ndarray
    """By how much the first leads each of the others [n_positions, RIVALS]."""
    sigmas: np.ndarray
    """Standard deviation of each logit gap under the declared noise."""
    probability: np.ndarray
    """That another token comes first [n_positions]."""

    def of(self, some: slice) -> Prediction:
        """Some of the positions."""
        return Prediction(*(array[some] for array in self))


@checked
def predict(exact: np.ndarray, oracle: Tapped, ids: Sequence[int], declared: Precision, *, runs: int = 4, seed: int = 0,
            kept: Kept = anew) -> Prediction:  # fmt: skip
    """The prediction for every position of ``ids``, whose true logits are ``exact`` [n_tokens, n_vocab].

    ``runs`` perturbed runs of ``oracle`` make the floor, unless ``kept`` knows it from an earlier day.
    """
    exact = np.asarray(exact, np.float64)
    ranked = np.argpartition(-exact, RIVALS, axis=1)[:, : RIVALS + 1]
    ranked = np.take_along_axis(ranked, np.argsort(-np.take_along_axis(exact, ranked, 1), axis=1, kind="stable"), 1)
    gaps = logit_gap(exact, ranked)

    def variances() -> np.ndarray:
        def moved(run: int) -> np.ndarray:
            logits = declared.noisy(oracle, run).forward(ids, declared.noise(run, fed=False))
            return np.square(logit_gap(logits, ranked) - gaps)

        return sum(each_run(moved, range(seed, seed + runs)), np.zeros_like(gaps)) / runs

    sigmas, freedom = moderated(kept(variances), runs)
    return Prediction(exact, ranked, gaps, sigmas, flip_probability(gaps, sigmas, freedom))


def logit_gap(logits: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """By how much the first of ``ranked`` [n, 1 + RIVALS] leads each of the others, f64 [n, RIVALS]."""
    chosen = np.take_along_axis(logits, ranked, axis=1).astype(np.float64)
    return chosen[:, :1] - chosen[:, 1:]


def moderated(variances: np.ndarray, runs: int) -> tuple[np.ndarray, int]:
    """Standard deviations from variances that ``runs`` draws gave, and their degrees of freedom.

    Where the logarithms of the variances scatter as ``runs`` draws make equal ones scatter, trigamma(runs / 2), all of
    them are equal and each is estimated by all. What they scatter beyond that is real, and limits what they lend.
    """
    from scipy.special import polygamma  # here, as wherever scipy is used: `assay --help` need not wait for it

    positive = variances[variances > 0]
    if len(positive) < 2:
        return np.sqrt(variances), runs
    logs = np.log(positive)
    scatter = float(logs.var(ddof=1)) - polygamma(1, runs / 2)
    lent = next((d for d in range(2, MOST_LENT, 2) if polygamma(1, d / 2) <= scatter), MOST_LENT)
    common = np.exp(logs.mean() - log_bias(runs) + log_bias(lent))
    return np.sqrt((lent * common + runs * variances) / (lent + runs)), lent + runs


def log_bias(freedom: int) -> float:
    """E[log s²] - log σ², s² estimated with so many degrees of freedom: digamma(f / 2) - log(f / 2)."""
    from scipy.special import digamma

    return float(digamma(freedom / 2) - np.log(freedom / 2))


def flip_probability(gaps: np.ndarray, sigmas: np.ndarray, freedom: int) -> np.ndarray:
    """Probability [n] that one of the rivals overtakes; gaps and sigmas [n, RIVALS]."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(sigmas > 0, gaps / sigmas, np.where(gaps > 0, np.inf, 0.0))
        none_wins = np.log1p(-stdtr(freedom, -t)).sum(axis=1)  # a logarithm: 1 - Π would lose what is below 1e-16
    return np.abs(np.expm1(none_wins))
