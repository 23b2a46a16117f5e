"""A bounded cursor over the front of an untrusted file: little-endian fields, none read beyond its end.

Two dangers shape it. A *declared* length or count may be any 64-bit number, so each is checked against the
bytes that remain before anything is allocated. And a memory map of a file that another process cuts short
kills the interpreter with SIGBUS, so the header is copied out with ``pread``, through a window of 1 MiB:
memory grows with the values kept, never with a number that the file merely claims.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from assay.formats.containers.foreign import PARTIAL, SNIFFED, demand_own, partial_beside
from assay.formats.errors import FormatError

WINDOW = 1 << 20
MAX_HEADER = 128 << 20
"""Bytes of metadata and tensor infos together; Qwen2's 151,936 tokens and their merges take 6 MB."""
MAX_STRING = 64 << 20
"""Bytes of one string value."""

DAMAGED = "The file is damaged or incomplete; fetch it again."
CHANGED = "Wait until nothing writes to the file any more, then open it again."

_u64 = struct.Struct("<Q").unpack_from


def shown(name: str) -> str:
    """A name out of an untrusted file, fit for one line of an error message: escaped and cut."""
    return repr(name if len(name) <= 64 else name[:61] + "...")


def shown_number(value: int) -> str:
    """An integer out of untrusted JSON, fit for one line: one of thousands of digits by its size."""
    return str(value) if abs(value) < 1 << 200 else f"about {'-' * (value < 0)}2**{value.bit_length()}"


@contextmanager
def opened(path: Path, *, text: bool = False) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading, text or not: (descriptor, its status).

    A pipe would block on open and a device never ends, so the status is looked at first; O_NONBLOCK and a
    second look cover a path that is swapped in between. Codes: no-file, not-a-file; those of ``foreign.py`` for
    what only lies in a file's place; unreadable for any OSError, also of the body.
    """
    try:
        _demand_regular(_status(path), path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            _demand_regular(status, path)
            demand_own(os.pread(fd, SNIFFED, 0), status.st_size, path, text=text)
            yield fd, status
        finally:
            os.close(fd)
    except FormatError as error:
        if path.name.endswith(PARTIAL):
            error.remedy = "By its name it is a download that is not finished: wait for it, or fetch it again."
        raise
    except OSError as error:
        raise FormatError("unreadable", f"the file cannot be read: {error.strerror}", path=path, field="path",
                          remedy="Check its permissions and the disk.") from error


def demand_unchanged(fd: int, before: os.stat_result, path: Path) -> None:
    """FormatError file-changed if size or modification time is not what it was ``before``."""
    after = os.fstat(fd)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise FormatError("file-changed", f"the file changed while it was read, from {before.st_size} to "
                          f"{after.st_size} bytes", path=path, field="path", remedy=CHANGED)


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: holds a NUL
        raise FormatError("no-file", "there is no such file", path=path, field="path",
                          remedy=_where_else(path)) from error


def _where_else(path: Path) -> str:
    """What to do about a file that is not there."""
    with suppress(OSError, ValueError):  # the name may be too long for another ending, or hold a NUL
        if partial := next(iter(partial_beside(path)), None):
            return f"{partial.name} is there: the download is not finished."
    return "Check the path."


def _demand_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise FormatError("not-a-file", f"this is {kind}, not a regular file", path=path, field="path",
                          remedy="Give the path of a model file.")


class Cursor:
    """Reads fields in order; ``pos`` is the byte offset of the next, ``remaining`` the bytes left from it."""

    def __init__(self, fd: int, size: int, path: Path) -> None:
        self.path, self.size = path, size
        self._fd = fd
        self._window, self._base, self._at = b"", 0, 0  # the window holds the file from offset _base on

    @property
    def pos(self) -> int:
        return self._base + self._at

    @property
    def remaining(self) -> int:
        return self.size - self.pos

    def fail(self, code: str, detail: str, field: str, offset: int | None = None,
             remedy: str = DAMAGED) -> FormatError:
        """The error to raise for ``field``; ``offset`` defaults to the current position."""
        return FormatError(code, detail, path=self.path, field=field, remedy=remedy,
                           offset=self.pos if offset is None else offset)

    def seek(self, offset: int, field: str) -> None:
        """Go to ``offset`` of the file. Codes: truncated, header-too-large."""
        if offset > self.size:
            raise self.fail("truncated", f"byte {offset} is needed, but the file ends at {self.size}", field)
        if offset > MAX_HEADER:
            raise self.fail("header-too-large", f"the header runs beyond {MAX_HEADER} bytes", field)
        self._window, self._base, self._at = b"", offset, 0

    def take(self, n: int, field: str) -> bytes:
        """The next ``n`` bytes, copied. Codes: truncated, header-too-large, file-changed."""
        if self._at + n > len(self._window):
            self._refill(n, field)
        start, self._at = self._at, self._at + n
        return self._window[start : self._at]

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        return int.from_bytes(self.take(8, field), "little")

    def count(self, field: str, item_bytes: int, most: int) -> int:
        """A u64 count of items of at least ``item_bytes`` each, no more than can follow. Code: bad-count."""
        n = self.u64(field)
        if n * item_bytes > self.remaining:
            raise self.fail("bad-count", f"{n} items take at least {n * item_bytes} bytes, but only "
                            f"{self.remaining} remain", field, self.pos - 8)
        if n > most:
            raise self.fail("bad-count", f"{n} is more than the {most} allowed", field, self.pos - 8)
        return n

    def string(self, field: str, most: int = MAX_STRING) -> bytes:
        """``u64 length, bytes[length]`` with length <= ``most``. Code: bad-length."""
        length = self.u64(field)
        if length > min(self.remaining, most):
            why = f"at most {most} are allowed" if length > most else f"only {self.remaining} remain"
            raise self.fail("bad-length", f"the string claims {length} bytes, but {why}", field, self.pos - 8)
        return self.take(length, field)

    def strings(self, n: int, field: str) -> list[bytes]:
        """``n`` strings in a row. One tight loop inside the window; its border is left to :meth:`string`."""
        items: list[bytes] = []
        append, window, at, end = items.append, self._window, self._at, len(self._window)
        for i in range(n):
            start = at + 8
            if start <= end and (stop := start + _u64(window, at)[0]) <= end:
                append(window[start:stop])
                at = stop
            else:
                self._at = at
                append(self.string(f"{field}[{i}]"))
                window, at, end = self._window, self._at, len(self._window)
        self._at = at
        return items

    def name(self, field: str, most: int) -> str:
        """A string of 1..``most`` bytes of UTF-8, without NUL (where C would cut it). Code: bad-name."""
        start = self.pos
        try:
            name = self.string(field, most).decode()
        except UnicodeDecodeError as error:
            raise self.fail("bad-name", "the name is not valid UTF-8", field, start) from error
        if not name or "\0" in name:
            raise self.fail("bad-name", "the name is empty or holds a NUL byte", field, start)
        return name

    def _refill(self, n: int, field: str) -> None:
        """Move the window so that it starts at ``pos`` and holds at least ``n`` bytes."""
        start = self.pos
        if n > self.remaining:
            raise self.fail("truncated", f"{n} bytes are needed, but only {self.remaining} remain", field)
        if start + n > MAX_HEADER:
            raise self.fail("header-too-large", f"the header runs beyond {MAX_HEADER} bytes", field)
        wanted = max(n, min(WINDOW, self.remaining))
        window = os.pread(self._fd, wanted, start)
        if len(window) < wanted:
            raise self.fail("file-changed", "the file became shorter", field, remedy=CHANGED)
        self._window, self._base, self._at = window, start, 0
