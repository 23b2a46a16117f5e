"""How far a measure of a right engine may be off by chance: the error rate of a verdict, and what it makes of noise.

A comparison looks at a dozen measures of tokens and logits, some of them of thousands of positions or rows. Each limit
is the quantile of that measure's distribution under the declared noise, so that all of them together are beyond it in
one right comparison of ``1 / ERROR_RATE``. The distributions come from a few noisy runs, so they are those of estimates
(Student's t, F), not of known variances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ERROR_RATE = 1e-4
"""Right comparisons of tokens that are called a BUG by chance. 2,000 of them make 0.2; a fault is hundreds of standard
deviations off as a rule, so ten times fewer would cost a seventh of the sensitivity (quantiles 4.4 and 4.9)."""
TESTS = 12
"""Measures that are tested in one comparison, at most: the number of flips, their tail, gaps, gain of leads; error, KL
(each over all and at a position), gain (likewise), rows; end and text have no chance in them."""
CHANCE = ERROR_RATE / TESTS
"""Of each of them (Bonferroni)."""
INEXACT = 1.5
"""How much larger than declared the noise of a right engine may be: what is declared is a model of rounding. Measured,
as a root mean square over all positions: built-in model 0.99 to 1.03 (bf16, 8 bits), 0.5B 1.02 to 1.11 (10,229
positions each), llama.cpp on it 1.05; in f32 0.2, for the order of a sum is bounded, not known."""
DEPENDENT = 4.0
"""How many neighbouring positions stand for one in the variance of a mean over positions: a noisy key is seen by all
that follow. Measured on 9 times 12 noisy runs of 256 positions: the error over all scatters from run to run 1.0 to 2.8
times as much (variances) as that of independent positions."""
MOST_LENT = 60
"""Degrees of freedom that variances lend one another at most: to tell more, the scatter of their logarithms had to be
known to less than trigamma(30) = 0.03, which takes a thousand independent ones. Fewer than true makes limits wider."""


class Measure(NamedTuple):
    """Something that was measured of a candidate, and its limit in the same unit."""

    name: str
    value: float
    limit: float
    """A right engine is beyond it (either side, where it has a sign) with probability ``CHANCE``."""
    at: int | None = None
    """The position, or the vocabulary row, that is furthest off; None where it is of all."""

    @property
    def beyond(self) -> bool:
        """Whether that is a fault; so is what is not a number, and a limit that is none."""
        return not (abs(self.value) <= self.limit < np.inf)


def moderated(variances: np.ndarray, freedom: int) -> tuple[np.ndarray, int]:
    """Standard deviations from variances estimated with so many degrees of freedom each, and what they have then.

    Where the logarithms of the variances scatter as such estimates of equal ones do, trigamma(freedom / 2), all of
    them are equal and each is estimated by all. What they scatter beyond that is real, and limits what they lend
    (Smyth, 2004).
    """
    from scipy.special import polygamma  # here, as wherever scipy is used: `assay --help` need not wait for it

    positive = variances[variances > 0]
    if len(positive) < 2:
        return np.sqrt(variances), freedom
    logs = np.log(positive)
    scatter = float(logs.var(ddof=1)) - polygamma(1, freedom / 2)
    lent = next((d for d in range(2, MOST_LENT, 2) if polygamma(1, d / 2) <= scatter), MOST_LENT)
    common = np.exp(logs.mean() - log_bias(freedom) + log_bias(lent))
    return np.sqrt((lent * common + freedom * variances) / (lent + freedom)), lent + freedom


def log_bias(freedom: float) -> float:
    """E[log s²] - log σ², s² estimated with so many degrees of freedom: digamma(f / 2) - log(f / 2)."""
    from scipy.special import digamma

    return float(digamma(freedom / 2) - np.log(freedom / 2))


def freedom_of(scatter: float) -> float:
    """The degrees of freedom whose sum of squares scatters so much in its logarithm: trigamma(f / 2) = ``scatter``."""
    from scipy.special import polygamma

    logs = np.linspace(np.log(0.1), np.log(1e6), 2000)  # finely enough for six digits between two of them
    scatters = np.log(polygamma(1, np.exp(logs) / 2))
    return float(np.exp(np.interp(-np.log(max(scatter, 1e-300)), -scatters, logs)))
