"""Compiling ahead of time: each program once for each shape, kept on disk for the next process.

A *program* here is a function of ``accel/steps.py`` compiled for one set of shapes. Compiling is part of speed, so it
is timed apart, may begin before the weights are there (shapes are enough), and its result is kept in JAX's persistent
compilation cache, beside the models in ``~/.cache/assay/xla`` (``ASSAY_XLA_CACHE=off`` turns it off). JAX's own key
covers program, versions, options and processor. Like every such cache it is code: its folder is the user's own.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

Key = tuple[Any, ...]


class Programs:
    """Compiled programs by key."""

    def __init__(self) -> None:
        self.compile_s = 0.0
        """Seconds that callers of :meth:`run` waited for compiling."""
        self._compiled: dict[Key, Any] = {}
        self._coming: dict[Key, Future[Any]] = {}

    def prepare(self, key: Key, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin to compile ``function`` for arguments like these (arrays or shapes) in the background."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        self._coming[key] = pool.submit(compiled, function, *arguments)
        pool.shutdown(wait=False)

    def run(self, key: Key, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` (a ``jax.jit``), compiled once for ``key``."""
        if key not in self._compiled:
            started = time.perf_counter()
            coming = self._coming.pop(key, None)
            self._compiled[key] = coming.result() if coming else compiled(function, *arguments)
            self.compile_s += time.perf_counter() - started
        return self._compiled[key](*arguments)


def compiled(function: Any, *arguments: Any) -> Any:
    """``function`` (a ``jax.jit``) compiled for these arguments or shapes."""
    program = function.lower(*arguments).compile(compiler_options())
    give_back_memory()
    return program


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library is glibc: compiling leaves 160 MB that it would keep."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def compiler_options() -> dict[str, Any]:
    """Options for this device. XLA's CPU backend prefers 256-bit vectors even where the processor has 512; the integer
    dots gain 20 to 50 % from the wider ones (measured on Zen 4), and narrower processors ignore the wish."""
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}


_once = threading.Lock()


def keep_programs_on_disk() -> None:
    """Turn on the persistent compilation cache, unless the user has set one up or said no."""
    with _once:
        if os.environ.get("ASSAY_XLA_CACHE") == "off" or jax.config.values["jax_compilation_cache_dir"]:
            return
        cache = os.environ.get("XDG_CACHE_HOME", "")
        folder = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"), "assay", "xla")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
