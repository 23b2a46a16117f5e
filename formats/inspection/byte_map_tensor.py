"""Where each field of a tensor's blocks lies, and what a block decodes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from assay.formats import blocks
from assay.formats.blocks.fields import FIELDS, meaning
from assay.formats.containers.base import Container, TensorInfo
from assay.formats.inspection.row_chunks import matrix_shape, readable
from assay.formats.inspection.span import Span

LINE = 16
"""Bytes of a packed field, or of plain numbers, that one span covers."""


@dataclass(frozen=True)
class Block:
    """One block taken apart."""

    tensor: str
    type: str
    index: int
    n_blocks: int
    offset: int
    """Of its first byte in the file."""
    row: int
    first: int
    """Column of its first element."""
    scales: list[int]
    mins: list[int]
    """Of its groups, as stored; empty for a type without minima."""
    values: np.ndarray
    """f32 [elements]."""


def tensor_fields(container: Container, name: str, start: int, stop: int) -> Iterator[Span]:
    """The fields of a tensor's data that overlap bytes ``start:stop`` of the file."""
    info = container.tensors[name]
    if not readable(container, name) or container.row_type(name) != info.type:
        yield Span(info.offset, info.nbytes, "data", info.type.name, name)
    elif info.type.name in FIELDS:
        yield from _block_fields(container, info, start, stop)
    else:
        yield from _plain_fields(container, info, start, stop)


def _block_fields(container: Container, info: TensorInfo, start: int, stop: int) -> Iterator[Span]:
    raw, size = container.raw(info.name), info.type.block_bytes
    first, last = max(start - info.offset, 0) // size, -(-(min(stop, info.offset + info.nbytes) - info.offset) // size)
    for index in range(first, last):
        block = raw[index * size : (index + 1) * size].tobytes()
        at = info.offset + index * size
        for field in FIELDS[info.type.name]:
            content = block[field.offset : field.offset + field.length]
            for begin in range(0, field.length, LINE):
                end = min(begin + LINE, field.length)
                place = at + field.offset + begin
                if place < stop and start < at + field.offset + end:
                    said = meaning(field, content, begin, end)
                    yield Span(place, end - begin, field.name, said, info.name, index)


def _plain_fields(container: Container, info: TensorInfo, start: int, stop: int) -> Iterator[Span]:
    """Numbers without blocks, some to a span; the span does not run over the end of a row."""
    raw, size = container.raw(info.name), info.type.block_bytes
    n_rows, n_columns = matrix_shape(info)
    row_bytes = info.nbytes // n_rows
    first, last = max(start - info.offset, 0) // row_bytes, -(-(stop - info.offset) // row_bytes)
    for row in range(first, min(last, n_rows)):
        lowest = max(start - info.offset - row * row_bytes, 0) // LINE * LINE
        highest = min(stop - info.offset - row * row_bytes, row_bytes)
        for begin in range(lowest, highest, LINE):
            piece = raw[row * row_bytes + begin : row * row_bytes + min(begin + LINE, row_bytes)]
            values = blocks.dequantize(info.type.name, piece)
            column = begin // size
            label = f"[{row}, {column}..{min(column + len(values), n_columns) - 1}]"
            said = " ".join(f"{value:.5g}" for value in values)
            yield Span(info.offset + row * row_bytes + begin, piece.size, label, said, info.name)


def block_at(container: Container, name: str, index: int) -> Block | None:
    """Block ``index`` of a tensor taken apart; None if its type has no blocks or cannot be decoded."""
    info = container.tensors[name]
    if info.type.name not in FIELDS:
        return None
    size, elements = info.type.block_bytes, info.type.block_elements
    raw = container.raw(name)[index * size : (index + 1) * size]
    per_row = info.nbytes // matrix_shape(info)[0] // size
    quants = blocks.unpack(info.type.name, raw)
    grouped = quants.scale.shape[-1] > 1
    return Block(
        tensor=name, type=info.type.name, index=index, n_blocks=info.nbytes // size, offset=info.offset + index * size,
        row=index // per_row, first=index % per_row * elements,
        scales=quants.scale.ravel().tolist() if grouped else [],
        mins=quants.min.ravel().tolist() if grouped and quants.min is not None else [],
        values=blocks.dequantize(info.type.name, raw),
    )  # fmt: skip
