"""The whole distribution of each position, and every row of the vocabulary matrix, held against the noisy runs.

Tokens and their nearest rivals are 9 of 150,000 logits. All the others say more: of each position how far the logits
are from the true ones (relative error, KL) and whether they are too large (gain); of each vocabulary row whether its
logit is too high or too low over all positions. Signed errors are the fine ones: noise cancels in a mean, a fault does
not. All are of centred logits (less the position's mean), since a constant changes no probability.

What each measure may be comes from the same noisy runs of the oracle that predict the flips, as a distribution, and the
limit is where a right engine is beyond it with probability ``limits.CHANCE``, whatever the number of positions or rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.parity.distance import over
from assay.parity.limits import CHANCE, DEPENDENT, INEXACT, Measure, freedom_of, moderated

TINY = float(np.finfo(float).tiny)


class Moved(NamedTuple):
    """How logits differ from the true ones: d = x - t, both centred."""

    error: np.ndarray
    """Σd² / Σt² of each position [n_positions]; NaN in all but ``kl`` where a candidate named only some tokens."""
    kl: np.ndarray
    """KL(truth || x) of each position, nats."""
    gain: np.ndarray
    """<d, t> / <t, t> of each position: by how much all its logits are too large."""
    row: np.ndarray
    """Σd over positions of each vocabulary row [n_vocab]."""


class Floor(NamedTuple):
    """What some noisy runs showed of the same measures."""

    log_error: np.ndarray
    """Mean over runs of log error [n_positions]."""
    log_kl: np.ndarray
    kl_terms: np.ndarray
    """``terms_of_kl`` [n_positions]."""
    gain: np.ndarray
    """Mean over runs [n_positions]: rounding may well make logits smaller."""
    gain_variance: np.ndarray
    row: np.ndarray
    """Mean over runs of the row's sum [n_vocab]."""
    row_variance: np.ndarray
    """Variance of the row's sum over runs."""
    row_square: np.ndarray
    """Mean over runs of Σd² of each row: the variance of its sum, were positions independent."""
    row_true: np.ndarray
    """Σt of each row: what a gain would add to its sum."""
    scatter: np.ndarray
    """[2] Variance over runs of log error and of log KL, mean over positions."""
    gain_sum: np.ndarray
    """[1] Variance over runs of the sum of all positions' gains."""
    runs: np.ndarray
    """[1] How many."""

    def flat(self) -> np.ndarray:
        """All of it in one array, as it is kept."""
        return np.concatenate(self)

    @staticmethod
    def of_flat(flat: np.ndarray, n: int, n_vocab: int) -> Floor:
        """What ``flat`` was made from, ``n`` positions; it has ``Floor.size`` elements."""
        return Floor(*np.split(flat, np.cumsum([n] * 5 + [n_vocab] * 4 + [2, 1])))

    @staticmethod
    def size(n: int, n_vocab: int) -> int:
        """Elements of ``flat``."""
        return 5 * n + 4 * n_vocab + 4


@checked
def moved_logits(exact: np.ndarray, found: np.ndarray, rows: int = 64) -> tuple[Moved, np.ndarray]:
    """The measures of logits ``found`` [n_positions, n_vocab], and Σd² of each row; ``rows`` positions at a time."""
    parts, row, square = [], np.zeros(exact.shape[1]), np.zeros(exact.shape[1])
    for at in range(0, len(exact), rows):
        t, x = (centred(np.asarray(a[at : at + rows], np.float64)) for a in (exact, found))
        d, size = x - t, np.square(t).sum(1)
        parts.append((over(np.square(d).sum(1), size), kl_between(t, d), over((d * t).sum(1), size)))
        row += d.sum(0)
        square += np.square(d).sum(0)
    error, kl, gain = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Moved(error, kl, gain, row), square


def centred(logits: np.ndarray) -> np.ndarray:
    """Less the mean of each position."""
    return logits - logits.mean(1, keepdims=True)


def kl_between(exact: np.ndarray, d: np.ndarray) -> np.ndarray:
    """KL of true logits and those that are ``d`` more, all [n, n_vocab], nats [n].

    With p the truth and d less its mean under p, KL = log Σ p e^d = log(1 + Σ p (e^d - 1 - d)): no term is below 0.
    """
    from scipy.special import softmax

    p = softmax(exact, axis=1)
    d = d - (p * d).sum(1, keepdims=True)
    with np.errstate(over="ignore"):  # a candidate that rules the true token out: infinite
        return np.log1p((p * (np.expm1(d) - d)).sum(1))


