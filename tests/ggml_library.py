"""ggml's own quantisers, called in the shared library that the ``xllamacpp`` wheel carries (extra ``peers``)."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME

AVAILABLE = find_spec("xllamacpp") is not None and platform.machine() in ("x86_64", "AMD64")
"""Elsewhere a compiler may fuse multiplication and addition: other bytes, rightly (formats/quantizers/rounding.py)."""


@cache
def library() -> Any:
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *3 * [ctypes.c_int64], ctypes.c_void_p]
    return function


def ggml_quantize(type_name: str, values: np.ndarray) -> np.ndarray:
    """f32 [n_rows, n] -> uint8 [n_rows, row_bytes], without an importance matrix."""
    kind, x = BY_NAME[type_name], np.ascontiguousarray(values, np.float32)
    out = np.zeros((x.shape[0], x.shape[1] // kind.block_elements * kind.block_bytes), np.uint8)
    written = library()(kind.id, x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], None)
    assert written == out.nbytes
    return out
