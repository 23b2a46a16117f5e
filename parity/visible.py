"""What a green verdict cannot see: the smallest fault of each kind that a floor would have shown.

Computed from the floor, and held against faults of that size that are really planted (``tests/parity``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.parity.coherence import LAST_BITS
from assay.parity.floor import TOLERANCE_FACTOR, Floor


class Visible(NamedTuple):
    """The smallest faults of one stage that its floor would show."""

    gain: float
    """Of everything, as a part of it."""
    row: float
    """Of one channel, as a part of it: the median channel's."""
    channel: int
    """That channel."""
    element: float
    """One number's error, in units of its position's root mean square."""


def visible(floor: Floor, truth: np.ndarray) -> Visible:
    """What a floor shows, from ``truth`` [n_positions, ...] and itself alone; verified by planting faults of that size.

    A gain γ of everything moves every projection along the truth by γ of the truth's own root mean square; where the
    floor has no such tests, it moves the magnitudes.
    """
    t = np.asarray(truth, np.float64).reshape(len(truth), -1)
    t = np.where(np.isfinite(t), t, 0)  # of a dump: what it fed is what counts as true, and may be anything
    scale = np.sqrt(np.square(t).mean(1, keepdims=True))
    channels = np.sqrt(np.square(t / np.where(scale > 0, scale, 1)).mean(0))
    element = TOLERANCE_FACTOR * floor.peak
    rows = np.full(len(channels), element)  # the largest value of a channel is at least its root mean square
    gain = TOLERANCE_FACTOR * floor.relative_l2
    if spread := floor.spread:
        rows = np.minimum(rows, spread.allowed["channel_gain"])
        by_channel, by_position = (spread.total[f"{of}_gain"] / np.sqrt(np.square(size / (spread.sigma[
            f"{of}_gain"] + LAST_BITS)).mean()) for of, size in (("channel", channels), ("position", 1.0)))  # fmt: skip
        gain = min(gain, by_channel, by_position, float(spread.allowed["gain"][0]))
    rows = rows / np.where(channels > 0, channels, np.nan)
    if np.isnan(rows).all():
        return Visible(gain, float("inf"), 0, element)
    channel = int(np.argsort(np.where(np.isnan(rows), np.inf, rows))[np.isfinite(rows).sum() // 2])
    return Visible(gain, float(rows[channel]), channel, element)
