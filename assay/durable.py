"""Files that survive a crash: a file gets its name only when all its bytes are on the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

CHUNK = 1 << 20

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, label)``."""


def quiet(done: int, total: int, label: str) -> None:
    """The progress callback that shows nothing."""


def beside(final: Path, suffix: str) -> Path:
    """A file next to ``final``, so on the same file system, where a rename is atomic."""
    return final.with_name(final.name + suffix)


def place(temporary: Path, final: Path) -> None:
    """Flush ``temporary`` to the disk, then rename it to ``final``, then flush the folder that holds the name."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, progress: Progress = quiet) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done, total, "verifying")
    return digest.hexdigest()
