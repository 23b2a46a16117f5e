"""Mutations of APR files that know where the fields, the index entries and the values of the metadata are."""

from __future__ import annotations

import binascii
import struct
from functools import lru_cache
from random import Random
from typing import NamedTuple

from tests import apr_files as raw
from tests.fuzz.gguf_mutations import number
from tests.fuzz.json_mutations import json_mutated
from tests.fuzz.mutations import BYTES, PLANS, Field, Span, field_replaced, rearranged

HEADER_FIELDS = [
    Field(4, 1, "version"), Field(5, 1, "version"), Field(6, 2, "flags"), Field(6, 1, "flags"), Field(8, 4, "count"),
    Field(12, 8, "offset"), Field(20, 4, "length"), Field(24, 8, "offset"), Field(32, 8, "offset"),
    Field(40, 4, "checksum"), Field(44, 8, "reserved"),
]  # fmt: skip


class Layout(NamedTuple):
    """Where things are in a well-formed file."""

    fields: list[Field]
    metadata: Span
    entries: list[Span]
    data: int


@lru_cache(maxsize=64)
def layout_of(content: bytes) -> Layout:
    """The layout of a well-formed file, as drawn in ``formats/containers/apr.py``, found without that reader."""
    start = number(content, 12, 8)
    fields, entries, at = [*HEADER_FIELDS], [], number(content, 24, 8)
    for _ in range(number(content, 8, 4)):
        begin, length = at, number(content, at, 2)
        fields += [Field(at, 2, "length"), Field(at + 2 + length, 1, "type"), Field(at + 3 + length, 1, "count")]
        at += 4 + length
        n_dims = content[at - 1]
        fields += [Field(at + 8 * axis, 8, "dim") for axis in range(n_dims)]
        at += 8 * n_dims
        fields += [Field(at, 8, "offset"), Field(at + 8, 8, "length")]
        at += 16
        entries.append(Span(begin, at))
    return Layout(fields, Span(start, start + number(content, 20, 4)), entries, number(content, 32, 8))


def mutated(content: bytes, rng: Random) -> bytes:
    """A mutant of a well-formed APR file; its checksums are right half of the time."""
    layout, plan = layout_of(content), rng.choice(PLANS)
    if "fields" in plan:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            field_replaced(changed, layout.fields, rng)
        content = bytes(changed)
    if "records" in plan:
        content = with_other_sections(content, layout, rng)
    if "bytes" in plan:
        content = rng.choice(BYTES)(content, rng)
    return sealed(content, rng) if rng.random() < 0.5 else content


def sealed(content: bytes, rng: Random) -> bytes:
    """The checksums made right, of the header always, in the footer usually."""
    if len(content) < 64:
        return content
    if rng.random() < 0.8 and len(content) >= 68:
        return raw.resealed(content)
    return content[:40] + struct.pack("<I", binascii.crc32(content[:40] + content[44:64])) + content[44:]


def with_other_sections(content: bytes, layout: Layout, rng: Random) -> bytes:
    """Metadata edited, or index entries rearranged or added; usually the header and its checksum say so."""
    metadata, entries = content[slice(*layout.metadata)], [content[slice(*entry)] for entry in layout.entries]
    way = rng.randrange(6)
    if way < 4:
        metadata = json_mutated(metadata, rng) if whole_json(metadata) else metadata
    elif way == 4:
        rearranged(entries, rng)
    else:
        entries.insert(rng.randrange(len(entries) + 1), foreign_entry(rng))
    index = b"".join(entries)
    index_offset = 64 + raw.padded(len(metadata))
    data_offset = index_offset + raw.padded(len(index))
    head = content[:8] + struct.pack("<IQIQQ", len(entries), 64, len(metadata), index_offset, data_offset)
    head = head if rng.random() < 0.9 else content[:40]
    checksum = struct.pack("<I", binascii.crc32(head + content[44:64]))
    return b"".join([
        head, checksum, content[44:64], metadata.ljust(index_offset - 64, b"\0"),
        index.ljust(data_offset - index_offset, b"\0"), content[layout.data :],
    ])  # fmt: skip


def whole_json(metadata: bytes) -> bool:
    """Whether the metadata is still where it was, after fields were changed."""
    return metadata[:1] == b"{" and metadata[-1:] == b"}"


def foreign_entry(rng: Random) -> bytes:
    """An index entry that states odd things; its size is what its type and shape make, half of the time."""
    name = rng.choice(("x", "lm_head.weight", "a\nb", "ä" * 31, "z" * 256, "z" * 257, b"\xff", ""))
    n_dims = rng.choice((0, 1, 1, 2, 2, 3, 8, 9))
    dims = [rng.choice((0, 1, 32, 256, 300, 2**31, 2**40, 2**62, 2**63)) for _ in range(n_dims)]
    kind = rng.choice([*raw.BLOCKS, raw.APR_Q4, raw.APR_Q8, 2, 8, 9, 13, 255])
    size = None if rng.random() < 0.5 else rng.choice((0, 1, 64, 2**63, 2**64 - 1))
    offset = rng.choice((0, 64, 128, 2**20, 2**40, 2**62, 2**63, 2**64 - 64))
    return raw.Tensor(name, dims, kind, size=size).entry(offset)
