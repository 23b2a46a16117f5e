"""Fingerprints of rows and columns, by which permuted and transposed tensors are recognised without being held.

    row[i]    = sum over j of bits(x[i, j]) * m[j]      mod 2**64
    column[j] = sum over i of bits(x[i, j]) * m[i]      mod 2**64

``bits`` are those of the f32 value (-0 counts as 0), ``m`` fixed odd numbers, so equal rows have equal prints wherever
they lie, unequal ones with a chance of about 2**-64 a pair. a is b transposed if a's rows print like b's columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.formats.containers.base import Container, TensorInfo
from assay.formats.inspection.row_chunks import matrix_shape, row_chunks


class Prints(NamedTuple):
    """u64 [n_rows] and u64 [n_columns]; a vector has one row and its elements are the columns."""

    rows: np.ndarray
    columns: np.ndarray


def multipliers(start: int, stop: int) -> np.ndarray:
    """m[start:stop], u64 and odd: the splitmix64 sequence (Steele, Lea and Flood, 2014)."""
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def prints_of(container: Container, info: TensorInfo) -> Prints:
    """One pass over a `readable` tensor."""
    n_rows, n_columns = matrix_shape(info)
    rows, columns = np.zeros(n_rows, np.uint64), np.zeros(n_columns, np.uint64)
    for chunk in row_chunks(container, info.name):
        bits = (chunk.values + np.float32(0)).view(np.uint32).astype(np.uint64)
        rows[chunk.rows] += (bits * multipliers(chunk.columns.start, chunk.columns.stop)).sum(axis=1, dtype=np.uint64)
        by_row = multipliers(chunk.rows.start, chunk.rows.stop)[:, None]
        columns[chunk.columns] += (bits * by_row).sum(axis=0, dtype=np.uint64)
    return Prints(rows, columns)


def permutation(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """``p`` with ``b[i] == a[p[i]]`` for prints of equal length, or None; equal items keep their order."""
    in_a, in_b = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    if not np.array_equal(a[in_a], b[in_b]):
        return None
    p = np.empty(len(a), np.int64)
    p[in_b] = in_a
    return p
