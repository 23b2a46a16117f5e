"""The same-sample check: before any number is compared, both sides must have been shown the same thing.

Most of the incident's false alarms, and its blindness, came from comparing what was not the same: statistics of seven
positions with those of one, a prompt wrapped in a template twice, ids from a tokenizer that split a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from assay.formats.errors import SampleError

OTHER_SAMPLE = "OTHER SAMPLE"
"""What is said in a verdict's place of a candidate that read something else."""


@dataclass(frozen=True)
class Sample:
    """What one engine was given to read."""

    text: str | None
    """The rendered prompt; None where ids were forced."""
    ids: tuple[int, ...]
    weights: str
    """SHA-256 of the model file that the engine computes with."""


def check_same(one: Sample, other: Sample) -> None:
    """Nothing if both engines read the same; SampleError names the first thing that differs."""
    if one.weights != other.weights:
        raise SampleError(f"weights {one.weights[:12]} and {other.weights[:12]}", where="same-sample check: weights",
                          remedy="Compare two engines on one file")  # fmt: skip
    if one.text != other.text:
        at = first_difference(one.text or "", other.text or "")
        raise SampleError(f"{excerpt(one.text, at)} and {excerpt(other.text, at)} at character {at}",
                          where="same-sample check: rendered prompt",
                          remedy="Render the prompt once, or mend the template engine that is wrong")  # fmt: skip
    if one.ids != other.ids:
        at = first_difference(one.ids, other.ids)
        raise SampleError(f"{list(one.ids[at : at + 4])} and {list(other.ids[at : at + 4])} from position {at} on",
                          where="same-sample check: token ids",
                          remedy="Force the ids, or mend the tokenizer that is wrong")  # fmt: skip


def check_shapes(stage: str, layer: int | None, found: Any, expected: Any) -> None:
    """Nothing if an activation has the positions and elements of the true one; else SampleError."""
    where = f"same-sample check: {place(stage, layer)}"
    if len(found) != len(expected):
        raise SampleError(f"{len(found)} positions and {len(expected)}", where=where,
                          remedy="Statistics of different positions say nothing about one another")  # fmt: skip
    if found.size != expected.size:
        raise SampleError(f"{found.size} elements and {expected.size}", where=where,
                          remedy="The two sides do not mean the same stage")  # fmt: skip


def place(stage: str, layer: int | None) -> str:
    """A stage of a layer, or of the whole model, in words."""
    return stage if layer is None else f"{stage} of layer {layer}"


def first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The first index at which two different sequences differ; one may be the beginning of the other."""
    return next(i for i, (x, y) in enumerate(zip_longest(a, b, fillvalue=None)) if x != y)


def excerpt(text: str | None, at: int) -> str:
    """A few characters around a place, quoted."""
    return "no text" if text is None else repr(text[max(0, at - 8) : at + 16])
