"""From logits to a token: the filters people know, and one reproducible draw.

Greedy decoding is ``argmax``. Otherwise the logits are penalised, tempered, filtered, and one token is drawn by
inverting the cumulative distribution at a uniform number u. That number comes from a counter-based generator,
u = Threefry(seed, t) for the t-th generated token: the same number on any engine, from any point.

Sources: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020 (top-p); Keskar et al., "CTRL",
2019 (repeat penalty); Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011 (Threefry-2x32-20).
"""

from __future__ import annotations

import numpy as np

from assay.formats.contract.engine import Sampling

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
MASK = 0xFFFFFFFF


def threefry(seed: int, counter: int) -> int:
    """The first of the two 32-bit words of Threefry-2x32-20 with key = the seed's 64 bits (high, low).

    The counter's 64 bits (high, low) are the block. Twenty rounds of add, rotate, xor; every four, a key word is added.
    """
    k0, k1 = (seed >> 32) & MASK, seed & MASK
    keys = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    a, b = ((counter >> 32) + keys[0]) & MASK, (counter + keys[1]) & MASK
    for i in range(20):
        r = ROTATIONS[i % 8]
        a = (a + b) & MASK
        b = (((b << r) | (b >> (32 - r))) & MASK) ^ a
        if i % 4 == 3:
            n = i // 4 + 1
            a = (a + keys[n % 3]) & MASK
            b = (b + keys[(n + 1) % 3] + n) & MASK
    return a


def uniform(seed: int, counter: int) -> float:
    """A number in [0, 1) with 24 random bits, so that it is the same in f32 and f64."""
    return (threefry(seed, counter) >> 8) * 2.0**-24


def penalize(logits: np.ndarray, seen: set[int], penalty: float) -> np.ndarray:
    """Logits of ids in ``seen`` divided by ``penalty`` where positive, multiplied where negative. [n_vocab]

    A prompt given as ids may hold padding rows of the embedding, which have no logit.
    """
    out = logits.copy()
    ids = np.array([i for i in seen if i < len(logits)], dtype=np.int64)
    out[ids] = np.where(out[ids] > 0, out[ids] / penalty, out[ids] * penalty)
    return out


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Everything below the k-th largest logit becomes -inf; ties with it stay. [n_vocab]"""
    if not 0 < k < len(logits):
        return logits
    return np.where(logits < np.partition(logits, -k)[-k], -np.inf, logits)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The smallest set of most likely tokens whose probability reaches ``p`` stays; ties at its edge too."""
    if p >= 1:
        return logits
    probabilities = softmax(logits)
    ranked = np.sort(probabilities)[::-1]
    last = min(int(np.searchsorted(np.cumsum(ranked), p)), len(ranked) - 1)
    return np.where(probabilities < ranked[last], -np.inf, logits)


def keep_min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Tokens at least ``p`` times as likely as the likeliest stay. [n_vocab]"""
    if p <= 0:
        return logits
    return np.where(logits < logits.max() + np.log(p), -np.inf, logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [n_vocab] in f64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def sample(logits: np.ndarray, sampling: Sampling, seen: set[int], counter: int) -> int:
    """The token for generated position ``counter``; ``seen`` are the ids of the prompt and the answer so far.

    logits [n_vocab], raw. The token drawn is the first id whose cumulative probability exceeds u.
    """
    if sampling.repeat_penalty != 1:
        logits = penalize(logits, seen, sampling.repeat_penalty)
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    logits = logits / sampling.temperature
    logits = keep_min_p(keep_top_p(keep_top_k(logits, sampling.top_k), sampling.top_p), sampling.min_p)
    cumulative = np.cumsum(softmax(logits))
    u = uniform(sampling.seed, counter)
    return int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
