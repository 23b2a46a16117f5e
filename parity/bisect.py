"""The first stage whose own computation is wrong, and the proof that it is the cause.

A binary search over boundaries would take log2(layers x stages) runs, each of which only says "before or after".
Feeding every stage with the truth (``stages.own``) tries all of them in one run. What is left is to prove it:

    1  ordinary run          the logits are off: by so many floors
    2  truth everywhere      the stages that are wrong by themselves; the first of them is accused
    3  truth at the accused  one transplant into an otherwise untouched candidate. If the logits come back to the
                             floor, the accused was all that was wrong

Three forward-equivalents, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from formats import NumericError
from formats.protocol import Engine, Tap
from parity.distance import Distance, distance
from parity.precision import Key
from parity.stages import Distances, Floor, over_floor, own, unchanged

SLACK = 4.0
"""Floors that an error may measure. A sum of K terms in another order has another error: added one by one about
sqrt(K/6) units in the last place, in lanes and blocks a fraction. Too few on a real
model: ``docs/parity.md``, "Known false alarm"."""


@dataclass(frozen=True)
class Finding:
    """What a bisection found."""

    site: Key | None
    """The first stage whose own error is beyond the floor; None if there is none."""
    own: Distance | None
    """Its error when fed with the truth."""
    ratio: float
    """That error in floors; of the worst stage where none is beyond."""
    wrong: tuple[Key, ...]
    """Every stage that is wrong by itself, in order."""
    logits_before: float
    """Relative L2 distance of the candidate's logits to the truth."""
    logits_restored: float | None
    """The same with the truth transplanted at every wrong stage; None where nothing was."""
    forwards: int
    """Candidate runs that it took."""


def bisect(candidate: Engine, ids: Sequence[int], truth: Mapping[Key, np.ndarray], limits: Floor,
           slack: float = SLACK) -> tuple[Finding, Distances]:  # fmt: skip
    """Find the stages of ``candidate`` that compute something wrong on ``ids``; also every stage's own error.

    ``truth``: the true activation of every stage; ``limits``: the floor of each stage's own error.
    """
    expected = truth["logits", None]
    before = _logits_distance(candidate, ids, expected, unchanged)
    alone = own(candidate, ids, truth)
    ratios = {key: over_floor(found, limits[key]) for key, found in alone.items()}
    wrong = tuple(key for key, ratio in ratios.items() if not ratio <= slack)
    if not wrong:
        return Finding(None, None, max(ratios.values()), (), before, None, 2), alone

    def transplant(stage: str, layer: int | None, activation: Any) -> Any:
        return truth[stage, layer].astype(activation.dtype) if (stage, layer) in wrong else activation

    restored = _logits_distance(candidate, ids, expected, transplant)
    return Finding(wrong[0], alone[wrong[0]], ratios[wrong[0]], wrong, before, restored, 3), alone


def _logits_distance(engine: Engine, ids: Sequence[int], expected: np.ndarray, tap: Tap) -> float:
    """Relative L2 distance of the logits to the true ones; infinite if they are no numbers."""
    try:
        return distance(engine.forward(ids, tap), expected).relative_l2
    except NumericError:
        return float("inf")
