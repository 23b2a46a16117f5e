"""Files that survive a crash: a file gets its name only when all its bytes are on the disk.

    with replacing(path, force=False) as file:       # file is model.gguf.3f9c21ab.unfinished, in the same folder
        file.write(...)                              # here it becomes model.gguf, whole

A process that is killed cannot tidy up: its ``NAME.xxxxxxxx.unfinished`` stays, and is never anything but rubbish. No
program of this project opens, resumes or overwrites such a file; delete it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from assay.formats.errors import InputError
from assay.formats.system.progress import Progress, quiet

CHUNK = 1 << 20
UNFINISHED = ".unfinished"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def beside(final: Path, suffix: str) -> Path:
    """A file next to ``final``, so on the same file system, where a rename is atomic."""
    return final.with_name(final.name + suffix)


@contextmanager
def replacing(path: str | Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name ``path`` when the block ends without an exception, and not before.

    Whatever goes wrong in between (an error, Ctrl-C, a full disk), the old file, or none, is what ``path`` names, and
    nothing is left beside it. Through a symbolic link the file it points to is replaced.

    Raises InputError: there is such a file already and not ``force``, or the folder cannot be written to, before any
    work is done; the disk is full, or another error of the operating system, later.
    """
    final = Path(path)
    temporary = None
    try:
        final = Path(os.path.realpath(final))
        demand_free(final, force=force)
        temporary = beside(final, f".{secrets.token_hex(4)}{UNFINISHED}")
        file = temporary.open("xb", buffering=CHUNK)
        try:
            yield file
            file.close()
        finally:
            with suppress(OSError):  # what is still in the buffer may not fit either
                file.close()
        demand_free(final, force=force)
        place(temporary, final)
    except OSError as error:
        raise cannot_write(Path(path), error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def demand_free(final: Path, *, force: bool) -> None:
    """Raise InputError if ``final`` is a file and not ``force``, or something that is not to be replaced at all."""
    if final.exists() and not final.is_file():
        raise InputError("there is something by this name that is not a regular file", where=str(final),
                         remedy="Give the name of a file")  # fmt: skip
    if final.exists() and not force:
        raise InputError("the file exists already", where=str(final),
                         remedy="Give another name, or --force to replace it")  # fmt: skip


def demand_apart(target: Path, sources: Iterable[Path]) -> None:
    """Raise InputError if to write ``target`` is to overwrite one of ``sources``: no --force asks for that.

    What counts is the file, not its name: another spelling, a symbolic link and a hard link are the same.
    """
    for source in sources:
        if source.exists() and target.exists() and os.path.samefile(source, target):
            raise InputError(f"it is the same file as {source}, which is read", where=str(target),
                             remedy="Give another name")  # fmt: skip


def cannot_write(path: Path, error: OSError) -> InputError:
    """The error for a file that the operating system would not let us write; the old file, if any, is still there."""
    if error.errno in DISK_FULL:
        return InputError(f"the disk is full ({error.strerror}); nothing was changed", where=str(path),
                          remedy="Free some space, or write to another disk")  # fmt: skip
    return InputError(f"the file cannot be written: {error.strerror or error}; nothing was changed", where=str(path),
                      remedy="Check the folder, its permissions and the disk")  # fmt: skip


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


def sha256_of_files(files: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, of the lines that ``sha256sum`` prints for them in this order, names only."""
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("".join(f"{sha256_of(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def unfinished(final: Path) -> Path:
    """A name beside ``final`` for what is not finished: nobody else's, and recognised as rubbish if it stays."""
    return beside(final, f".{secrets.token_hex(4)}{UNFINISHED}")
