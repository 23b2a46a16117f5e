"""A tensor a chunk at a time: some rows of it, raw and decoded, so that memory does not grow with the tensor.

A tensor is seen as a matrix [n_rows, n_columns] whose row is the last axis; a vector is one row. A row longer than a
chunk is cut into pieces. Rows may be padded to whole blocks (APR does that): what lies behind the last column is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from assay.formats import blocks
from assay.formats.containers.base import Container, TensorInfo

CHUNK_ELEMENTS = 1 << 17
"""Elements; half a megabyte of f32 stays in a core's cache while it is looked at several times."""
PIECE = 1 << 22
RELEASE_EVERY = 64 << 20
"""Bytes read before the pages of the file are given back: a map must not count as memory used."""


class RowChunk(NamedTuple):
    """``values[i, j]`` is element [rows.start + i, columns.start + j] of the tensor."""

    rows: slice
    columns: slice
    values: np.ndarray
    """f32 [rows, columns], new and writable."""


def matrix_shape(info: TensorInfo) -> tuple[int, int]:
    """(n_rows, n_columns); a vector is one row, a number is one of one."""
    return info.n_rows, (info.shape[-1] if info.shape else 1)


def readable(container: Container, name: str) -> bool:
    """Whether the tensor can be decoded."""
    return container.row_type(name).name in blocks.DECODABLE


def row_chunks(container: Container, name: str, elements: int = CHUNK_ELEMENTS) -> Iterator[RowChunk]:
    """All of a `readable` tensor in order, about ``elements`` at a time; NaN and infinities as they are."""
    n_rows, n_columns = matrix_shape(container.tensors[name])
    if n_rows * n_columns == 0:
        return
    if n_columns > elements:
        yield from _pieces(container, name, elements)
        return
    kind, step, unreleased = container.row_type(name), elements // n_columns, 0
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        raw = container.rows(name, rows)
        yield RowChunk(rows, slice(0, n_columns), blocks.dequantize(kind.name, raw)[:, :n_columns])
        if (unreleased := unreleased + raw.nbytes) > RELEASE_EVERY:
            container.release()
            unreleased = 0


def pieces(container: Container, name: str) -> Iterator[np.ndarray]:
    """The stored bytes of a tensor in order, u8, at most PIECE at a time."""
    raw = container.raw(name)
    for start in range(0, raw.size, PIECE):
        yield raw[start : start + PIECE]
        if start % RELEASE_EVERY == 0:
            container.release()


def _pieces(container: Container, name: str, elements: int) -> Iterator[RowChunk]:
    """The same where a row is longer than a chunk."""
    (n_rows, n_columns), kind = matrix_shape(container.tensors[name]), container.row_type(name)
    n_blocks = max(1, elements // kind.block_elements)
    step, width = n_blocks * kind.block_bytes, n_blocks * kind.block_elements
    for row in range(n_rows):
        raw = container.rows(name, slice(row, row + 1))
        for i in range(-(-n_columns // width)):
            columns = slice(i * width, min((i + 1) * width, n_columns))
            values = blocks.dequantize(kind.name, raw[:, i * step : (i + 1) * step])
            yield RowChunk(slice(row, row + 1), columns, values[:, : columns.stop - columns.start])
