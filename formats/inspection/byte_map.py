"""A map of a container file: its sections, and every field with its place, name and value.

    sections(container)             header, metadata, tensor infos, tensor data, padding ...: all bytes, once each
    spans(container, start, stop)   the fields that lie in these bytes; of a tensor the fields of its blocks

The file has been read before, by a strict reader; this walks it again to say where things are, and trusts nothing but
that. Formats without a walker of their own show their tensors, and the rest as one section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from assay.formats.containers.apr import Apr
from assay.formats.containers.base import Container
from assay.formats.containers.gguf import GGUF
from assay.formats.containers.gguf_split import SplitGGUF
from assay.formats.containers.hf_folder import HFFolder
from assay.formats.inspection.byte_map_apr import apr_fields, apr_footer, apr_marks
from assay.formats.inspection.byte_map_gguf import gguf_fields, gguf_marks
from assay.formats.inspection.byte_map_tensor import tensor_fields
from assay.formats.inspection.span import Span

PADDING = "padding"


@dataclass(frozen=True)
class Section:
    """Bytes ``start:stop`` of the file."""

    name: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def sections(container: Container) -> list[Section]:
    """The whole file from 0 to its end. Tensors that follow one another are one section of ``tensor data``.

    Of a folder or a split file: its files, as if they lay one after the other.
    """
    found: list[Section] = []
    if isinstance(container, HFFolder | SplitGGUF):
        for file in container.parts:
            start = found[-1].stop if found else 0
            found.append(Section(file.name, start, start + file.stat().st_size))
        return found
    for name, start, stop in _pieces(container):
        at = found[-1].stop if found else 0
        if start > at:
            found.append(Section(PADDING, at, start))
        if found and found[-1].name == name:
            found[-1] = Section(name, found[-1].start, stop)
        elif stop > start:
            found.append(Section(name, start, stop))
    end = found[-1].stop if found else 0
    if end < container.size:
        found.append(Section(PADDING, end, container.size))
    return found


def _pieces(container: Container) -> Iterator[tuple[str, int, int]]:
    """What is not padding, in order of place."""
    head, tail = _marks(container)
    yield from head
    stored = sorted((info.offset, info.offset + info.nbytes) for info in container.tensors.values() if info.nbytes)
    yield from (("tensor data", start, stop) for start, stop in stored)
    yield from tail


def _marks(container: Container) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """Sections before and after the tensor data."""
    if isinstance(container, GGUF):
        return gguf_marks(container), []
    if isinstance(container, Apr):
        return apr_marks(container)
    first = min((info.offset for info in container.tensors.values()), default=container.size)
    return [("header", 0, first)], []


def spans(container: Container, start: int, stop: int) -> Iterator[Span]:
    """The fields that overlap bytes ``start:stop``, in order of place, each whole; gaps are spans named padding."""
    at = start
    for span in _fields(container, start, stop):
        if span.offset > at:
            yield Span(at, span.offset - at, PADDING, "")
        if span.stop > start:
            yield span
            at = max(at, span.stop)
    if at < min(stop, container.size):
        yield Span(at, min(stop, container.size) - at, PADDING, "")


def _fields(container: Container, start: int, stop: int) -> Iterator[Span]:
    walkers: dict[type, Callable[[Container, int, int], Iterator[Span]]] = {GGUF: gguf_fields, Apr: apr_fields}
    if type(container) in walkers:
        yield from walkers[type(container)](container, start, stop)
    infos = sorted(container.tensors.values(), key=lambda info: info.offset)
    for info in infos:
        if info.nbytes and info.offset < stop and start < info.offset + info.nbytes:
            yield from tensor_fields(container, info.name, start, stop)
    if isinstance(container, Apr):
        yield from apr_footer(container, start, stop)
