"""Which tokens can flip, and how probable that is: from truth and floor alone, before the candidate is looked at.

At position i the true logits prefer a, by a margin m_j over each rival j. In K runs of the oracle with the declared
noise the logit gap of a over j changed with standard deviation s_ij. K is small, so each s_ij is drawn towards what all
positions have in common, as far as they have it in common: with d degrees of freedom that the others lend, it has K + d
(Smyth, "Linear Models and Empirical Bayes Methods", 2004). Under the candidate's rounding, another draw of the same
noise, j overtakes a with probability q_j = P(T > m_j / s_ij), T of Student's distribution.

Of several rivals any may win, but not independently: the noise of a's own logit is in every gap. So gaps have one term
in common, a share c of their variance, which the runs show (it is near a half). Given that term, u, they are
independent: p_i = 1 - E_u Π_j (1 - P(j wins | u)), one integral over a normal u, in which each gap has the normal score
of its own tail q_j (a Gaussian copula; Li, "On Default Correlation", 2000), so that each rival alone keeps Student's.
Without what is lent 4 runs predict a sixth too many flips, without the common term 1.15 to 1.56 times as many: both
are simulated in ``tests/parity``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.parity.distance import over
from assay.parity.distribution import Floor, floor_of, moved_logits
from assay.parity.limits import MOST_LENT, moderated
from assay.parity.precision import Precision, Tapped, each_run

RIVALS = 8
"""Tokens after the first that may take its place. Measured on 768 positions of the built-in model, bf16 and 8 bits: 16
rivals predict 0.3 and 0.5 % more flips than 8, 32 predict 1.1 and 1.2 % more; 8 predict 0.5 % more than one."""
MOST_COMMON = 0.98
"""Share of the variance that gaps may have in common: the integral's step resolves the rest, 0.14 of its deviation."""
COMMON_TERM = np.arange(-9, 39, 0.125)
"""Where the integral over the common term is taken. Its integrand is smooth on the scale of sqrt(1 - c), so the sum is
exact to 1e-9; probabilities down to 1e-300 have theirs where u is sqrt(c) times 37."""


Kept = Callable[[Callable[[], np.ndarray], int], np.ndarray]
"""Given how to compute an array [size], and its size, the array: computed, or as it was computed before."""


def anew(compute: Callable[[], np.ndarray], size: int) -> np.ndarray:
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
    freedom: int = MOST_LENT
    """Degrees of freedom of ``sigmas``."""
    floor: Floor | None = None
    """What else the noisy runs showed of all these positions; None where it is not known."""

    def of(self, some: slice | np.ndarray) -> Prediction:
        """Some of the positions, a slice or indices. Of the floor only the whole is kept: rows are sums over all."""
        return Prediction(self.exact[some], self.ranked[some], self.logit_gaps[some], self.sigmas[some],
                          self.probability[some], self.freedom)  # fmt: skip


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

    n, n_vocab = exact.shape

    def measured() -> np.ndarray:
        def run(number: int) -> Any:
            found = declared.noisy(oracle, number).forward(ids, declared.noise(number, fed=False))[:, :n_vocab]
            return logit_gap(found, ranked) - gaps, moved_logits(exact, found)

        moved, others = zip(*each_run(run, range(seed, seed + runs)), strict=True)
        both = np.column_stack(variances_of(np.stack(moved)))
        return np.concatenate([both.ravel(), floor_of(exact, others).flat()])

    found, size = kept(measured, n * (RIVALS + 1) + Floor.size(n, n_vocab)), n * (RIVALS + 1)
    both, rest = found[:size].reshape(n, RIVALS + 1), found[size:]
    sigmas, freedom = moderated(both[:, :-1], runs)
    probability = flip_probability(gaps, sigmas, freedom, common_share(both[:, :-1], both[:, -1], sigmas))
    return Prediction(exact, ranked, gaps, sigmas, probability, freedom, Floor.of_flat(rest, n, n_vocab))


def logit_gap(logits: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """By how much the first of ``ranked`` [n, 1 + RIVALS] leads each of the others, f64 [n, RIVALS]."""
    chosen = np.take_along_axis(logits, ranked, axis=1).astype(np.float64)
    return chosen[:, :1] - chosen[:, 1:]


def variances_of(moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of moves [n_runs, n_positions, n_gaps]: each gap's variance, and the mean covariance of two [n_positions]."""
    n, square = moved.shape[2], np.square(moved)
    between = (np.square(moved.sum(2)) - square.sum(2)).mean(0) / (n * (n - 1))
    return square.mean(0), between


def common_share(variances: np.ndarray, between: np.ndarray, sigmas: np.ndarray) -> float:
    """The share of their variance that the gaps of a position have in common: 1/2 if all logits have noise of one size.

    One share for all positions: sums over them, each in units of its own noise as ``moderated`` has it (over its own
    few runs alone the ratio would be a tenth too small).
    """
    level = np.square(sigmas).mean(1)
    share = over(over(between, level).sum(), over(variances.mean(1), level).sum())
    return float(np.clip(share, 0, MOST_COMMON))


def flip_probability(gaps: np.ndarray, sigmas: np.ndarray, freedom: int, common: float) -> np.ndarray:
    """Probability [n] that one of the rivals overtakes; gaps and sigmas [n, n_rivals], ``common``: ``common_share``."""
    from scipy.special import log_ndtr, ndtri, stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(sigmas > 0, gaps / sigmas, np.where(gaps > 0, np.inf, 0.0))
    score = -ndtri(stdtr(freedom, -t))  # of a standard normal, with the same tail
    density = np.exp(-np.square(COMMON_TERM) / 2) * (COMMON_TERM[1] - COMMON_TERM[0]) / (2 * np.pi) ** 0.5
    none_wins = np.zeros((len(score), len(COMMON_TERM)))  # a logarithm: 1 - Π would lose what is below 1e-16
    for rival in score.T:
        none_wins += log_ndtr((rival[:, None] - common**0.5 * COMMON_TERM) / (1 - common) ** 0.5)
    return np.abs(np.expm1(none_wins)) @ density
