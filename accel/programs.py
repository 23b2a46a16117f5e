"""Compiling ahead of time: each program once for each shape, kept on disk for the next process.

A *program* here is a function of ``accel/steps.py`` compiled for one set of shapes. Compiling is part of speed, so it
is timed apart, may begin before the weights are there (shapes are enough), and its result is kept beside the models in
``~/.cache/assay/xla`` for the next process (``accel/kept_programs.py``).

What is traced, or found on disk, is looked up by the code as it is in memory at that moment
(``formats/system/code_digest.py``). A function whose code cannot be told, such as one that calls the host back, is
traced and compiled anew. A program that a model has, it keeps.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from assay.accel.jax_settings import in_own_settings
from assay.accel.kept_programs import load, path_of, save
from assay.formats.system.code_digest import digest

Key = tuple[Any, ...]
_JITTED: dict[tuple[str, tuple[int, ...]], Any] = {}
"""``jax.jit`` of functions by their code: models of the same shape share what is traced."""


class Programs:
    """Compiled programs by key, for one device."""

    def __init__(self, device: jax.Device) -> None:
        self.device = device
        self.compile_s = 0.0
        """Seconds that callers of :meth:`run` waited for compiling."""
        self._compiled: dict[Key, Any] = {}
        self._coming: dict[Key, Future[Any]] = {}

    def prepare(self, key: Key, function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> None:
        """Begin to compile ``function`` for arguments like these (arrays or shapes) in the background."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        self._coming[key] = pool.submit(self._ready, function, donate, *arguments)
        pool.shutdown(wait=False)

    def run(self, key: Key, function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
        """Call ``function``, compiled once for ``key``; ``donate``: the places of arguments that it may use up."""
        if key not in self._compiled:
            started = time.perf_counter()
            coming = self._coming.pop(key, None)
            self._compiled[key] = coming.result() if coming else self._ready(function, donate, *arguments)
            self.compile_s += time.perf_counter() - started
        return self._compiled[key](*arguments)

    @in_own_settings
    def _ready(self, function: Callable[..., Any], donate: tuple[int, ...], *arguments: Any) -> Any:
        """The program from the disk, else compiled, and kept there."""
        code = digest(function)
        path = path_of(code, donate, arguments)
        program = load(path, self.device)
        if program is None:
            program = compiled(jitted(function, code, donate), self.device, *arguments)
            if digest(function) == code:
                save(path, program)
            elif code is not None:  # replaced while it was traced: what that made is neither's
                _JITTED.pop((code, donate), None)
        return program


def jitted(function: Callable[..., Any], code: str | None, donate: tuple[int, ...]) -> Any:
    """``jax.jit`` of a function; one for all that have the same ``code``, since JAX keeps what it traced with it."""
    made = jax.jit(function, donate_argnums=donate)
    return made if code is None else _JITTED.setdefault((code, donate), made)


def compiled(function: Any, device: jax.Device, *arguments: Any) -> Any:
    """``function`` (a ``jax.jit``) compiled for these arguments or shapes, on ``device``, which JAX's settings name."""
    program = function.lower(*arguments).compile(compiler_options(device))
    give_back_memory()
    return program


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library is glibc: compiling leaves 160 MB that it would keep."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def compiler_options(device: jax.Device) -> dict[str, Any]:
    """Options for a device. XLA's CPU backend prefers 256-bit vectors even where the processor has 512; the integer
    dots gain 20 to 50 % from the wider ones (measured on Zen 4), and narrower processors ignore the wish."""
    return {"xla_cpu_prefer_vector_width": 512} if device.platform == "cpu" else {}
