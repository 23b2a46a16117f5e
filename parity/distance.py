"""How far one activation is from the true one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from assay.formats.contract.arguments import checked
from assay.parity.coherence import COARSE, Projections, projections
from assay.parity.precision import float_step


class Distance(NamedTuple):
    """An activation ``x`` beside the truth ``t``, both [n_tokens, size]; the difference is d = x - t."""

    relative_l2: float
    """|d| / |t| over everything."""
    worst_position: float
    """The largest |d_i| / |t_i| of a position i: a fault that only one position has drowns in the whole."""
    position: int
    peak: float
    """The largest |d_ij| over the root mean square of t_i: likewise one channel's fault."""
    channel: int
    cosine: float
    std_ratio: float
    """Sample standard deviation of x over that of t: the incident's criterion, reported and never trusted alone."""
    bias: float
    """Mean of d over its root mean square: 0 where errors cancel, ±1 where all have one sign."""
    max_ulp: float
    """The largest |d_ij| in units of f32's spacing at t_ij."""
    n_bad: int
    """Elements of x that are NaN or infinite."""
    projections: Projections | None = None
    """What of the error points one way; None where it is not finite, or so small that its size says all."""

    def figures(self) -> dict[str, float]:
        """Everything that is one number, by name."""
        return {name: value for name, value in self._asdict().items() if name != "projections"}


@checked
def distance(found: np.ndarray, truth: np.ndarray) -> Distance:
    """``found`` against ``truth``, first axis positions, the rest of any shape; computed in f64."""
    x, t = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (found, truth))
    n_bad = int(x.size - np.isfinite(x).sum())
    if n_bad:
        at = np.argwhere(~np.isfinite(x))[0]
        return Distance(np.inf, np.inf, int(at[0]), np.inf, int(at[1]), np.nan, np.nan, np.nan, np.inf, n_bad)
    d = x - t
    by_position = over(np.linalg.norm(d, axis=1), np.linalg.norm(t, axis=1))
    peaks = over(np.abs(d), np.sqrt(np.square(t).mean(1, keepdims=True)))
    position, rms = int(by_position.argmax()), float(np.sqrt(np.square(d).mean()))
    relative = float(over(np.linalg.norm(d), np.linalg.norm(t)))
    return Distance(
        relative_l2=relative,
        worst_position=float(by_position[position]),
        position=position,
        peak=float(peaks.max()),
        channel=int(np.unravel_index(peaks.argmax(), peaks.shape)[1]),
        cosine=float(over((x * t).sum(), np.linalg.norm(x) * np.linalg.norm(t))),
        std_ratio=float(over(x.std(ddof=1), t.std(ddof=1))),
        bias=float(d.mean() / rms) if rms else 0.0,
        max_ulp=float((np.abs(d) / np.maximum(float_step(23)(t), 2.0**-149)).max()),
        n_bad=0,
        # Of a stage whose floor is coarse no run is as small as this: its error adds up too many roundings to vary so.
        projections=projections(x, t) if relative > COARSE / 8 else None,
    )


def over(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """a / b, where 0 / 0 is 0 and anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(a, 0), 0.0, np.divide(a, b))
