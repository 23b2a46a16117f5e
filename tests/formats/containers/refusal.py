"""What every refusal of a reader has to be: a FormatError of one line, at once, at no cost."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.formats.containers.gguf import read_gguf
from assay.formats.errors import FormatError

MAX_SECONDS = 1.0
MAX_BYTES = 64 << 20


def refused(path: Path, code: str | None = None, read: Callable[..., object] = read_gguf,
            **options: bool) -> FormatError:  # fmt: skip
    """The error with which ``read`` refuses ``path``, within the bounds every refusal has to keep."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            read(path, **options)
        seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    assert code is None or error.code == code, str(error)
    assert seconds < MAX_SECONDS and peak < MAX_BYTES
    text = str(error)
    assert text.isprintable() and len(text) < 2000 and error.remedy and error.field
    return error
