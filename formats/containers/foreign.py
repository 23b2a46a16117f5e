"""What lies in a model file's place and is none: told by its first bytes, before a reader calls it damaged.

    b"version https://git-lfs...", b"<!DOCTYPE html>", b"\\x1f\\x8b", b"PK", zeros, nothing at all, a line of text

Every reader opens its file through ``cursor.opened``, which asks here. Codes of the FormatError:

    empty-file not-downloaded     no bytes; nothing but zeros: space that a download has yet to fill
    git-lfs-pointer web-page      the stand-in that git leaves without git-lfs; HTML or XML from a server
    archive pickle                gzip, zip, tar and others; PyTorch's own files, which are programs
    text-file server-message      text where a binary file is wanted; a JSON file with an error and nothing else
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay.formats.errors import FormatError

SNIFFED = 512
"""First bytes that are looked at; a tar file says so at byte 257."""
POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\3\4": "zip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
            b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\7": "rar"}  # fmt: skip
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|\?xml)[\s>]", re.IGNORECASE)
MAGICS = (b"GGUF", b"APR")
ERROR_KEYS = frozenset({"error", "errors", "message", "detail"})
BESIDE_ERRORS = frozenset({"code", "status", "status_code", "statusCode", "path", "request_id", "timestamp", "type",
                           "error_type"})  # fmt: skip
"""Keys of a server's message: at least one of the former, and maybe some of the latter."""
PARTIAL = (".part", ".partial", ".incomplete", ".unfinished", ".crdownload", ".download", ".aria2")
"""How programs end the name of a download that is not finished."""
AGAIN = "Fetch the file again"


def demand_own(first: bytes, size: int, path: Path, *, text: bool) -> None:
    """Raise FormatError with a code above if a file of ``size`` bytes that begins with ``first`` is something else.

    ``text``: whether a text file is wanted there, JSON or a template.
    """
    def refuse(code: str, what: str, remedy: str) -> FormatError:
        return FormatError(code, what, path=path, field="file", offset=0, remedy=f"{remedy}.")

    if not size:
        raise refuse("empty-file", "the file is empty", f"Its download or its copy failed. {AGAIN}")
    if looks_like_safetensors(first, size):  # a header's length may begin like an archive
        return
    if first.startswith(POINTERS):
        raise refuse("git-lfs-pointer", "this is a Git LFS pointer, which stands for the file in a git repository",
                     "Run 'git lfs pull' there, or download the file itself")  # fmt: skip
    if PAGE.match(first):
        raise refuse("web-page", "this is a web page or a server's message, saved in the file's place", AGAIN)
    if is_pickle(first):
        raise pickle_refused(path)
    if kind := archive(first):
        raise refuse("archive", f"this is an archive ({kind})", "Unpack it, and give what is in it")
    if len(first) == SNIFFED and not any(first):
        raise refuse("not-downloaded", f"the first {SNIFFED} bytes are zeros: space that was reserved and not filled",
                     f"The download is not finished, or failed. {AGAIN}")  # fmt: skip
    if first and not text and is_text(first):
        line = first.decode(errors="ignore").strip().partition("\n")[0]
        begin = repr(line if len(line) <= 64 else f"{line[:61]}...")
        raise refuse("text-file", f"this is a text file, which begins {begin}", f"Is it a server's message? {AGAIN}")


def looks_like_safetensors(first: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``first`` can be one; the format has no magic number."""
    return len(first) >= 9 and first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= size - 8


def archive(first: bytes) -> str:
    """The kind of archive that begins so; "" if it is none."""
    if first[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in ARCHIVES.items() if first.startswith(magic)), "")


def is_pickle(first: bytes) -> bool:
    """Whether PyTorch wrote it: a zip file whose first entry is the pickle, or, long ago, a bare one of protocol 2."""
    if first.startswith(b"PK\3\4"):
        name = first[30 : 30 + int.from_bytes(first[26:28], "little")]
        return len(first) < 30 or name.endswith(b"data.pkl")
    return first.startswith(b"\x80\2")


def is_text(first: bytes) -> bool:
    """Whether these are characters only, and not the beginning of a format that begins with letters."""
    if first.startswith(MAGICS) or any(magic.startswith(first) for magic in MAGICS):
        return False
    try:
        text = first.decode()
    except UnicodeDecodeError as error:
        if len(first) < SNIFFED or error.start < len(first) - 3:  # else the last character is cut
            return False
        text = first[: error.start].decode()
    return all(character.isprintable() or character in "\r\n\t\ufeff" for character in text)


def pickle_refused(path: Path) -> FormatError:
    """The error for weights in a pickle."""
    return FormatError("pickle", "the weights are in PyTorch's own format (a pickle), and to read it is to run the "
                       "code in it", path=path, field="path",
                       remedy="Fetch the safetensors files of the model instead.")  # fmt: skip


def demand_no_message(values: Mapping[str, Any], path: Path) -> None:
    """Raise FormatError if a JSON file holds nothing but what a server said instead of sending it."""
    if values and values.keys() & ERROR_KEYS and values.keys() <= ERROR_KEYS | BESIDE_ERRORS:
        raise FormatError("server-message", f"this is a server's message with the keys {', '.join(sorted(values))}, "
                          "saved in the file's place", path=path, field="file", remedy=f"{AGAIN}.")  # fmt: skip


def partial_beside(path: Path) -> Iterable[Path]:
    """Downloads of ``path`` that are not finished."""
    return (found for suffix in PARTIAL if (found := path.with_name(path.name + suffix)).exists())
