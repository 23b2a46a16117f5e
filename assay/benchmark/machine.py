"""What figures were measured on: this machine, its memory, and what a process has taken of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from assay.formats.system.cpus import processors


def n_threads() -> int:
    """Processors this process may use: what our engines take, and so what an external one is given."""
    return processors()


def machine() -> dict[str, Any]:
    """System, processor, threads and versions."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "threads": n_threads(),
        "python": platform.python_version(),
        **versions(("numpy", "jax", "jaxlib")),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def process_age() -> float | None:
    """Seconds since this process was created, to 1/100; None where the system does not say.

    Field 22 of ``/proc/self/stat`` counts clock ticks from boot (proc(5)); the name in field 2 may hold blanks.
    """
    try:
        ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def peak_rss(process_id: int | None = None) -> int | None:
    """The most memory that a process (None: this one) has had resident, in bytes; None where the system does not say.

    ``getrusage`` would count what the process that started this one had resident before it, so it comes second.
    """
    try:
        status = Path(f"/proc/{process_id or 'self'}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if process_id is not None:
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_bandwidth() -> float:
    """Bytes a second that all threads read from memory together; the best of five."""
    arrays = [np.ones((512 << 20) // 8 // n_threads()) for _ in range(n_threads())]  # 512 MiB: no cache holds it
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=array.sum) for array in arrays]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - started))
    return best
