"""How far apart two tensors are: the first different byte, and distances between the decoded values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from assay.formats.containers.base import Container, TensorInfo
from assay.formats.inspection.row_chunks import PIECE, RELEASE_EVERY, pieces, row_chunks
from assay.formats.system.progress import Tick, quiet


@dataclass(frozen=True)
class Measures:
    """Of two tensors a and b of one shape; sums in f64, over the positions where both are finite."""

    n: int
    n_different: int
    """Positions whose f32 values differ; two NaN are the same."""
    not_finite: int
    """Positions where either is NaN or infinite."""
    max_abs: float
    """Largest \\|b - a\\|, at ``worst``."""
    worst: tuple[int, int]
    """(row, column)."""
    aa: float
    bb: float
    ab: float
    dd: float
    """Sums of a², b², ab and (b - a)²."""
    d: float
    """Sum of b - a."""
    max_sum: float
    """Largest \\|a + b\\|: 0 if one is exactly the other's negative."""

    @property
    def relative_rms(self) -> float:
        """``sqrt(sum (b - a)² / sum a²)``; infinite if a is all zero and b is not."""
        if self.aa == 0:
            return math.inf if self.dd else 0.0
        return math.sqrt(self.dd / self.aa)

    @property
    def cosine(self) -> float:
        """NaN if either is all zero."""
        norms = math.sqrt(self.aa) * math.sqrt(self.bb)
        return max(-1.0, min(1.0, self.ab / norms)) if norms else math.nan


def identical(a: Container, b: Container) -> bool:
    """Whether two files of one size are the same bytes."""
    if a.map is None or b.map is None:
        return False
    for at in range(0, a.size, PIECE):
        if a.map[at : at + PIECE] != b.map[at : at + PIECE]:
            return False
        if at % RELEASE_EVERY == 0:
            a.release()
            b.release()
    return True


def difference(a: Container, ours: TensorInfo, b: Container, theirs: TensorInfo) -> int | None:
    """The first byte in which two tensors of one size differ, or None."""
    at = 0
    for left, right in zip(pieces(a, ours.name), pieces(b, theirs.name), strict=True):
        unlike = left != right
        if unlike.any():
            return at + int(unlike.argmax())
        at += left.size
    return None


def measure(a: Container, ours: TensorInfo, b: Container, theirs: TensorInfo, tick: Tick = quiet) -> Measures:
    """Walk through two tensors of one shape, chunk by chunk."""
    n = n_different = not_finite = 0
    max_abs, max_sum, worst = 0.0, 0.0, (0, 0)
    sums = np.zeros(5)
    nbytes, size = ours.nbytes + theirs.nbytes, max(math.prod(ours.shape), 1)
    for left, right in zip(row_chunks(a, ours.name), row_chunks(b, theirs.name), strict=True):
        x, y = left.values, right.values
        unlike = x != y
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            not_finite += int((~finite).sum())
            unlike &= ~(np.isnan(x) & np.isnan(y))
            x, y = np.where(finite, x, 0), np.where(finite, y, 0)
        n, n_different = n + x.size, n_different + int(np.count_nonzero(unlike))
        p, q = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
        d = q - p
        sums += p @ p, q @ q, p @ q, d @ d, d.sum()
        at = int(np.abs(d).argmax())
        if abs(d[at]) > max_abs:
            row, column = divmod(at, x.shape[1])
            max_abs, worst = float(abs(d[at])), (left.rows.start + row, left.columns.start + column)
        max_sum = max(max_sum, float(np.abs(p + q).max()))
        tick(nbytes * x.size // size)
    aa, bb, ab, dd, total = sums.tolist()
    return Measures(n, n_different, not_finite, max_abs, worst, aa, bb, ab, dd, total, max_sum)
