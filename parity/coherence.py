"""Errors that point one way: too small for their size to tell, seen once they are averaged.

Rounding is as often up as down. A wrong scale is not: under 8-bit activations a matrix that is 1 % too large hides in
errors of 1 %, but its errors all point along the true values, while those of rounding cancel. So the error of a stage,
each position in units of its own size, is projected on patterns in which a fault would add up:

    gain             all of it, along the truth           a matrix, a norm's gain, a scale of attention
    channel_gain     each channel, along the truth        a row of a matrix, its blocks
    channel_mean     each channel, over the positions     a bias, weights that were rounded further
    position_gain    each position, along the truth       one position's norm, a mask
    position_mean    each position, over the channels     an offset

A noisy run gives each projection a value; several give it a standard deviation (few runs: neighbours lend degrees of
freedom, ``limits.moderated``), and Student's distribution says how large another draw may be. Of each pattern the
mean square is tested, too: many channels that are each a little off. So is the ``size`` of the whole error, which many
elements make certain: 7-bit activations err twice as far as 8-bit ones. Mean squares of two draws have an F
distribution; its degrees of freedom are not the number of elements, since all channels see one input: they follow from
how far the runs differ (trigamma(f / 2) is the variance of the logarithm of a mean square).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from assay.parity.limits import ERROR_RATE, INEXACT, freedom_of, moderated
from assay.parity.precision import Key

AXES = {"gain": None, "channel_gain": 0, "channel_mean": 0, "position_gain": 1, "position_mean": 1}
"""Of each pattern the axis over which it adds up: positions, channels, or both."""
PATTERNS = tuple(AXES)
INEXACT_SIZE = 1.25
"""``limits.INEXACT`` for the size of an error, which noise hits better than its direction: right engines' were 0.89 to
1.08 times as large as the noise's (their projections 0.5 to 1.6 times: ``docs/parity.md``)."""
LAST_BITS = 2.0**-20
"""Of a position's size: what a right f32 function (exp, a square root, a table of angles) may be off in one direction.
Sixteen units in the last place; anything of that size is seen by the magnitudes."""
COARSE = 2.0**-18
"""Relative error from which a stage's floor counts as coarse; below it, magnitudes alone see all that can be seen."""


class Projections(NamedTuple):
    """One stage's error on each pattern, in units of each position's root mean square."""

    size: float
    """Root mean square of the whole error."""
    gain: np.ndarray
    """[1]"""
    channel_gain: np.ndarray
    """[n_channels]: of each channel's error, along its true values."""
    channel_mean: np.ndarray
    """[n_channels]"""
    position_gain: np.ndarray
    """[n_positions]"""
    position_mean: np.ndarray
    """[n_positions]"""
    independent: Mapping[str, np.ndarray]
    """By pattern: the variance that each projection would have if all these errors were independent."""
    fourth: Mapping[str, np.ndarray]
    """By pattern: the sum of the fourth powers of what is added up in each: how few of them make up that variance."""


def projections(found: np.ndarray, truth: np.ndarray) -> Projections:
    """Of the error of ``found``, both f64 [n_positions, n_channels].

    Each is Σ e·p / sqrt(N Σ p²): e the errors of N elements, p the pattern (the truth, or 1). So none is larger than
    the root mean square of those errors, and an error of γ times the truth comes out as γ times the truth's.
    """
    scale = np.sqrt(np.square(truth).mean(1, keepdims=True))
    scale[scale == 0] = 1
    e, t = (found - truth) / scale, truth / scale
    kinds = {}  # what is added up, its squares and fourth powers, and the squares of the pattern
    for kind, terms, power in (("gain", e * t, np.square(t)), ("mean", e, np.ones_like(e))):
        squares = np.square(terms)
        kinds[kind] = terms, squares, np.square(squares), power
    values, variances, fourth = {}, {}, {}
    for pattern, axis in AXES.items():
        terms, squares, fourths, power = kinds[pattern.rpartition("_")[2]]
        norm = np.atleast_1d(np.sqrt((e.size if axis is None else e.shape[axis]) * power.sum(axis)))
        norm[norm == 0] = 1
        values[pattern] = np.atleast_1d(terms.sum(axis)) / norm
        variances[pattern] = np.atleast_1d(squares.sum(axis)) / norm**2
        fourth[pattern] = np.atleast_1d(fourths.sum(axis)) / norm**4
    size = float(np.sqrt(kinds["mean"][1].mean()))
    return Projections(size, **values, independent=variances, fourth=fourth)


class Spread(NamedTuple):
    """How a stage's projections scatter under the declared noise."""

    size: float
    """Root mean square of the error."""
    sigma: Mapping[str, np.ndarray]
    """By pattern: standard deviation of each projection."""
    allowed: Mapping[str, np.ndarray]
    """By pattern: how large each projection may be."""
    total: Mapping[str, float]
    """By pattern, and ``size``: standard deviations that all of them may be off, as a root mean square."""


def ratios(found: Projections, spread: Spread) -> dict[str, float]:
    """Each test's value in units of what is allowed; 1 is the limit. ``channel_gain``: the worst channel;
    ``all channel_gain``: of all of them."""
    said = {"size": found.size / (spread.total["size"] * spread.size + LAST_BITS)}
    for pattern in PATTERNS:
        one, sigma = np.abs(getattr(found, pattern)), spread.sigma[pattern]
        said[pattern] = float((one / spread.allowed[pattern]).max())
        if pattern != "gain":
            z = np.square(one / (sigma + LAST_BITS)).mean()
            said[f"all {pattern}"] = float(np.sqrt(z)) / spread.total[pattern]
    return said


