"""What noisy runs allow: the floor of each stage's error, and an error in units of it.

Magnitudes (everything, the worst position, the worst channel) are held against the largest that the runs showed, and
may be ``TOLERANCE_FACTOR`` times as large: another draw may be larger, and right engines showed up to 2.4
(``docs/parity.md``).
Where the declared rounding is coarse, what points one way is tested as well (``coherence.py``); its limits follow from
an error rate, and count as ``TOLERANCE_FACTOR`` floors, so that one unit serves all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np

from assay.parity.coherence import COARSE, PATTERNS, Projections, Spread, ratios, spreads
from assay.parity.distance import Distance
from assay.parity.precision import Key

TOLERANCE_FACTOR = 4.0
"""Floors that an error may measure."""
MAGNITUDES = ("relative_l2", "worst_position", "peak")
"""What of a distance is held against the largest of the runs."""


class Floor(NamedTuple):
    """Of one stage."""

    relative_l2: float
    worst_position: float
    peak: float
    spread: Spread | None = None
    """Of what points one way; None where nothing coarser than f32 is rounded before the stage."""

    @property
    def finite(self) -> bool:
        """Whether it was measured: a floor that is not a number, or infinite, would allow everything."""
        return bool(np.isfinite(self[:3]).all())

    def magnitudes(self) -> dict[str, float]:
        """The limits of the magnitudes, by name."""
        return dict(zip(MAGNITUDES, self[:3], strict=True))


NoiseFloor = dict[Key, Floor]


def floor_of(runs: Sequence[Mapping[Key, Distance]]) -> NoiseFloor:
    """The floor of every stage that each of ``runs`` shows."""
    largest = {key: [max(getattr(run[key], m) for run in runs) for m in MAGNITUDES] for key in runs[0]}
    shown = {key: [some for run in runs if averages(some := run[key].projections)] for key, limits in largest.items()
             if np.isfinite(limits).all() and limits[0] > COARSE}  # fmt: skip
    coarse = {key: found for key, found in shown.items() if len(found) == len(runs)}
    spread = spreads([{key: found[i] for key, found in coarse.items()} for i in range(len(runs))])
    return {key: Floor(*limits, spread=spread.get(key)) for key, limits in largest.items()}


def averages(found: Projections | None) -> TypeGuard[Projections]:
    """Whether there is something to average: of one position, such as the last of a prompt, a few runs do not say how
    the size of its error scatters, or any channel's."""
    return found is not None and len(found.position_gain) > 1


def in_floors(found: Distance, floor: Floor) -> dict[str, float]:
    """Each test's value in floors, by name. A floor of zero allows an error of zero only; NaN: there is no floor."""
    if not floor.finite:
        return dict.fromkeys(MAGNITUDES, np.nan)
    said = {}
    for measure, limit in floor.magnitudes().items():
        value = getattr(found, measure)
        said[measure] = 0.0 if value == 0 else value / limit if limit else np.inf
    if floor.spread and found.projections:
        said |= {name: TOLERANCE_FACTOR * one for name, one in ratios(found.projections, floor.spread).items()}
    return said


def over_floor(found: Distance, floor: Floor) -> float:
    """The largest of an error's tests in floors."""
    return float(max(in_floors(found, floor).values()))


def packed(floor: NoiseFloor) -> np.ndarray:
    """A floor as one array, f64."""
    rows = []
    for one in floor.values():
        spread = one.spread
        rows.append([*one[:3], float(spread is not None)])
        if spread:
            rows += [[spread.size], *(one[p] for one in (spread.sigma, spread.allowed) for p in PATTERNS),
                     [spread.total[p] for p in ("size", *PATTERNS[1:])]]  # fmt: skip
    return np.concatenate(rows)


def unpacked(array: np.ndarray, truth: Mapping[Key, np.ndarray]) -> NoiseFloor:
    """The floor that was ``packed``, of stages shaped as ``truth``. Raises ValueError where it is of others."""
    at = 0

    def take(n: int) -> np.ndarray:
        nonlocal at
        at += n
        if at > len(array):
            raise ValueError("too short")
        return array[at - n : at]

    floor: NoiseFloor = {}
    for key, t in truth.items():
        *limits, coarse = take(4).tolist()
        spread = None
        if coarse:
            n, channels = len(t), t.size // len(t)
            (size,) = take(1).tolist()
            lengths = dict(zip(PATTERNS, (1, channels, channels, n, n), strict=True))
            sigma, allowed = ({p: take(k) for p, k in lengths.items()} for _ in range(2))
            total: dict[str, float] = dict(zip(("size", *PATTERNS[1:]), take(len(PATTERNS)).tolist(), strict=True))
            spread = Spread(size, sigma, allowed, total)
        floor[key] = Floor(*limits, spread=spread)
    if at != len(array):
        raise ValueError("too long")
    return floor
