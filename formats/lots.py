"""A tensor a lot at a time: some rows of it, raw and decoded, so that memory does not grow with the tensor.

A tensor is seen as a matrix [n_rows, n_columns] whose row is the last axis; a vector is one row. A row longer than a
lot is cut into pieces. Rows may be padded to whole blocks (APR does that): what lies behind the last column is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from formats import blocks
from formats.container import Container, TensorInfo

LOT = 1 << 17
"""Elements; half a megabyte of f32 stays in a core's cache while it is looked at several times."""


class Lot(NamedTuple):
    """``values[i, j]`` is element [rows.start + i, columns.start + j] of the tensor."""

    rows: slice
    columns: slice
    values: np.ndarray
    """f32 [rows, columns], new and writable."""


def matrix_shape(info: TensorInfo) -> tuple[int, int]:
    """(n_rows, n_columns); a vector is one row, a number is one of one."""
    return math.prod(info.shape[:-1]), (info.shape[-1] if info.shape else 1)


def readable(info: TensorInfo) -> bool:
    """Whether the tensor can be decoded row by row."""
    n_rows, n_columns = matrix_shape(info)
    if info.type.name not in blocks.DECODABLE or n_rows * n_columns == 0:
        return info.type.name in blocks.DECODABLE
    per_row, rest = divmod(info.nbytes, n_rows)
    whole = per_row % info.type.block_bytes == 0
    return not rest and whole and per_row // info.type.block_bytes * info.type.block_elements >= n_columns


def raw_rows(container: Container, name: str) -> np.ndarray:
    """The stored bytes, u8 [n_rows, row_bytes], read-only. The tensor must be `readable` and not empty."""
    return container.raw(name).reshape(matrix_shape(container.tensors[name])[0], -1)


def lots(container: Container, name: str, elements: int = LOT) -> Iterator[Lot]:
    """All of a `readable` tensor in order, about ``elements`` at a time; NaN and infinities as they are."""
    info = container.tensors[name]
    n_rows, n_columns = matrix_shape(info)
    if n_rows * n_columns == 0:
        return
    raw, kind = raw_rows(container, name), info.type
    rows_a_lot = max(1, elements // n_columns)
    blocks_a_lot = max(1, elements // kind.block_elements)  # used for long rows: then rows_a_lot is 1
    n_blocks = raw.shape[1] // kind.block_bytes
    for row in range(0, n_rows, rows_a_lot):
        rows = slice(row, min(row + rows_a_lot, n_rows))
        for block in range(0, n_blocks, max(blocks_a_lot, n_blocks if rows_a_lot > 1 else 1)):
            stop = n_blocks if rows_a_lot > 1 else min(block + blocks_a_lot, n_blocks)
            columns = slice(block * kind.block_elements, min(stop * kind.block_elements, n_columns))
            piece = raw[rows, block * kind.block_bytes : stop * kind.block_bytes]
            values = blocks.dequantize(kind.name, piece)[:, : columns.stop - columns.start]
            yield Lot(rows, columns, values)
