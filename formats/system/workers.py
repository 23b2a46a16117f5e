"""Work through the tensors of a file with a few threads, with progress, bounded memory, and an end when asked to end.

NumPy and hashlib let go of the interpreter while they compute, so two threads are nearly twice as fast as one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from assay.formats.system.progress import Progress, Tick, quiet

RELEASE_EVERY = 64 << 20
"""Bytes read before the pages of the files are given back: a map must not count as memory used."""

T = TypeVar("T")


class Releasable(Protocol):
    """An open file whose pages can be given back."""

    def release(self) -> None: ...


class _Stopped(Exception):
    """Thrown in a thread when nobody waits for its result any more."""


def each(work: Callable[[str, Tick], T], nbytes: Mapping[str, int], *, files: Iterable[Releasable],
         progress: Progress = quiet, label: str = "reading tensors", threads: int = 2) -> dict[str, T]:  # fmt: skip
    """``work(name, tick)`` for every name, the largest first; the results in the order of ``nbytes``.

    What ``work`` raises is raised here. ``progress`` hears of bytes, of the sum of ``nbytes``.
    """
    files, total = list(files), sum(nbytes.values())
    lock, stop = threading.Lock(), threading.Event()
    done = unreleased = 0

    def tick(n: int) -> None:
        nonlocal done, unreleased
        if stop.is_set():
            raise _Stopped
        with lock:
            done, unreleased = done + n, unreleased + n
            if unreleased > RELEASE_EVERY:
                unreleased = 0
                for file in files:
                    file.release()

    with ThreadPoolExecutor(threads) as pool:
        try:
            jobs = {name: pool.submit(work, name, tick) for name in sorted(nbytes, key=lambda name: -nbytes[name])}
            pending = set(jobs.values())
            while pending:
                _, pending = wait(pending, timeout=0.1)
                progress(min(done, total), total, label)
            return {name: jobs[name].result() for name in nbytes}
        except BaseException:  # Ctrl-C: the threads must not go on to the end of the file
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for file in files:
                file.release()
