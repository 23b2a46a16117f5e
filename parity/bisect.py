"""The first stage whose own computation is wrong, and the proof that it is the cause.

A binary search over boundaries would take log2(layers x stages) runs, each of which only says "before or after".
Feeding every stage with the truth (``stages.local``) tries all of them in one run. What is left is to prove it:

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

from assay.formats import NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Engine, Tap
from assay.parity.distance import distance
from assay.parity.floor import TOLERANCE_FACTOR, NoiseFloor, in_floors
from assay.parity.precision import Key
from assay.parity.stages import Distances, accumulated, local


@dataclass(frozen=True)
class Finding:
    """What a bisection found."""

    accumulated: Distances
    """The distance of every stage of an ordinary run."""
    local: Distances
    """The error of every stage that was fed with the truth."""
    tests: Mapping[Key, Mapping[str, float]]
    """The same in floors, by the name of each test; NaN where there is no floor."""
    wrong: tuple[Key, ...]
    """Every stage whose local error is beyond the floor, in order."""
    logits_restored: float | None
    """Relative L2 distance of the logits with the truth transplanted at every wrong stage; None where nothing was."""
    forwards: int = 0
    """Candidate runs that it took; none where a dump was judged."""

    @property
    def ratios(self) -> dict[Key, float]:
        """The largest of each stage's tests."""
        return {key: max(tests.values()) for key, tests in self.tests.items()}

    @property
    def site(self) -> Key | None:
        """The first stage that is wrong by itself; None if there is none."""
        return self.wrong[0] if self.wrong else None

    @property
    def ratio(self) -> float:
        """The site's local error in floors; of the worst stage where none is beyond."""
        return self.ratios[self.site] if self.site else max(self.ratios.values())

    @property
    def logits_before(self) -> float:
        """Relative L2 distance of the candidate's logits to the truth; infinite if no numbers, NaN if not dumped."""
        found = self.accumulated.get(("logits", None))
        return found.relative_l2 if found else float("nan")


@checked
def bisect(candidate: Engine, ids: Sequence[int], truth: Mapping[Key, np.ndarray], limits: NoiseFloor,
           tolerance: float = TOLERANCE_FACTOR) -> Finding:  # fmt: skip
    """Find the stages of ``candidate`` that compute something wrong on ``ids``.

    ``truth``: the true activation of every stage; ``limits``: the floor of each stage's local error.
    """
    ordinary, alone = accumulated(candidate, ids, truth), local(candidate, ids, truth)
    tests = {key: in_floors(found, limits[key]) for key, found in alone.items()}
    wrong = tuple(key for key, of_stage in tests.items() if max(of_stage.values()) > tolerance)

    def transplant(stage: str, layer: int | None, activation: Any) -> Any:
        return truth[stage, layer].astype(activation.dtype) if (stage, layer) in wrong else activation

    restored = _logits_distance(candidate, ids, truth["logits", None], transplant) if wrong else None
    return Finding(ordinary, alone, tests, wrong, restored, forwards=3 if wrong else 2)


def _logits_distance(engine: Engine, ids: Sequence[int], expected: np.ndarray, tap: Tap) -> float:
    """Relative L2 distance of the logits to the true ones; infinite if they are not numbers."""
    try:
        return distance(engine.forward(ids, tap), expected).relative_l2
    except NumericError:
        return float("inf")
