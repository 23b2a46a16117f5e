"""Where each field of a GGUF file's header lies (the layout is drawn in formats/containers/gguf.py)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from assay.formats.blocks.ggml_types import BY_ID
from assay.formats.containers.base import Container
from assay.formats.containers.gguf_metadata import ARRAY, NUMBERS, STRING
from assay.formats.errors import FormatError
from assay.formats.inspection.span import Span

HEADER_BYTES = 24
SHOWN_ITEMS = 4


class _Walk:
    """A cursor over the mapped file that names what it passes; fields outside start:stop are passed in silence."""

    def __init__(self, container: Container, start: int, stop: int) -> None:
        if container.map is None:
            raise FormatError("no-data", "only the metadata was read", path=container.path, field="layout",
                              remedy="Open the file without metadata_only.")  # fmt: skip
        self.data, self.start, self.stop, self.at = container.map, start, stop, 0

    def field(self, length: int, name: str, value: Any) -> Iterator[Span]:
        """The next ``length`` bytes, whose meaning is ``value``."""
        if length and self.start < self.at + length and self.at < self.stop:
            yield Span(self.at, length, name, value)
        self.at += length

    def number(self, code: str) -> Any:
        """The number ``at``, without passing it."""
        return struct.unpack_from(code, self.data, self.at)[0]

    def skip_strings(self, count: int) -> int:
        """Pass those of ``count`` strings that end before ``start``; how many. A vocabulary has 300,000."""
        data, at, start, length_at = self.data, self.at, self.start, struct.Struct("<Q").unpack_from
        for i in range(count):
            end = at + 8 + length_at(data, at)[0]
            if end > start:
                self.at = at
                return i
            at = end
        self.at = at
        return count

    def text(self, name: str) -> Iterator[Span]:
        """u64 length, bytes."""
        n = self.number("<Q")
        yield from self.field(8, f"{name}.length", n)
        yield from self.field(n, name, bytes(self.data[self.at : self.at + min(n, 200)]).decode(errors="replace"))


def gguf_fields(container: Container, start: int, stop: int) -> Iterator[Span]:
    """Header, key/value pairs and tensor infos that lie in bytes ``start:stop``."""
    walk = _Walk(container, start, stop)
    n_tensors, n_pairs = struct.unpack_from("<QQ", walk.data, 8)
    yield from walk.field(4, "header.magic", "GGUF")
    yield from walk.field(4, "header.version", walk.number("<I"))
    yield from walk.field(8, "header.n_tensors", n_tensors)
    yield from walk.field(8, "header.n_kv", n_pairs)
    for i in range(n_pairs):
        if walk.at >= stop:
            return
        yield from _pair(walk, f"kv[{i}]")
    for i in range(n_tensors):
        if walk.at >= stop:
            return
        yield from _info(walk, f"tensor[{i}]")


def _pair(walk: _Walk, name: str) -> Iterator[Span]:
    yield from walk.text(f"{name}.key")
    kind = walk.number("<I")
    yield from walk.field(4, f"{name}.type", _type_name(kind))
    if kind != ARRAY:
        yield from _items(walk, kind, 1, f"{name}.value")
        return
    kind = walk.number("<I")
    yield from walk.field(4, f"{name}.item_type", _type_name(kind))
    count = walk.number("<Q")
    yield from walk.field(8, f"{name}.count", count)
    yield from _items(walk, kind, count, f"{name}.value")


def _items(walk: _Walk, kind: int, count: int, name: str) -> Iterator[Span]:
    if kind == STRING:
        for i in range(walk.skip_strings(count), count):
            if walk.at >= walk.stop:
                return
            yield from walk.text(name if count == 1 else f"{name}[{i}]")
        return
    dtype = np.dtype(NUMBERS[kind][1])
    items = np.frombuffer(walk.data, dtype, count, walk.at)
    said = ", ".join(map(str, items[:SHOWN_ITEMS].tolist())) + (" ..." if count > SHOWN_ITEMS else "")
    yield from walk.field(count * dtype.itemsize, name, said)


def _type_name(kind: int) -> str:
    return {ARRAY: "array", STRING: "string"}.get(kind) or NUMBERS[kind][0]


def _info(walk: _Walk, name: str) -> Iterator[Span]:
    yield from walk.text(f"{name}.name")
    n_dims = walk.number("<I")
    yield from walk.field(4, f"{name}.n_dims", n_dims)
    for axis in range(n_dims):
        yield from walk.field(8, f"{name}.dims[{axis}]", walk.number("<Q"))
    kind = walk.number("<I")
    yield from walk.field(4, f"{name}.type", f"{kind} ({BY_ID[kind].name})")
    yield from walk.field(8, f"{name}.offset", walk.number("<Q"))


def gguf_marks(container: Container) -> list[tuple[str, int, int]]:
    """(section, start, stop) of what comes before the tensor data."""
    walk = _Walk(container, container.size, container.size)  # nothing is named, only passed
    n_tensors, n_pairs = struct.unpack_from("<QQ", walk.data, 8)
    walk.at = HEADER_BYTES
    for _ in range(n_pairs):
        for _ in _pair(walk, ""):
            pass
    metadata = walk.at
    for _ in range(n_tensors):
        for _ in _info(walk, ""):
            pass
    return [("header", 0, HEADER_BYTES), ("metadata", HEADER_BYTES, metadata), ("tensor infos", metadata, walk.at)]
