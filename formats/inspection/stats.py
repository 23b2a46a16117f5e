"""What the numbers of a tensor look like: extremes, moments, zeros, rows that say nothing, and the hash of its bytes.

Sums are taken in f64 of the decoded f32 values. Minimum, maximum, mean and the rest are those of the finite values;
NaN and infinities are counted apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from assay.formats.containers.base import Container
from assay.formats.contract.arguments import checked
from assay.formats.inspection.row_chunks import matrix_shape, pieces, readable, row_chunks
from assay.formats.system.progress import Progress, Tick, quiet
from assay.formats.system.workers import each


@dataclass(frozen=True)
class Values:
    """Of the decoded elements of one tensor."""

    n: int
    min: float
    max: float
    mean: float
    std: float
    abs_max: float
    l2: float
    """Square root of the sum of squares."""
    zeros: int
    nan: int
    inf: int
    n_rows: int
    zero_rows: int
    constant_rows: int
    """Rows that hold one value only, zero or not; a row of one element counts only if it is zero."""

    @property
    def zero_share(self) -> float:
        return self.zeros / self.n if self.n else 0.0

    @property
    def rms(self) -> float:
        return self.l2 / math.sqrt(self.n) if self.n else 0.0

    @property
    def dead_rows(self) -> int:
        return self.constant_rows


@dataclass(frozen=True)
class TensorStats:
    """``values`` is None for a type that cannot be decoded."""

    sha256: str
    """Of the stored bytes."""
    values: Values | None


@checked
def stats_of(container: Container, name: str, tick: Tick = quiet) -> TensorStats:
    """Statistics of one tensor."""
    info = container.tensors[name]
    digest = hashlib.sha256()
    for piece in pieces(container, name):
        digest.update(piece.data)
    if not readable(container, name):
        tick(info.nbytes)
        return TensorStats(digest.hexdigest(), None)
    n_rows, n_columns = matrix_shape(info)
    sums = _Sums(n_rows)
    for chunk in row_chunks(container, name):
        sums.add(chunk.values, chunk.rows)
        tick(info.nbytes * chunk.values.size // (n_rows * n_columns))
    return TensorStats(digest.hexdigest(), sums.result(n_columns))


class _Sums:
    """Running sums over the chunks of one tensor."""

    def __init__(self, n_rows: int) -> None:
        self.n = self.zeros = self.nan = self.inf = 0
        self.total = self.squares = 0.0
        self.low = np.full(n_rows, np.inf, np.float32)
        self.high = np.full(n_rows, -np.inf, np.float32)
        self.spoiled = np.zeros(n_rows, np.bool_)  # rows that hold a NaN or an infinity

    def add(self, values: np.ndarray, rows: slice) -> None:
        self.n += values.size
        self.zeros += values.size - int(np.count_nonzero(values))
        low, high = values.min(axis=1), values.max(axis=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            low, high = self._set_aside(values, rows)
        np.minimum(self.low[rows], low, out=self.low[rows])
        np.maximum(self.high[rows], high, out=self.high[rows])
        wide = values.astype(np.float64).ravel()
        self.total += float(wide.sum())
        self.squares += float(np.einsum("i,i->", wide, wide))

    def _set_aside(self, values: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Count what is not finite and make it 0 in ``values``; the rows' (minimum, maximum) without it."""
        bad = ~np.isfinite(values)
        nan = int(np.isnan(values).sum())
        self.nan += nan
        self.inf += int(bad.sum()) - nan
        self.spoiled[rows] |= bad.any(axis=1)
        low = np.where(bad, np.float32(np.inf), values).min(axis=1)
        high = np.where(bad, np.float32(-np.inf), values).max(axis=1)
        values[bad] = 0
        return low, high

    def result(self, n_columns: int) -> Values:
        finite = self.n - self.nan - self.inf
        low, high = (float(self.low.min()), float(self.high.max())) if finite else (math.nan, math.nan)
        mean = self.total / finite if finite else math.nan
        variance = max(self.squares / finite - mean * mean, 0.0) if finite else math.nan
        zero = (self.low == 0) & (self.high == 0) & ~self.spoiled
        constant = zero if n_columns < 2 else (self.low == self.high) & ~self.spoiled
        return Values(
            n=self.n, min=low, max=high, mean=mean, std=0.0 if low == high else math.sqrt(variance),
            abs_max=max(abs(low), abs(high)), l2=math.sqrt(self.squares), zeros=self.zeros, nan=self.nan, inf=self.inf,
            n_rows=len(self.low), zero_rows=int(zero.sum()), constant_rows=int(constant.sum()),
        )  # fmt: skip


@checked
def all_stats(container: Container, names: Iterable[str] | None = None, *, progress: Progress = quiet,
              threads: int = 2) -> dict[str, TensorStats]:  # fmt: skip
    """Statistics of ``names`` (None: of all tensors), in that order; memory does not grow with the file."""
    names = container.tensors if names is None else names
    nbytes = {name: container.tensors[name].nbytes for name in names}
    return each(lambda name, tick: stats_of(container, name, tick), nbytes, files=[container], progress=progress,
                threads=threads)  # fmt: skip