def terms_of_kl(exact: np.ndarray, rows: int = 64) -> np.ndarray:
    """How many independent squares a KL is worth [n_positions], by true logits alone: 1 where two tokens share it all.

    To second order KL = ½ d'Ad with A = diag(p) - pp', so noise d that is alike in all logits makes a sum of squares
    with (tr A)² / tr A² degrees of freedom (Satterthwaite, 1946): its logarithm scatters by trigamma of half of that.
    Measured where that is most of the scatter (fewer than 10, 140 positions, three arithmetics): 0.15 to 1.5 times as
    much, least where two tokens share it all.
    """
    from scipy.special import softmax

    parts = []
    for at in range(0, len(exact), rows):
        p = softmax(exact[at : at + rows], axis=1)
        square, cube = np.square(p).sum(1), (p**3).sum(1)
        parts.append(np.maximum(over(np.square(1 - square), square - 2 * cube + np.square(square)), 1.0))
    return np.concatenate(parts)


def floor_of(exact: np.ndarray, runs: Sequence[tuple[Moved, np.ndarray]]) -> Floor:
    """What ``moved_logits`` found in at least two noisy runs."""
    error, kl, gain, row = (np.stack(arrays) for arrays in zip(*(moved for moved, _ in runs), strict=True))
    logs = [np.log(np.maximum(a, TINY)) for a in (error, kl)]
    scatter = np.array([a.var(0, ddof=1).mean() for a in logs])
    square = np.mean([square for _, square in runs], axis=0)
    true = exact.sum(0) - exact.mean(1).sum()
    return Floor(logs[0].mean(0), logs[1].mean(0), terms_of_kl(exact), gain.mean(0), gain.var(0, ddof=1), row.mean(0),
                 row.var(0, ddof=1), square, true, scatter, np.atleast_1d(gain.sum(1).var(ddof=1)),
                 np.array([float(len(runs))]))  # fmt: skip


def joined(parts: Sequence[tuple[Moved, Floor]]) -> tuple[Moved, Floor]:
    """Several stretches of text as one: positions side by side, rows added up (their noise is independent)."""
    moved, floors = zip(*parts, strict=True)
    added = ("row", "row_variance", "row_square", "row_true", "gain_sum")

    def both(name: str, of: Sequence[Moved | Floor]) -> np.ndarray:
        arrays = [getattr(one, name) for one in of]
        return np.sum(arrays, axis=0) if name in added else np.concatenate(arrays)

    floor = {name: both(name, floors) for name in Floor._fields if name not in ("scatter", "runs")}
    floor |= {"scatter": np.mean([one.scatter for one in floors], axis=0),
              "runs": np.min([one.runs for one in floors], axis=0)}  # fmt: skip
    return Moved(**{name: both(name, moved) for name in Moved._fields}), Floor(**floor)


class Signed(NamedTuple):
    """Signed errors of a candidate, less what the runs say of them, with standard deviations."""

    gain: np.ndarray
    """Of each position [n_positions]."""
    gain_deviation: np.ndarray
    gain_freedom: int
    """Degrees of freedom of that."""
    all_gain: float
    """Of all positions, weighted by their noise."""
    all_deviation: float
    row: np.ndarray
    """Mean error of each vocabulary row [n_vocab], logits, less what ``all_gain`` does to it."""
    row_deviation: np.ndarray
    row_freedom: int
    common: float
    """By how much a mean over positions scatters more than if they were independent: 1 to sqrt(n)."""