def spreads(runs: Sequence[Mapping[Key, Projections]]) -> dict[Key, Spread]:
    """What several noisy runs say of each of some stages."""
    if not runs or not runs[0]:
        return {}
    keys, n_runs = list(runs[0]), len(runs)
    sizes = {key: float(np.sqrt(np.mean([run[key].size ** 2 for run in runs]))) for key in keys}
    variances = {key: {p: np.mean([np.square(getattr(run[key], p)) for run in runs], axis=0) for p in PATTERNS}
                 for key in keys}  # fmt: skip
    n_tests = sum(1 + sum(len(v) + 1 for v in variances[key].values()) for key in keys)
    p_value = ERROR_RATE / n_tests  # Bonferroni: the tests depend on one another, so fewer alarms are false
    # How many times larger a variance is than that of independent errors is what neighbours have in common: channels of
    # a stage, and positions. A stage has one gain only, so there it is the stages that lend.
    alone = {key: {p: np.mean([run[key].independent[p] for run in runs], axis=0) for p in PATTERNS} for key in keys}
    excess = {key: {p: v / np.maximum(alone[key][p], 1e-300) for p, v in variances[key].items()} for key in keys}
    gains, gain_freedom = moderated(np.array([excess[key]["gain"][0] for key in keys]), n_runs)
    sigma: dict[Key, dict[str, np.ndarray]] = {}
    allowed: dict[Key, dict[str, np.ndarray]] = {}
    for key, gain in zip(keys, gains, strict=True):
        estimated = {"gain": (np.array([gain]), gain_freedom)} | {
            p: moderated(excess[key][p], n_runs) for p in PATTERNS[1:]}  # fmt: skip
        # Few are unlike their neighbours, which then lend them too little: the own estimate counts where it is larger.
        sigma[key] = {p: np.sqrt(np.maximum(np.square(s) * alone[key][p], variances[key][p]))
                      for p, (s, _) in estimated.items()}  # fmt: skip
        freedoms = {p: np.minimum(freedom, freedom_alone(runs, key, p)) for p, (_, freedom) in estimated.items()}
        allowed[key] = {p: INEXACT * student_limit(freedom, p_value) * sigma[key][p] + LAST_BITS
                        for p, freedom in freedoms.items()}  # fmt: skip
    total = totals(runs, sizes, sigma, p_value)
    return {key: Spread(sizes[key], sigma[key], allowed[key], total[key[0]]) for key in keys}


def totals(runs: Sequence[Mapping[Key, Projections]], sizes: Mapping[Key, float],
           sigma: Mapping[Key, Mapping[str, np.ndarray]], p_value: float) -> dict[str, dict[str, float]]:  # fmt: skip
    """By stage name, whose layers scatter alike: how large the mean square of each pattern may be, as a root."""
    limits: dict[str, dict[str, float]] = {}
    for stage in {stage for stage, _ in sizes}:
        layers = [key for key in sizes if key[0] == stage]
        limits[stage] = {}
        for pattern in ("size", *PATTERNS[1:]):
            squares = np.array([[_mean_square(run[key], pattern, sizes[key], sigma[key]) for run in runs]
                                for key in layers])  # fmt: skip
            freedom = freedom_of_squares(squares)
            inexact = INEXACT_SIZE if pattern == "size" else INEXACT
            limits[stage][pattern] = inexact * f_limit(freedom, freedom * len(runs), p_value) ** 0.5
    return limits


def _mean_square(found: Projections, pattern: str, size: float, sigma: Mapping[str, np.ndarray]) -> float:
    if pattern == "size":
        return (found.size / max(size, 1e-300)) ** 2
    return float(np.square(getattr(found, pattern) / (sigma[pattern] + LAST_BITS)).mean())


def freedom_of_squares(squares: np.ndarray) -> float:
    """Degrees of freedom of mean squares [n_stages, n_runs] that scatter like this from run to run, 1 to 1000."""
    if squares.shape[1] < 2:
        return 1.0
    scatter = np.log(np.maximum(squares, 1e-300)).var(axis=1, ddof=1).mean()
    return float(np.clip(freedom_of(float(scatter)), 1, 1000))


def freedom_alone(runs: Sequence[Mapping[Key, Projections]], key: Key, pattern: str) -> np.ndarray:
    """Degrees of freedom of each projection's variance as that of independent errors: (Σ a²)² / Σ a⁴ of what is added,
    twice, since for uniform a that is 0.56 of their number and for normal ones a third. Of few positions, or of one
    that is nearly all of a channel, there are few."""
    squares = np.sum([run[key].independent[pattern] for run in runs], axis=0)
    fourth = np.sum([run[key].fourth[pattern] for run in runs], axis=0)
    return np.maximum(2 * np.square(squares) / np.maximum(fourth, 1e-300), 1)


def student_limit(freedom: ArrayLike, p_value: float) -> np.ndarray:
    """What |T| exceeds with probability ``p_value``."""
    from scipy.special import stdtrit

    return -stdtrit(freedom, p_value / 2)


def f_limit(freedom: float, of_noise: float, p_value: float) -> float:
    """What a mean square over another exceeds with probability ``p_value``."""
    from scipy.special import fdtri

    return float(fdtri(freedom, of_noise, 1 - p_value))
