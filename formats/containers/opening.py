"""The way into any container: its format is told by its first bytes, never by its name."""

from __future__ import annotations

import os
from pathlib import Path

from assay.formats.containers.apr import read_apr
from assay.formats.containers.base import Container
from assay.formats.containers.cursor import opened
from assay.formats.containers.gguf import read_gguf
from assay.formats.containers.hf_folder import open_folder, pickle_refused
from assay.formats.containers.safetensors import looks_like_safetensors, read_safetensors
from assay.formats.contract.arguments import checked


@checked
def open_container(path: str | Path, *, strict: bool = False) -> Container:
    """Open a file of tensors, its format told by its first bytes (never by its name), or a Hugging Face folder.

    ``strict`` rejects what is otherwise a warning; each reader says what. Raises FormatError: pickle for a file of
    PyTorch's, which is a program; bad-magic for a file of no known format; and the reader's own codes; no other
    exception, whatever the file holds.
    """
    path = Path(path)
    if path.is_dir():
        return open_folder(path)
    with opened(path) as (fd, status):
        first = os.pread(fd, 9, 0)
    if first.startswith(b"APR"):
        return read_apr(path, strict=strict)
    if first.startswith((b"PK\3\4", b"\x80\2")):
        raise pickle_refused(path)
    if not first.startswith(b"GGUF") and looks_like_safetensors(first, status.st_size):
        return read_safetensors(path)
    return read_gguf(path, strict=strict)  # which says of anything else what it is not
