"""One mutant tried: opened, read through, opened as a model. Anything but an AssayError of one line is a failure."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

from assay.formats.containers.base import Container
from assay.formats.containers.opening import open_container
from assay.formats.errors import AssayError, FormatError
from assay.formats.model_file import open_model
from tests.fuzz.seeds import Mutant

MAX_LINE = 2000
"""Characters of an error message."""


class Failure(Exception):
    """A promise that was broken, other than by an exception."""


def written(path: Path, mutant: Mutant) -> Path:
    """The mutant as a file, over what was there, its zeros a hole; or the folder ``path``.hf that it is part of."""
    if mutant.beside:
        folder = path.with_name(f"{path.name}.hf")
        folder.mkdir(exist_ok=True)
        for old in {file.name for file in folder.iterdir()} - {mutant.seed, *dict(mutant.beside)}:
            (folder / old).unlink()
        for name, content in (*mutant.beside, (mutant.seed, mutant.content)):
            (folder / name).write_bytes(content)
        return folder
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, mutant.content)
        if mutant.tail > 0:
            os.ftruncate(fd, len(mutant.content) + mutant.tail)
    finally:
        os.close(fd)
    return path


def verdict_of(path: Path, *, strict: bool = False) -> str:
    """``"model"``, ``"container: ..."`` with why it is not a model, or the code of the refusal.

    Raises Failure, and whatever reading the file raises that is not an AssayError.
    """
    try:
        container = open_container(path, strict=strict)
    except AssayError as error:
        return code_of(error)
    read_through(container)
    del container
    try:
        open_model(path)
    except AssayError as error:
        return f"container: {code_of(error)}"
    return "model"


def read_through(container: Container) -> None:
    """Every tensor's bytes where they must be, its first row as handed on, every value of the metadata."""
    for name, info in container.tensors.items():
        data = container.raw(name)
        if data.nbytes != info.nbytes or not 0 <= info.offset <= container.size - info.nbytes:
            raise Failure(f"tensor {name!r} of {info.nbytes} bytes at {info.offset} in a file of {container.size}")
        if data.nbytes:
            assert data[0] <= 255 and data[-1] <= 255  # read, so that a place outside the file would show
            if len(container.rows(name, slice(0, 1))) != 1:
                raise Failure(f"tensor {name!r} has no first row")
    for key in container.metadata:
        try:
            container.metadata[key]
        except FormatError as error:
            code_of(error)


def code_of(error: AssayError) -> str:
    """What kind of refusal it is. Raises Failure unless its text is one readable line that says what to do."""
    text = str(error)
    if not text.isprintable() or len(text) > MAX_LINE or not error.remedy:
        raise Failure(f"an error message of {len(text)} characters is not one short line: {text[:200]!r}") from error
    return error.code if isinstance(error, FormatError) else type(error).__name__


def peak_of(path: Path) -> int:
    """Most bytes that Python and NumPy held at once while the file was read."""
    tracemalloc.start()
    try:
        verdict_of(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
