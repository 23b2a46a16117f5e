"""A candidate writes by itself, beside what the truth writes: where do they part, and was that to be expected?

Reading the truth's text token by token is not all of generating: a generation has a path of its own through an engine,
with its chunks, multi-step decode and cache. So the candidate's own ``generate`` is asked for the whole answer. Where
it first chooses another token than the truth, the difference is noted and it is asked again, after the truth's text
and token up to there: no position after a difference stays unchecked, and every difference has the probability that
was predicted for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.parity.flips import EXPLAINED, count_p_value, noise_ratio
from assay.parity.prediction import Prediction
from assay.parity.sample import first_difference

Generate = Callable[[Sequence[int], int], tuple[Sequence[int], Sequence[float]]]
"""``generate(ids, n)``: at most ``n`` greedy tokens after ``ids``, fewer if an end token came; and the margin of each,
top-1 minus top-2 of the logits. Without margins (an empty list) an error that changes no token is not seen."""


class Split(NamedTuple):
    """A place at which the candidate wrote another token."""

    at: int
    """Index in the answer."""
    true: int
    found: int | None
    """None where the candidate ended instead."""
    margin: float
    probability: float


class FreeRun(NamedTuple):
    """What became of an answer."""

    answer: tuple[int, ...]
    """The truth's."""
    splits: tuple[Split, ...]
    expected: float
    """Splits that the floor predicted."""
    p_value: float
    """Probability, were the prediction right, of a count at least as improbable as this one."""

    noise: float
    """Root mean square of how far the margins moved, in units of what the floor predicts; NaN without margins."""

    @property
    def observed(self) -> int:
        """Splits that were seen."""
        return len(self.splits)

    @property
    def unexplained(self) -> tuple[Split, ...]:
        """Splits to which the floor gave less than EXPLAINED."""
        return tuple(split for split in self.splits if split.probability < EXPLAINED)


@checked
def free_run(generate: Generate, prompt: Sequence[int], answer: Sequence[int], predicted: Prediction) -> FreeRun:
    """Let a candidate write ``answer``; ``predicted``: of the positions that each of its tokens comes from."""
    splits, at = [], 0
    moved = np.full(len(answer), np.nan)
    while at < len(answer):
        found, margins = generate([*prompt, *answer[:at]], len(answer) - at)
        same = len(answer) - at
        if list(found) != list(answer[at:]):
            same = first_difference(found, answer[at:])
        said = np.asarray(margins[:same])
        moved[at : at + len(said)] = said - predicted.logit_gaps[at : at + len(said), 0]
        at += same
        if at < len(answer):
            splits.append(Split(at, answer[at], found[same] if same < len(found) else None,
                                float(predicted.logit_gaps[at, 0]), float(predicted.probability[at])))  # fmt: skip
            at += 1
    return FreeRun(tuple(answer), tuple(splits), float(predicted.probability.sum()),
                   count_p_value(predicted.probability, len(splits)),
                   noise_ratio(moved, predicted.sigmas[:, 0]))  # fmt: skip
