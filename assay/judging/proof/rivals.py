"""What others use to compare language models, asked about the same mutants on the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from assay.judging.proof.outputs import log_softmax
from assay.parity.divergence import kl_of

TOP_N = 5
Logits = np.ndarray


def cosine(found: Logits, truth: Logits) -> float:
    """The smallest of a position's."""
    return float(((found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)).min())


def nmse(found: Logits, truth: Logits) -> float:
    """Σ(x - t)² / Σt², as ``test-backend-ops`` has it."""
    return float(np.square(found - truth).sum() / np.square(truth).sum())


def kl(found: Logits, truth: Logits) -> float:
    """The largest KL of a position, as MaxText's checker has it."""
    return float(kl_of(log_softmax(truth), log_softmax(found)).max())


def in_top(found: Logits, truth: Logits) -> bool:
    """Whether the likeliest token of each side is among the other's first ``TOP_N``, as vLLM's tests have it."""
    def holds(a: Logits, b: Logits) -> bool:
        first = a.argmax(1)
        return bool(((b > np.take_along_axis(b, first[:, None], 1)).sum(1) < TOP_N).all())

    return holds(found, truth) and holds(truth, found)


def regret(found: Logits, truth: Logits) -> float:
    """By how many nats the truth prefers its own choice to the candidate's, at worst (pegainfer's gate)."""
    p = log_softmax(truth)
    return float((p.max(1) - np.take_along_axis(p, found.argmax(1)[:, None], 1)[:, 0]).max())


BY_LOGITS: dict[str, Callable[[Logits, Logits], bool]] = {
    "allclose 1e-3": lambda x, t: np.allclose(x, t, rtol=1e-3, atol=1e-3),
    "cosine 0.999": lambda x, t: cosine(x, t) >= 0.999,
    "cosine 0.98": lambda x, t: cosine(x, t) >= 0.98,
    "NMSE 5e-4": lambda x, t: nmse(x, t) <= 5e-4,
    "NMSE 1e-2": lambda x, t: nmse(x, t) <= 1e-2,
    "KL 0.01": lambda x, t: kl(x, t) <= 0.01,
    "KL 0.03": lambda x, t: kl(x, t) <= 0.03,
    "KL 0.1": lambda x, t: kl(x, t) <= 0.1,
    "top-5 membership": in_top,
    "regret 0.20 nat": lambda x, t: regret(x, t) <= 0.20,
}
"""Each passes, or does not, on logits [n_positions, n_vocab] beside the true ones."""
STD_RATIO, GOLDEN = "std ratio 0.5 to 2", "golden text"
RIVALS = (*BY_LOGITS, STD_RATIO, GOLDEN)


def caught_by(found: dict[str, Any], truth: Logits, true_text: str,
              std_ratios: tuple[float, float] | None) -> dict[str, list[str]]:  # fmt: skip
    """By rival, the inputs on which it says no: ``prefill`` and ``decode`` logits, ``stages``, ``text``."""
    out: dict[str, list[str]] = {name: [] for name in RIVALS}
    for path in ("prefill", "decode"):
        if path not in found:
            continue
        x = found[path]
        numbers = not isinstance(x, str) and bool(np.isfinite(x).all())
        for name, passes in BY_LOGITS.items():
            if not numbers or not passes(np.asarray(x, np.float64)[:, : truth.shape[1]], truth):
                out[name].append(path)
    if std_ratios is not None and not (std_ratios[0] >= 0.5 and std_ratios[1] <= 2.0):
        out[STD_RATIO].append("stages")
    written = found.get("greedy")
    if written is not None and (isinstance(written, str) or written["text"] != true_text):
        out[GOLDEN].append("text")
    return out
