"""A named stretch of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """One field of a file. Bytes ``offset:offset + length``."""

    offset: int
    length: int
    field: str
    """E.g. ``kv[3].key``, ``tensor[0].dims[1]``, ``qs``."""
    value: Any
    """What the bytes say: a number, a text, or a few words."""
    tensor: str = ""
    """Name of the tensor whose data this is, if any."""
    block: int | None = None
    """Number of the block within the tensor."""

    @property
    def stop(self) -> int:
        return self.offset + self.length