def signed_of(moved: Moved, floor: Floor) -> Signed:
    """Gains and rows, and how far the candidate's noise may have moved them.

    The scale of a position's or row's own noise is well known from the many logits in it; what is estimated from few
    runs is the ratio of its mean's scatter to that, which all of them lend one another (``moderated``).

    How much positions have in common is not known from the runs alone. A candidate that rounds its weights makes the
    same error at every position that looks alike, which noise on activations does not show (bf16: rows scatter 4 to 7
    times as much, measured). So the bulk of the candidate's own rows says it: the median, which a wrong row or
    sixteenth of the rows does not move, after the gain is taken out. It is believed up to sqrt(n), all of the declared
    noise being common; what is beyond that is a fault of all rows.
    """
    n, runs = len(moved.error), floor.runs[0]
    level = np.exp(floor.log_error)
    ratio, gain_freedom = moderated(over(floor.gain_variance, level), int(runs) - 1)
    gain, deviation = moved.gain - floor.gain, ratio * np.sqrt(level * (1 + 1 / runs))
    weights = 1 / np.maximum(np.square(deviation), TINY)
    all_gain = float((weights * gain).sum() / weights.sum())
    together = float(floor.gain_sum[0] * (1 + 1 / runs)) ** 0.5 / n  # noise that positions share does not average out
    ratio, freedom = moderated(over(floor.row_variance, floor.row_square), int(runs) - 1)
    off, row_deviation = moved.row - floor.row - all_gain * floor.row_true, ratio * np.sqrt(
        floor.row_square * (1 + 1 / runs))  # fmt: skip
    freedom = int(min(freedom, max(runs - 1, n * runs / 2)))  # a row's own scale is the mean of so many squares
    bulk = float(np.median(over(np.abs(off), row_deviation))) / 0.6745  # of a normal distribution: the median of |z|
    independent = float(np.median(ratio))
    common = float(np.clip(bulk, 1.0, max(1.0, n**0.5 / independent))) if independent else 1.0
    return Signed(gain, deviation, gain_freedom, all_gain, max(common * float(weights.sum()) ** -0.5, together),
                  off / n, common * row_deviation / n, freedom, common)  # fmt: skip


def measures_of(moved: Moved, floor: Floor) -> Iterator[Measure]:
    """Every measure with its limit. Of a candidate that named only some tokens: the KL, which is at least so much."""
    n, runs = len(moved.kl), floor.runs[0]
    named = not np.isnan(moved.error).any()
    freedom = np.full(n, freedom_of(float(floor.scatter[0])))
    if named:
        yield from of_size("error", moved.error, floor.log_error, freedom, floor.scatter[0], runs, 0.5)
    freedom = 1 / (1 / freedom + 1 / floor.kl_terms)  # scatter, 2 / f, adds up: of all noise, and of what a KL sees
    yield from of_size("kl", moved.kl, floor.log_kl, freedom, floor.scatter[1], runs, 1.0)
    if not named:
        return
    yield from of_signed(signed_of(moved, floor))


def of_signed(found: Signed) -> Iterator[Measure]:
    """Gain at the worst position and over all, and the worst row."""
    from scipy.special import stdtrit

    for name, values, deviations, freedom in (
        ("gain at a position", found.gain, found.gain_deviation, found.gain_freedom),
        ("row", found.row, found.row_deviation, found.row_freedom),
    ):
        at = int(over(np.abs(values), deviations).argmax())
        most = INEXACT * deviations[at] * -stdtrit(freedom, CHANCE / len(values) / 2)
        yield Measure(name, float(values[at]), float(most), at)
    most = INEXACT * found.all_deviation * -stdtrit(found.gain_freedom, CHANCE / 2)
    yield Measure("gain", found.all_gain, float(most))


def of_size(name: str, found: np.ndarray, logs: np.ndarray, freedom: np.ndarray, scatter: float, runs: float,
            power: float) -> Iterator[Measure]:  # fmt: skip
    """A size [n_positions] that is never below 0, at the worst position and over all: in units of what the runs show.

    A sum of squares with f degrees of freedom over the mean of others is distributed as F. Of all positions the mean of
    logarithms is judged, which is nearly normal; its variance is taken ``DEPENDENT`` times, since neighbours agree.
    """
    from scipy.special import digamma, fdtri, ndtri

    n = len(found)
    moved = np.log(np.maximum(found, TINY)) - logs
    ratios = moved + digamma(freedom / 2) - np.log(freedom / 2)  # over the mean, not over the mean of logarithms
    most = np.log(fdtri(freedom, runs * freedom, 1 - CHANCE / n)) + 2 * np.log(INEXACT)
    at = int((ratios - most).argmax())
    value, limit = np.exp(power * np.array([ratios[at], most[at]]))
    yield Measure(f"{name} at a position", float(value), float(limit), at)
    spread = (DEPENDENT * scatter * (1 + 1 / runs) / n) ** 0.5
    most = 2 * np.log(INEXACT) - ndtri(CHANCE) * spread
    yield Measure(name, float(np.exp(moved.mean() * power)), float(np.exp(most * power)))
