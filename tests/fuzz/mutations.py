"""What can be done to any file: interesting numbers into its fields, bytes cut, doubled, moved and flipped.

A format's own mutations are in ``gguf_mutations.py``, ``apr_mutations.py`` and ``safetensors_mutations.py``. All are
pure functions of their arguments: the same bytes and the same state of the random generator give the same mutant.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

PLANS = ("fields", "fields", "fields", "records", "records", "bytes", "fields records", "fields bytes", "records bytes")
"""What is done to one file; each word is a kind of mutation, done in this order."""
NUMBERS = (
    0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 2**15, 2**16 - 1, 2**16, 2**20,
    2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**63 + 1,
    2**64 - 64, 2**64 - 32, 2**64 - 8, 2**64 - 1,
)  # fmt: skip


class Field(NamedTuple):
    """A number in a file: ``width`` bytes at ``offset``, little-endian."""

    offset: int
    width: int
    kind: str
    """``"count"``, ``"length"``, ``"type"``, ``"dim"``, ``"offset"``, ``"value"`` ..."""


class Span(NamedTuple):
    """Bytes ``start:stop`` of a file, that belong together: a record, a JSON value."""

    start: int
    stop: int


def interesting(rng: Random, present: int, size: int) -> int:
    """A number to put in the place of ``present`` in a file of ``size`` bytes."""
    way = rng.randrange(6)
    if way == 0:
        return present + rng.choice((-64, -32, -8, -1, 1, 2, 8, 32, 64))
    if way == 1:
        return size + rng.choice((-64, -32, -1, 0, 1, 32, 64)) - rng.choice((0, 0, 24, 64, present))
    if way == 2:
        return rng.randrange(48)  # all of the types, known and withdrawn
    if way == 3:
        return present ^ 1 << rng.randrange(64)
    if way == 4:
        return present * rng.choice((-1, 2, 3, 256, 2**32))
    return rng.choice(NUMBERS)


def field_replaced(content: bytearray, fields: list[Field], rng: Random) -> None:
    """One field gets another number, in place; or two of one width exchange theirs."""
    at, width, _ = rng.choice(fields)
    present = content[at : at + width]
    if rng.random() < 0.1:
        other, width_of_other, _ = rng.choice(fields)
        if width == width_of_other:
            content[at : at + width], content[other : other + width] = content[other : other + width], present
            return
    number = interesting(rng, int.from_bytes(present, "little"), len(content))
    content[at : at + width] = (number % 256**width).to_bytes(width, "little")


def somewhere(content: bytes, rng: Random) -> Span:
    """A short stretch of the content, rather near its beginning than its end."""
    start = int(len(content) * rng.random() ** 2)
    return Span(start, min(len(content), start + rng.choice((1, 2, 4, 8, 16, 24, 64, 300))))


def truncated(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def last_bytes_cut(content: bytes, rng: Random) -> bytes:
    return content[: len(content) - rng.choice((1, 2, 3, 4, 5, 8, 32, 64, 65))]


def bits_flipped(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if content else 0):
        changed[int(len(changed) * rng.random() ** 2)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(content: bytes, rng: Random) -> bytes:
    start, stop = somewhere(content, rng)
    noise = rng.choice((rng.randbytes(stop - start), bytes(stop - start), b"\xff" * (stop - start)))
    return content[:start] + noise + content[stop:]


def removed(content: bytes, rng: Random) -> bytes:
    start, stop = somewhere(content, rng)
    return content[:start] + content[stop:]


def doubled(content: bytes, rng: Random) -> bytes:
    start, stop = somewhere(content, rng)
    return content[:stop] + content[start:]


def spliced(content: bytes, rng: Random) -> bytes:
    """A stretch from elsewhere, over what is there or between."""
    start, stop = somewhere(content, rng)
    at = somewhere(content, rng).start
    return content[:at] + content[start:stop] + content[at + rng.choice((0, stop - start)) :]


def lengthened(content: bytes, rng: Random) -> bytes:
    return content + rng.randbytes(rng.choice((1, 3, 4, 5, 32, 64, 300)))


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    truncated, truncated, last_bytes_cut, bits_flipped, bits_flipped, overwritten, removed, doubled, spliced,
    lengthened,
)  # fmt: skip


def rearranged(records: list[bytes], rng: Random) -> None:
    """One record doubled, left out, moved, repeated, or cut, in place."""
    if not records:
        return
    i, j = rng.randrange(len(records)), rng.randrange(len(records))
    way = rng.randrange(5)
    if way == 0:
        records.insert(j, records[i])
    elif way == 1:
        del records[i]
    elif way == 2:
        records[i], records[j] = records[j], records[i]
    elif way == 3:
        records[j:j] = [records[i]] * rng.choice((2, 50))
    else:
        start = rng.randrange(len(records[i]) + 1)
        records[i] = records[i][:start] + records[j][start:]
