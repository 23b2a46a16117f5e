"""Raw safetensors bytes for tests, in which everything can be a lie. Knows nothing of the reader or the writer."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1, "I64": 8}


def whole(header: Any, data: bytes = b"", *, size: int | None = None) -> bytes:
    """A file of this header (bytes, or JSON to be) and data; ``size`` is what it claims of the header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def entry(dtype: str, shape: list[int], begin: int = 0, end: int | None = None) -> dict[str, Any]:
    n = SIZES.get(dtype, 1)
    for dim in shape:
        n *= dim
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + n if end is None else end]}


def packed(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
           metadata: Mapping[str, str] | None = None) -> bytes:  # fmt: skip
    """A well-formed file of tensors (dtype, shape, bytes), one after the other."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = entry(dtype, list(shape), len(data), len(data) + len(raw))
        data += raw
    return whole(header, data)
