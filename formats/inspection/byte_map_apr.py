"""Where each field of an APR file lies (the layout is drawn in formats/containers/apr.py)."""

from __future__ import annotations

from collections.abc import Iterator

from assay.formats.containers.apr import HEADER, Apr
from assay.formats.containers.base import Container
from assay.formats.inspection.span import Span

HEADER_FIELDS = (
    ("magic", 4), ("version.major", 1), ("version.minor", 1), ("flags", 2), ("n_tensors", 4), ("metadata_offset", 8),
    ("metadata_size", 4), ("index_offset", 8), ("data_offset", 8), ("checksum", 4), ("reserved", 20),
)  # fmt: skip
SHOWN_TEXT = 200


def apr_fields(container: Container, start: int, stop: int) -> Iterator[Span]:
    """Header, metadata and index entries that lie in bytes ``start:stop``."""
    assert isinstance(container, Apr)
    yield from (span for span in _all_fields(container) if span.length and start < span.stop and span.offset < stop)


def _all_fields(apr: Apr) -> Iterator[Span]:
    at, header = 0, apr.header
    values = ("APR\\0", header.major, header.minor, f"{header.flags:#06x}", header.n_tensors, header.metadata_offset,
              header.metadata_size, header.index_offset, header.data_offset, f"{header.checksum:08x}", "")  # fmt: skip
    for (name, length), value in zip(HEADER_FIELDS, values, strict=True):
        yield Span(at, length, f"header.{name}", value)
        at += length
    begins = header.metadata_offset
    text = _bytes(apr, begins, min(header.metadata_size, SHOWN_TEXT)).decode(errors="replace")
    yield Span(begins, header.metadata_size, "metadata", text)
    yield from _entries(apr)


def _entries(apr: Apr) -> Iterator[Span]:
    at = apr.header.index_offset
    for i in range(apr.header.n_tensors):
        name = f"tensor[{i}]"
        length = int.from_bytes(_bytes(apr, at, 2), "little")
        yield Span(at, 2, f"{name}.name.length", length)
        called = _bytes(apr, at + 2, length).decode(errors="replace")
        yield Span(at + 2, length, f"{name}.name", called)
        at += 2 + length
        info = apr.tensors[called]
        code, n_dims = _bytes(apr, at, 2)
        yield Span(at, 1, f"{name}.type", f"{code} ({info.type.name})")
        yield Span(at + 1, 1, f"{name}.n_dims", n_dims)
        at += 2
        for field in (*(f"dims[{axis}]" for axis in range(n_dims)), "offset", "size"):
            yield Span(at, 8, f"{name}.{field}", int.from_bytes(_bytes(apr, at, 8), "little"))
            at += 8


def apr_footer(apr: Apr, start: int, stop: int) -> Iterator[Span]:
    """The CRC-32 at the end."""
    if apr.footer is not None and start < apr.size and apr.size - 4 < stop:
        yield Span(apr.size - 4, 4, "footer.checksum", f"{apr.footer:08x}")


def apr_marks(apr: Apr) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """(section, start, stop) of what comes before the tensor data, and after it."""
    header = apr.header
    index_end = max((span.stop for span in _entries(apr)), default=header.index_offset)
    head = [
        ("header", 0, HEADER.size),
        ("metadata", header.metadata_offset, header.metadata_offset + header.metadata_size),
        ("tensor infos", header.index_offset, index_end),
    ]
    return head, [] if apr.footer is None else [("footer", apr.size - 4, apr.size)]


def _bytes(apr: Apr, start: int, n: int) -> bytes:
    return b"" if apr.map is None else apr.map[start : start + n]
