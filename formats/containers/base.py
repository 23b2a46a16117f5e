"""A container as such: what a file of tensors holds, whatever its format, before anyone asks for a model in it.

    container = open_container("model.gguf")      # formats/containers/opening.py
    container.metadata["general.name"]            # the keys and the tensor names are the file's own
    container.tensors["token_embd.weight"]        # type, shape [rows, columns], offset, nbytes
    container.raw("token_embd.weight")            # u8 [nbytes], a view of the mapped file

``model_file.open_model`` goes on from here to a model; converting, comparing and validating files stay here.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from assay.formats.containers.cursor import CHANGED, shown
from assay.formats.errors import FormatError, InputError
from assay.formats.system.progress import Progress, quiet


class StorageType(Protocol):
    """How numbers are stored: ``block_elements`` of them together in ``block_bytes`` bytes."""

    @property
    def name(self) -> str: ...
    @property
    def block_elements(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is."""

    name: str
    """As the file has it."""
    type: StorageType
    shape: tuple[int, ...]
    """Row-major, as NumPy has it: a matrix is [out, in]."""
    offset: int
    """Absolute byte offset in the file."""
    nbytes: int

    @property
    def n_rows(self) -> int:
        """Rows along the last axis; a vector is one."""
        return prod(self.shape[:-1])


@dataclass(frozen=True, eq=False, kw_only=True)
class Container:
    """An open file of tensors: metadata in memory, tensor data mapped. Each format has a subclass."""

    path: Path
    format: str
    """``"gguf"`` or ``"apr"``."""
    metadata: Mapping[str, Any]
    """By the file's own keys; str, bool, int, float, lists and dicts of them, and arrays of numbers."""
    tensors: dict[str, TensorInfo]
    """By name, in the order in which the file lists them."""
    size: int
    """Bytes of the whole file."""
    warnings: tuple[str, ...] = ()
    """What strict mode would have rejected, one line each."""
    map: mmap.mmap | None = field(default=None, repr=False)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files that hold it: one, unless it is a folder or split."""
        return (self.path,)

    @property
    def members(self) -> tuple[Container, ...]:
        """The containers, of a file each, that it is made of: itself, unless it is several."""
        return (self,)

    def raw(self, name: str) -> np.ndarray:
        """A tensor's stored bytes: u8 [nbytes], a read-only view of the map, no copy.

        Raises FormatError: missing-tensor, no-data, file-changed. Reading the map of a file cut short ends
        the process with SIGBUS, so its size is asked again here; a file cut later still does that.
        """
        where = f"tensor {shown(name)}"
        if name not in self.tensors:
            raise FormatError("missing-tensor", "the file does not have this tensor", path=self.path,
                              field=where, remedy="Fetch a file of the model that has it.")  # fmt: skip
        if self.map is None:
            raise FormatError("no-data", "only the metadata was read", path=self.path, field=where,
                              remedy="Open the file without metadata_only.")  # fmt: skip
        if self.map.size() < self.size:
            raise FormatError("file-changed", "the file became shorter after it was opened", path=self.path,
                              field=where, remedy=CHANGED)  # fmt: skip
        info = self.tensors[name]
        return np.frombuffer(self.map, np.uint8)[info.offset : info.offset + info.nbytes]

    def row_type(self, name: str) -> StorageType:
        """The type of what :meth:`rows` gives: the stored one, unless only this format has it."""
        return self.tensors[name].type

    def rows(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a tensor, u8 [n_rows, row_bytes] read-only, in blocks of :meth:`row_type`; errors as :meth:`raw`.

        A row is a run along the last axis. It may decode to more elements than the shape says: padding, to be cut.
        """
        info = self.tensors[name]
        return self.raw(name).reshape(info.n_rows, info.nbytes // max(info.n_rows, 1))[rows]

    def verify(self, progress: Progress = quiet) -> bool:
        """Check the data against the file's own checksum, reading all of it; False if the format has none.

        Raises FormatError bad-checksum.
        """
        return False

    def release(self) -> None:
        """Let go of the pages of the file that were read: memory is given back, and read again when needed."""
        for member in self.members:
            if member.map is not None:
                member.map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Stored:
    """A tensor on its way into a file: what a writer must know of it, and its bytes on request."""

    name: str
    """As the file is to have it."""
    type: StorageType
    shape: tuple[int, ...]
    """Row-major."""
    read: Callable[[], np.ndarray | Iterable[np.ndarray]] = field(repr=False)
    """The stored bytes, u8 of any shape, whole or in pieces; asked for once, when it is this tensor's turn."""

    def pieces(self, nbytes: int) -> Iterator[memoryview]:
        """The stored bytes, piece by piece. Raises InputError unless they are ``nbytes``, as type and shape make."""
        data = self.read()
        seen = 0
        for piece in [data] if isinstance(data, np.ndarray) else data:
            seen += piece.nbytes
            if seen <= nbytes:
                yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        if seen != nbytes:
            raise InputError(f"{list(self.shape)} in {self.type.name} takes {nbytes} bytes, not {seen}",
                             where=f"tensor {shown(self.name)}", remedy="Correct its shape or its type")  # fmt: skip


def stored(container: Container, name: str, renamed: str | None = None) -> Stored:
    """A tensor of an open container as it is, for a writer."""
    info = container.tensors[name]
    return Stored(renamed or name, info.type, info.shape, lambda: container.raw(name))


def demand_distinct(tensors: Iterable[Stored]) -> None:
    """Raise InputError if two tensors have the same name."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise InputError("there are two tensors of this name", where=f"tensor {shown(tensor.name)}",
                             remedy="Rename one of them")  # fmt: skip
        seen.add(tensor.name)
