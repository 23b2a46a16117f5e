"""What f32 can be wrong by, derived: an oracle that is further off is not the measure of anything.

Floors are measured on the oracle in f32, so a fault that only this oracle has is in its floor, too, and hides there.
(Its causal mask taken away, the verdict was once BIT-EQUAL.) So its errors are held against bounds in which no run has
a part.

A stage rounds each result and a few intermediate ones: ``EIGHT`` last bits. A sum of K terms rounds its partial sums:
2^-24 sqrt(K / 6) of its row's size (``precision.py``). Before softmax a score s is off by 2^-24 |s| sqrt(d / 3), which
changes a weight by as much of itself; |s| is at most |q| |k| / sqrt(d). An error may be ``SLACK`` times the sum of
these, for terms that cancel. What is looked for is a thousand times larger and more.

From below, likewise: a floor of a product that is far smaller than its sums' rounding was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from assay.parity.distance import Distance
from assay.parity.floor import NoiseFloor
from assay.parity.precision import Key, Sum

EIGHT = 8
SLACK = 16.0
"""The oracle's errors were at most 0.06 of these bounds on the built-in model, the 0.5B and the 1.5B."""


def f32_bound(key: Key, truth: Mapping[Key, np.ndarray], sums: Mapping[Key, Sum]) -> float:
    """The relative L2 error that a right oracle in f32 may have in the stage ``key``, fed with the truth."""
    stage, layer = key
    roundings = EIGHT + summing(key, truth, sums)
    if stage == "attention":
        q, k = truth["q_rope", layer], truth["k_rope", layer]
        head_dim = q.shape[-1]
        largest = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max() / head_dim**0.5
        roundings += float(largest) * (head_dim / 3) ** 0.5
    return SLACK * roundings * 2.0**-24


def summing(key: Key, truth: Mapping[Key, np.ndarray], sums: Mapping[Key, Sum]) -> float:
    """What a stage's sums round, in units of 2^-24 of its size; 0 where nothing is added up."""
    if key not in sums:
        return 0.0
    terms = sums[key].terms
    return ((len(truth[key]) if terms is None else terms) / 6) ** 0.5


def beyond_f32(oracle: Mapping[Key, Distance], truth: Mapping[Key, np.ndarray],
               sums: Mapping[Key, Sum]) -> dict[Key, float]:  # fmt: skip
    """The stages in which the oracle's own errors are beyond the bound, and how many times."""
    found = {key: one.relative_l2 / f32_bound(key, truth, sums) for key, one in oracle.items()}
    return {key: ratio for key, ratio in found.items() if not ratio <= 1}


def unmeasured(floor: NoiseFloor, truth: Mapping[Key, np.ndarray], sums: Mapping[Key, Sum]) -> list[Key]:
    """The stages whose floor is not a number, or smaller than rounding alone would leave it."""
    return [key for key, one in floor.items() if not one.finite or (
            key in sums and not sums[key].squares and truth[key].any()
            and SLACK * one.relative_l2 < summing(key, truth, sums) * 2.0**-24)]  # fmt: skip
