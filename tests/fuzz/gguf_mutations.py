"""Mutations of GGUF files that know where the fields and records of a file are."""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import NamedTuple

from tests import gguf_files as raw
from tests.fuzz.mutations import BYTES, PLANS, Field, Span, field_replaced, rearranged

TEXTS = ("", "qwen2", "gpt2", "\n\x1b[2J" * 500, "x" * 70_000, b"\xff\xfe")
SHOWN_ITEMS = 3
"""Elements of an array whose fields are listed; all of a vocabulary's would crowd out everything else."""


class Layout(NamedTuple):
    """Where things are in a well-formed file."""

    fields: list[Field]
    pairs: list[Span]
    tensors: list[Span]
    data: int


@lru_cache(maxsize=64)
def layout_of(content: bytes) -> Layout:
    """The layout of a well-formed file, as drawn in ``formats/containers/gguf.py``, found without that reader."""
    fields = [Field(4, 4, "version"), Field(8, 8, "count"), Field(16, 8, "count")]
    n_tensors, n_pairs = number(content, 8, 8), number(content, 16, 8)
    at, pairs, tensors, alignment = 24, [], [], 32
    for _ in range(n_pairs):
        start, at = at, past_string(content, at, fields)
        key = content[start + 8 : at]
        at = past_value(content, at, fields)
        pairs.append(Span(start, at))
        if key == b"general.alignment":
            alignment = number(content, at - 4, 4)
    for _ in range(n_tensors):
        start, at = at, past_string(content, at, fields)
        n_dims = number(content, at, 4)
        fields.append(Field(at, 4, "count"))
        fields += [Field(at + 4 + 8 * axis, 8, "dim") for axis in range(n_dims)]
        at += 4 + 8 * n_dims
        fields += [Field(at, 4, "type"), Field(at + 4, 8, "offset")]
        at += 12
        tensors.append(Span(start, at))
    return Layout(fields, pairs, tensors, raw.padded(at, alignment))


def number(content: bytes, at: int, width: int) -> int:
    return int.from_bytes(content[at : at + width], "little")


def past_string(content: bytes, at: int, fields: list[Field]) -> int:
    """Where the string at ``at`` ends."""
    fields.append(Field(at, 8, "length"))
    return at + 8 + number(content, at, 8)


def past_value(content: bytes, at: int, fields: list[Field]) -> int:
    """Where the value at ``at``, type first, ends."""
    kind, n = number(content, at, 4), 1
    fields.append(Field(at, 4, "type"))
    at += 4
    if kind == raw.ARRAY:
        kind, n = number(content, at, 4), number(content, at + 4, 8)
        fields += [Field(at, 4, "type"), Field(at + 4, 8, "count")]
        at += 12
    for i in range(n):
        seen = fields if i < SHOWN_ITEMS else []
        if kind == raw.STRING:
            at = past_string(content, at, seen)
        else:
            seen.append(Field(at, raw.WIDTH[kind], "value"))
            at += raw.WIDTH[kind]
    return at


def mutated(content: bytes, rng: Random) -> bytes:
    """A mutant of a well-formed GGUF file."""
    layout, plan = layout_of(content), rng.choice(PLANS)
    if "fields" in plan:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            field_replaced(changed, layout.fields, rng)
        content = bytes(changed)
    if "records" in plan:
        content = with_other_records(content, layout, rng)
    if "bytes" in plan:
        content = rng.choice(BYTES)(content, rng)
    return content


