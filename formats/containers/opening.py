"""The way into any container: its format is told by its first bytes, never by its name."""

from __future__ import annotations

import os
from pathlib import Path

from assay.formats.containers.apr import read_apr
from assay.formats.containers.base import Container
from assay.formats.containers.cursor import opened
from assay.formats.containers.foreign import looks_like_safetensors
from assay.formats.containers.gguf import read_gguf
from assay.formats.containers.gguf_split import open_gguf
from assay.formats.containers.hf_folder import open_folder
from assay.formats.containers.safetensors import read_safetensors
from assay.formats.contract.arguments import checked
from assay.formats.errors import FormatError, InputError

NOT_THERE = ("no-file", "not-a-file", "unreadable")
"""Of the path that was asked for these are faults of the request; of a file that another one names, damage."""


@checked
def open_container(path: str | Path, *, strict: bool = False, alone: bool = False) -> Container:
    """Open a file of tensors, its format told by its first bytes (never by its name), or a Hugging Face folder.

    One file of a split GGUF stands for all of them, unless it is to be looked at ``alone``. ``strict`` rejects what is
    otherwise a warning; each reader says what. Raises FormatError: the codes of ``foreign.py`` for what is not a model
    file at all; bad-magic for a file of no known format; and the reader's own codes. InputError: the path names
    nothing, no regular file, or one that may not be read. No other exception, whatever the file holds.
    """
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return open_folder(path)
    try:
        with opened(path) as (fd, status):
            first = os.pread(fd, 9, 0)
    except FormatError as error:
        if error.code in NOT_THERE:
            raise InputError(error.what, where=str(path), remedy=error.remedy) from error
        raise
    if first.startswith(b"APR"):
        return read_apr(path, strict=strict)
    if not first.startswith(b"GGUF") and looks_like_safetensors(first, status.st_size):
        return read_safetensors(path)
    return (read_gguf if alone else open_gguf)(path, strict=strict)  # which says of anything else what it is not
