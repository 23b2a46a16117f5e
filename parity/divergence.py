"""How far two distributions over the vocabulary are from one another, position by position.

The figures are those of llama.cpp's ``llama-perplexity --kl-divergence``, under its names; errors of means come from a
bootstrap over blocks, because neighbouring positions are not independent. They say how far a candidate is displaced,
not whether that is rounding or a fault: that is what ``prediction.py`` is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked

TOP = 10
"""Likeliest tokens whose sets are compared."""
LEAK = 1e-5
"""Probability added to what an engine did not name: what it named, rounded, may add up to all there is, or more. A
server that prints six digits errs by 5e-6 in a log-probability of 1 to 10, so by 5e-6 in the sum; twice that. More for
the unnamed can only make a divergence smaller: it stays a lower bound."""
QUANTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0)


class Divergence(NamedTuple):
    """Two distributions at each of some positions, arrays [n_positions]."""

    kl: np.ndarray
    """KL(truth || candidate), nats, never below 0. Where a candidate names only some tokens, at least so much."""
    true_next: np.ndarray
    """The truth's log-probability of the token that follows in the text; NaN after the last."""
    found_next: np.ndarray
    """The candidate's; NaN where it did not name the token."""
    shared_top: np.ndarray
    """Share of the truth's TOP likeliest tokens that are among the candidate's; NaN where it named fewer than TOP."""
    bound: np.ndarray
    """bool: the candidate named only some tokens, so its ``kl`` is a lower bound."""


@checked
def divergence(exact: np.ndarray, found: np.ndarray, following: Sequence[int] = (), rows: int = 64) -> Divergence:
    """Of logits [n, n_vocab], ``rows`` positions at a time; ``following``: the token after each, as far as known.

    NaN in ``found`` is a token that an engine did not name; what it did name are log-probabilities then. All the
    unnamed count as one outcome, which can only make the divergence smaller (data processing inequality).
    """
    from scipy.special import log_softmax, rel_entr

    parts = []
    for at in range(0, len(exact), rows):
        p, q = (np.asarray(logits[at : at + rows], np.float64) for logits in (exact, found))
        p = log_softmax(p, axis=1)
        unnamed = np.isnan(q)
        if not unnamed.any():
            q = log_softmax(q, axis=1)
            kl = kl_of(p, q)
        else:
            named = np.where(unnamed, 0.0, np.exp(p) * (p - q)).sum(1)
            p_rest = np.where(unnamed, np.exp(p), 0.0).sum(1)
            q_rest = np.maximum(1 - np.where(unnamed, 0.0, np.exp(q)).sum(1), 0.0) + LEAK
            kl = np.maximum(named + rel_entr(p_rest, q_rest), 0)  # LEAK can put it below 0, which no KL is
        after = np.asarray(following[at : at + rows], np.intp)
        true_next, found_next = (np.append(x[np.arange(len(after)), after], np.full(len(p) - len(after), np.nan))
                                 for x in (p, q))  # fmt: skip
        top = min(TOP, p.shape[1])
        shared = np.array([len(set(a) & set(b)) / top
                           for a, b in zip(likeliest(p, top), likeliest(q, top), strict=True)])  # fmt: skip
        shared[(~unnamed).sum(1) < top] = np.nan
        parts.append(Divergence(kl, true_next, found_next, shared, np.asarray(unnamed.any(1))))
    return Divergence(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def kl_of(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL of log-probabilities p, q [n, n_vocab], f64 [n]: Σ e^p (e^d - 1 - d) with d = q - p.

    As both add up to 1 this is Σ e^p (p - q), but no term is below 0: where d is small the other form is the difference
    of rounding errors, which can come out negative.
    """
    d = q - p
    small = np.clip(d, -0.5, 0.5)  # elsewhere nothing cancels, and e^d could overflow
    terms = np.where(small == d, np.exp(p) * (np.expm1(small) - small), np.exp(q) - np.exp(p) - np.exp(p) * d)
    return np.maximum(terms, 0).sum(1)


def likeliest(x: np.ndarray, n: int) -> list[list[int]]:
    """The ``n`` largest of each row, in no order; unnamed tokens come last."""
    return np.argpartition(-np.where(np.isnan(x), -np.inf, x), n - 1, axis=1)[:, :n].tolist()


@checked
def statistics(found: Divergence) -> dict[str, float | None]:
    """The figures of ``--kl-divergence``: perplexities, KL and its quantiles, what became of the next token.

    Those of the next token are left out where a candidate did not name it everywhere: a mean over the positions at
    which it did would flatter it.
    """
    said: dict[str, float | None] = {
        "mean_kld": float(found.kl.mean()),
        "mean_kld_error": block_bootstrap(found.kl),
        "maximum_kld": float(found.kl.max()),
        "minimum_kld": float(found.kl.min()),
        f"same_top_{TOP}": None if np.isnan(found.shared_top).any() else float(found.shared_top.mean()),
    }
    said |= {f"kld_{q:g}": float(v) for q, v in zip(QUANTILES, np.percentile(found.kl, QUANTILES), strict=True)}
    known = ~np.isnan(found.true_next)
    true_next, found_next = found.true_next[known], found.found_next[known]
    if not known.any() or np.isnan(found_next).any():
        return said
    moved = np.exp(found_next) - np.exp(true_next)
    with np.errstate(over="ignore"):  # a candidate that rules the text out has an infinite perplexity
        perplexities = np.exp([-true_next.mean(), -found_next.mean()])
    said |= {
        "ppl_truth": float(perplexities[0]),
        "ppl_candidate": float(perplexities[1]),
        "ln_ppl_ratio": float((true_next - found_next).mean()),
        "ln_ppl_ratio_error": block_bootstrap(true_next - found_next),
        "mean_dp": float(moved.mean()),
        "mean_dp_error": block_bootstrap(moved),
        "rms_dp": float(np.sqrt(np.square(moved).mean())),
    }
    return said | {f"dp_{q:g}": float(v) for q, v in zip(QUANTILES, np.percentile(moved, QUANTILES), strict=True)}


def block_bootstrap(values: np.ndarray, block: int = 32, draws: int = 500, seed: int = 0) -> float:
    """Standard error of the mean of neighbouring, hence dependent, values (Künsch, 1989).

    ``block``: longer than what depends on one another. Measured on KLs of 6 times 256 positions (bf16, 8 bits): their
    correlation is 0.06 to 0.23 at a distance of 1 and 0.1 on average up to 4; blocks of 16, 32 and 64 give 0.8 to 1.4
    times the error of independent values, and the same within a fifth of one another.
    """
    block = min(block, math.ceil(len(values) / 8))  # of a short text, shorter blocks: one would have no spread
    n_blocks = math.ceil(len(values) / block)
    starts = np.random.default_rng(seed).integers(0, len(values) - block + 1, (draws, n_blocks))
    index = (starts[..., None] + np.arange(block)).reshape(draws, -1)
    return float(values[index].mean(1).std(ddof=1))
