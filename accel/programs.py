"""Compiling ahead of time: each program once for each shape, kept on disk for the next process.

A *program* here is a function of ``accel/steps.py`` compiled for one set of shapes. Compiling is part of speed, so it
is timed apart, may begin before the weights are there (shapes are enough), and its result is kept beside the models in
``~/.cache/assay/xla`` for the next process (``accel/kept_programs.py``).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from assay.accel.kept_programs import load, path_of, save

Key = tuple[Any, ...]


class Programs:
    """Compiled programs by key.

    ``made_from``: what they are made from beside key and arguments, as plain data; None if that cannot be said, or if
    they call the host back. Then they are not kept on disk.
    """

    def __init__(self, made_from: tuple[Any, ...] | None = None) -> None:
        self._made_from = made_from
        self.compile_s = 0.0
        """Seconds that callers of :meth:`run` waited for compiling."""
        self._compiled: dict[Key, Any] = {}
        self._coming: dict[Key, Future[Any]] = {}

    def prepare(self, key: Key, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin to compile ``function`` for arguments like these (arrays or shapes) in the background."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        self._coming[key] = pool.submit(self._ready, key, function, *arguments)
        pool.shutdown(wait=False)

    def run(self, key: Key, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` (a ``jax.jit``), compiled once for ``key``."""
        if key not in self._compiled:
            started = time.perf_counter()
            coming = self._coming.pop(key, None)
            self._compiled[key] = coming.result() if coming else self._ready(key, function, *arguments)
            self.compile_s += time.perf_counter() - started
        return self._compiled[key](*arguments)

    def _ready(self, key: Key, function: Any, *arguments: Any) -> Any:
        """The program from the disk, else compiled, and kept there."""
        path = None if self._made_from is None else path_of((self._made_from, key), arguments)
        program = load(path)
        if program is None:
            program = compiled(function, *arguments)
            save(path, program)
        return program


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
