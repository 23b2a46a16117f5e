"""A candidate writes by itself, beside what the truth writes: where do they part, and was that to be expected?

Reading the truth's text token by token is not all of generating: a generation has a path of its own through an engine,
with its chunks, multi-step decode and cache. So the candidate's own ``generate`` is asked for the whole answer. Where
it first chooses another token than the truth, the difference is noted and it is asked again, after the truth's text
and token up to there: no position after a difference stays unchecked, and every difference has the probability that
was predicted for it. No rounding makes an engine write on after an end token, or show another text than its tokens say:
one such case is a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from assay.formats.contract.arguments import checked
from assay.parity.counting import count_p_value, unexplained
from assay.parity.flips import gap_measures, noise_ratio
from assay.parity.limits import Measure
from assay.parity.prediction import Prediction
from assay.parity.sample import first_difference

Generate = Callable[[Sequence[int], int], Sequence[Any]]
"""``generate(ids, n)``: what a ``Written`` is made of: at most ``n`` greedy tokens after ``ids``, fewer if an end token
came, and what is known of them."""
Decode = Callable[[Sequence[int]], str]
"""The text of ids."""


class Written(NamedTuple):
    """What a candidate wrote."""

    ids: Sequence[int]
    margins: Sequence[float] = ()
    """Of each, top-1 minus top-2 of the logits. Without them an error that changes no token is not seen."""
    text: str | None = None
    """What it shows of them, without the end token; None where it does not say."""


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
    unexplained: tuple[Split, ...] = ()
    """Splits that are too improbable together (``counting.unexplained``)."""
    measures: tuple[Measure, ...] = ()
    """Of the margins, with limits."""
    wrong: tuple[str, ...] = ()
    """What no rounding explains, in words."""

    @property
    def observed(self) -> int:
        """Splits that were seen."""
        return len(self.splits)


@checked
def free_run(generate: Generate, prompt: Sequence[int], answer: Sequence[int], predicted: Prediction, *,
             ends: Collection[int] = (), past: int = 0, decode: Decode | None = None) -> FreeRun:  # fmt: skip
    """Let a candidate write ``answer``; ``predicted``: of the positions that each of its tokens comes from.

    ``ends``: the end tokens; ``past``: how many tokens more it may write than the answer has, to see whether it stops;
    ``decode``: the text that its tokens should have.
    """
    splits, wrong, at = [], [], 0
    moved, flipped = np.full(len(answer), np.nan), np.zeros(len(answer), bool)
    while at < len(answer):
        found = Written(*generate([*prompt, *answer[:at]], len(answer) - at + past))
        wrong += faults_of_writing(found, ends, decode)
        ids = found.ids[: len(answer) - at]
        same = first_difference(ids, answer[at:]) if list(ids) != list(answer[at:]) else len(ids)
        said = np.asarray(found.margins[:same])
        moved[at : at + len(said)] = said - predicted.logit_gaps[at : at + len(said), 0]
        at += same
        if at < len(answer):
            splits.append(Split(at, answer[at], ids[same] if same < len(ids) else None,
                                float(predicted.logit_gaps[at, 0]), float(predicted.probability[at])))  # fmt: skip
            flipped[at] = True
            at += 1
    p, sigmas = predicted.probability, predicted.sigmas[:, 0]
    too_improbable = unexplained(p, flipped)
    return FreeRun(tuple(answer), tuple(splits), float(p.sum()), count_p_value(p, len(splits)),
                   noise_ratio(moved, sigmas), tuple(one for one in splits if one.at in too_improbable),
                   tuple(gap_measures(moved, predicted.logit_gaps[:, 0], sigmas, predicted.freedom)),
                   tuple(dict.fromkeys(wrong)))  # fmt: skip


def faults_of_writing(found: Written, ends: Collection[int], decode: Decode | None) -> list[str]:
    """What is wrong with an answer by itself, whatever the truth wrote."""
    faults = ["writes on after an end token"] if any(token in ends for token in found.ids[:-1]) else []
    if found.text is not None and decode is not None:
        true = decode([token for token in found.ids if token not in ends])
        if found.text != true:
            faults.append(f"shows {found.text!r}, its tokens say {true!r}")
    return faults
