"""Whether what a server names are plain log-probabilities: the logarithm of softmax over the whole vocabulary.

Many servers name them after temperature, filters or penalties, or over the named tokens only; flips and distances that
are computed from such numbers mean nothing. An answer alone gives away some of it (``demand_logprobs``); beside the
truth the rest shows (``demand_plain``): processing is exact, so it leaves a pattern that rounding does not make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from assay.formats import InputError

SUM_ERROR = 1e-2
"""By how much rounded probabilities may add up to more than 1: in bf16, 8 bits, each is off by less."""
NOTHING = -9999.0
"""What vLLM and OpenAI name in place of minus infinity; no difference of real logits is as large."""
UNDERFLOW = -80.0
"""Near here exp leaves f32 (its smallest normal number is exp(-87.3)): where a token is named so low, the next may be
minus infinity in an honest server. One that jumps there from above has filtered."""
SLOPE = 0.02
"""A temperature closer to 1 than this is not looked for: rounding moves logits, but not all of them by a common factor
of 2 %."""
BASE = 3e-3
"""How close a factor is to that of another base: base 2 is 1 % from a temperature of 0.7."""
MOSTLY = 1 / 4
"""What scaling leaves of the difference to the truth, root mean square, where scaling is what made it. And of the
median it leaves at most twice as much: one large difference alone must not decide."""
FEW = 12
"""So many differences or fewer can look scaled by chance."""
ALL = 1e-5
"""Named probabilities that add up to 1 so closely leave nothing to the others."""
REST = 0.01
"""If the truth gives the others as much, that cannot be: rounding does not move logits by log(REST / ALL) = 7."""
EXPLAINED = 1 / 2
"""What the truth may leave of a server's differences, root mean square, if they are the truth's at all."""
LEVEL = 0.05
"""Logarithm of the factor by which all that was named may be too probable or improbable, beside 10 times the noise."""
SHOWN = 60
"""Characters of a token's name."""
REMEDY = "They must be named before temperature, filters and penalties: vLLM does with --logprobs-mode raw_logprobs"

Show = Callable[[int], str]
"""A token as text, for an error."""
Fail = Callable[[str], InputError]
"""The error that gives this evidence."""


def demand_logprobs(entries: Sequence[tuple[int | bytes, float]], n_ids: int,
                    fail: Fail) -> list[tuple[int | bytes, float]]:  # fmt: skip
    """Those of ``entries`` (name and number) that have a probability in f32, named after ``n_ids`` tokens.

    Raises what ``fail`` makes if they cannot all be logarithms of probabilities, or if a filter has been at work.
    """
    place = f"after {tokens(n_ids)} it names"
    if wrong := next((entry for entry in entries if math.isnan(entry[1]) or entry[1] > SUM_ERROR), None):
        raise fail(f"{place} token {short(wrong[0])} with {wrong[1]:.4g}")
    total = sum(math.exp(logprob) for _, logprob in entries)
    if total > 1 + SUM_ERROR:
        raise fail(f"{place} {tokens(len(entries))} whose probabilities add up to {total:.4g}")
    possible = [(name, logprob) for name, logprob in entries if logprob > NOTHING]
    least = min((logprob for _, logprob in possible), default=0.0)
    if len(possible) < len(entries) and least > UNDERFLOW:
        name, logprob = next(entry for entry in entries if entry[1] <= NOTHING)
        raise fail(f"{place} token {short(name)} with {logprob:g} and none of the others with less than {least:.4g}: "
                   "a filter was at work")  # fmt: skip
    return possible


def demand_plain(exact: np.ndarray, found: np.ndarray, show: Show, fail: Fail) -> None:
    """Raise what ``fail`` makes if ``found`` [n_positions, n_vocab], NaN where nothing was named, is not plain.

    ``exact`` [n_positions, n_vocab] are the true logits. Looked for are a common factor of all differences (a
    temperature, another base) and a wrong sum (nothing left for what is not named, a constant added). A server whose
    differences have nothing to do with the true ones is for the judge.
    """
    from scipy.special import log_softmax  # here: it takes a while to import

    true, named = log_softmax(exact, axis=1), ~np.isnan(found)
    best = np.nanargmax(found, 1)[:, None]
    x, y = (np.where(named, row - np.take_along_axis(row, best, 1), 0.0) for row in (true, found))
    pairs = named & (np.arange(x.shape[1]) != best)
    factor = factor_of(x[pairs], y[pairs])
    before, after = np.abs(y - x)[pairs], np.abs(y - factor * x)[pairs]
    enough = len(after) > FEW
    if (enough and factor > 0 and abs(factor - 1) > SLOPE and rms(after) < MOSTLY * rms(before)
            and np.median(after) < 2 * MOSTLY * np.median(before)):  # fmt: skip
        row, token = (int(i) for i in np.unravel_index(np.abs(y - x).argmax(), x.shape))
        raise fail(
            f"differences are {factor:.4g} times the true ones ({what_scales(factor)}); after {tokens(row + 1)} it "
            f"names {show(token)} {-y[row, token]:.4g} below the likeliest, but in truth it is "
            f"{-x[row, token]:.4g}")  # fmt: skip
    if factor < 0 or rms(after) > EXPLAINED * rms(y[pairs]):
        return
    sums, true_sums = (np.where(named, np.exp(row), 0.0).sum(1) for row in (found, true))
    whole = bool((np.abs(sums - 1) < ALL).all() and true_sums.min() < 1 - REST)
    with np.errstate(divide="ignore"):  # a constant can be so low that nothing is left
        level = np.abs(np.log(sums) - np.log(true_sums))
    if whole or (enough and level.min() > LEVEL + 10 * rms(after)):
        row = int(level.argmax())
        raise fail(
            f"after {tokens(row + 1)} it names {tokens(int(named[row].sum()))} whose probabilities add up to "
            f"{sums[row]:.4g}, but in truth to {true_sums[row]:.4g}" +
            ("; it never leaves any for the others" if whole else ""))  # fmt: skip


def factor_of(x: np.ndarray, y: np.ndarray) -> float:
    """The factor b for which b x is closest to y (least squares); 1 where there is nothing to tell it from."""
    apart = float(np.square(x).sum())
    return float((x * y).sum()) / apart if apart else 1.0


def rms(values: np.ndarray) -> float:
    """The root mean square; 0 of nothing."""
    return float(np.sqrt(np.square(values).mean())) if len(values) else 0.0


def what_scales(factor: float) -> str:
    """What makes differences of log-probabilities so many times as large."""
    for base in (2, 10):
        if abs(factor * math.log(base) - 1) < BASE:
            return f"a logarithm to base {base}"
    return f"a temperature of {1 / factor:.3g}"


def short(name: int | bytes) -> str:
    """What a server calls a token, as far as an error can hold it."""
    return repr(name)[:SHOWN]


def tokens(n: int) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{n} token{'' if n == 1 else 's'}"