def with_other_records(content: bytes, layout: Layout, rng: Random) -> bytes:
    """Pairs or tensor infos rearranged, or a foreign pair among them; half of the time the counts say so."""
    pairs = [content[start:stop] for start, stop in layout.pairs]
    tensors = [content[start:stop] for start, stop in layout.tensors]
    way = rng.randrange(6)
    if way == 0:
        rearranged(pairs, rng)
    elif way == 1:
        rearranged(tensors, rng)
    elif way in (2, 3) and pairs:
        i = rng.randrange(len(pairs))
        pairs[i] = retyped(pairs[i], rng)
    elif way == 4:
        pairs.insert(rng.randrange(len(pairs) + 1), foreign_pair(rng))
    else:
        tensors.insert(rng.randrange(len(tensors) + 1), foreign_tensor(rng))
    head = content[:8] + raw.u64(len(tensors)) + raw.u64(len(pairs)) if rng.random() < 0.8 else content[:24]
    header = b"".join([head, *pairs, *tensors])
    filled = raw.padded(len(header), 32) if rng.random() < 0.8 else len(header)
    return header.ljust(filled, b"\0") + content[layout.data :]


def foreign_pair(rng: Random) -> bytes:
    """A pair that has been trouble for some reader."""
    way = rng.randrange(6)
    if way == 0:
        return raw.alignment_pair(rng.choice((0, 1, 2, 3, 8, 16, 64, 2**12, 2**20, 2**21, 2**31)))
    if way == 1:
        return raw.alignment_pair(32, rng.choice((raw.U8, raw.I32, raw.U64, raw.BOOL, raw.F64)))
    if way == 2:
        depth = rng.choice((1, 2, 1000))
        levels = (raw.u32(raw.ARRAY) + raw.u64(1)) * depth
        return raw.pair("nested", raw.u32(raw.ARRAY) + levels + raw.array(raw.U8, b"\1", 1))
    if way == 3:
        kind = rng.choice(list(raw.WIDTH))
        return raw.pair("noise", raw.u32(kind) + rng.randbytes(raw.WIDTH[kind]))
    if way == 4:
        key = rng.choice(("", "GGUF.version", "k" * 65536, b"\xff", "a\0b", "\u2028\n", "x" * 300, "split.count"))
        return raw.pair(key, raw.scalar(raw.U32, rng.choice((0, 1, 2, 2**32 - 1))))
    kind = rng.choice([*raw.WIDTH, raw.STRING])
    return raw.pair("claims", raw.array(kind, rng.randbytes(64), rng.choice((0, 8, 2**31, 2**61, 2**63, 2**64 - 1))))


def retyped(pair: bytes, rng: Random) -> bytes:
    """The key of a pair with another value, often of another type."""
    key = pair[: 8 + number(pair, 0, 8)]
    return key + rng.choice((
        raw.scalar(raw.F32, rng.choice((float("nan"), float("inf"), 0, -1, 1e-30, 1e30))),
        raw.scalar(raw.U32, rng.choice((0, 1, 2, 3, 2**16, 2**31, 2**32 - 1))), raw.scalar(raw.I64, -1),
        raw.scalar(raw.U64, rng.choice((0, 1, 2**24, 2**63, 2**64 - 1))), raw.scalar(raw.BOOL, rng.choice((0, 1, 2))),
        raw.u32(raw.STRING) + raw.string(rng.choice(TEXTS)),
        raw.array(raw.STRING, b"", 0), raw.array(raw.STRING, raw.string("a b") * 3 + raw.string("\n" * 5000), 4),
        raw.array(raw.U8, b"\1" * 9, 9), raw.array(raw.BOOL, b"\2", 1), raw.array(raw.F64, bytes(2096), 262),
    ))  # fmt: skip


def foreign_tensor(rng: Random) -> bytes:
    """A tensor info that states odd things, of some type and shape."""
    name = rng.choice(("x", "output.weight", "a\nb", "ä" * 31, "x" * 63, "x" * 64, b"\xff", ""))
    n_dims = rng.choice((0, 1, 1, 2, 2, 3, 4, 5))
    dims = [rng.choice((0, 1, 32, 256, 2**31, 2**40, 2**62, 2**63)) for _ in range(n_dims)]
    offset = rng.choice((0, 32, 64, 2**20, 2**40, 2**62, 2**63, 2**64 - 32))
    return b"".join([
        raw.string(name), raw.u32(len(dims)), *map(raw.u64, dims), raw.u32(rng.randrange(44)), raw.u64(offset)
    ])  # fmt: skip
