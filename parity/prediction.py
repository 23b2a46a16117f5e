"""Which tokens can flip, and how probable that is: from truth and floor alone, before the candidate is looked at.

At position i the true logits prefer a, by a margin m_j over each rival j. In K runs of the oracle with the declared
noise the lead of a over j changed with standard deviation s_ij. K is small, so each s_ij is drawn towards what all
positions have in common, as far as they have it in common: with d degrees of freedom that the others lend, it has K + d
(Smyth, "Linear Models and Empirical Bayes Methods", 2004). Under the candidate's rounding, another draw of the same
noise, j overtakes a with probability P(T > m_j / s_ij), T of Student's distribution. Of several rivals any may win:
p_i = 1 - Π_j (1 - p_ij). Without what is lent, 4 runs predict a sixth too many flips: simulated in ``tests/parity``.
"""

from __future__ import annotations

import math
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
    leads: np.ndarray
    """By how much the first leads each of the others [n_positions, RIVALS]."""
    sigmas: np.ndarray
    """Standard deviation of each lead under the declared noise."""
    probability: np.ndarray
    """That another token comes first [n_positions]."""

    def of(self, some: slice) -> Prediction:
        """Some of the positions."""
        return Prediction(*(array[some] for array in self))


@checked
def predict(exact: np.ndarray, oracle: Tapped, ids: Sequence[int], declared: Precision, *, runs: int = 4, seed: int = 0,
            kept: Kept = anew) -> Prediction:  # fmt: skip
    """The prediction for every position of ``ids``, whose true logits are ``exact`` [n_tokens, n_vocab].

    ``runs`` (even) perturbed runs of ``oracle`` make the floor, unless ``kept`` knows it from an earlier day.
    """
    exact = np.asarray(exact, np.float64)
    ranked = np.argpartition(-exact, RIVALS, axis=1)[:, : RIVALS + 1]
    ranked = np.take_along_axis(ranked, np.argsort(-np.take_along_axis(exact, ranked, 1), axis=1, kind="stable"), 1)
    leads = lead(exact, ranked)

    def variances() -> np.ndarray:
        def moved(run: int) -> np.ndarray:
            return np.square(lead(declared.noisy(oracle, run).forward(ids, declared.noise(run)), ranked) - leads)

        return sum(each_run(moved, range(seed, seed + runs)), np.zeros_like(leads)) / runs

    sigmas, freedom = moderated(kept(variances), runs)
    return Prediction(exact, ranked, leads, sigmas, flip_probability(leads, sigmas, freedom))


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
