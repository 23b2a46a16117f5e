"""Mutations of JSON text: values and members found once, replaced, doubled and dropped as text.

As text, because what a parser has to withstand is mostly not JSON at all, or JSON that no writer would produce.
"""

from __future__ import annotations

import re
from functools import lru_cache
from random import Random
from typing import NamedTuple

from tests.fuzz.mutations import NUMBERS, Span

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}:,]|[^][{}:,"\s]+')
SHOWN_ITEMS = 3
HOSTILE: tuple[bytes, ...] = (
    b"", b"null", b"true", b"false", b"0", b"1", b"-1", b"-0", b"1.5", b"0.0", b"2.0", b"1e308", b"-1e308", b"1e309",
    b"-1e999", b"1e-400", b"NaN", b"Infinity", b"-Infinity", b"nan", b"01", b"1e", b"0x10",
    b"9" * 400, b"-" + b"9" * 400, b"9" * 4300, b"-" + b"9" * 4300, b"9" * 4301,
    b'""', b'"a"', b'"\\u0000"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\n\\u001b[2J\\u2028"', b'"\xff"', b'"\x01"',
    b'"', b'"' + b"x" * 3000 + b'"', b'"qwen2"', b'"gpt2"', b'"F32"', b"[]", b"{}", b"[[]]", b"[null]", b"[true]",
    b"[0]", b"[1,2]", b"[-1]", b"[1.0]", b'["a"]', b'["a b"]', b'["a",1]', b"[0,0]", b"[1,0]", b'{"a":1}',
    b'{"a":1,"a":2}', b'{"":null}', b"[" * 31 + b"]" * 31, b"[" * 33 + b"]" * 33, b"[" * 1000 + b"]" * 1000,
    b"[" * 5000, b'{"a":' * 500 + b"1" + b"}" * 500, b"]", b"}", b",", b":", b"//", b"\xef\xbb\xbf",
    b"[" + b"1," * 500 + b"1]",
)  # fmt: skip


class JsonLayout(NamedTuple):
    """Where things are in a JSON object."""

    members: list[Span]
    """``"key":value``, of objects at any depth."""
    keys: list[Span]
    values: list[Span]
    """Scalars and containers; of an array only the first items."""


@lru_cache(maxsize=64)
def json_layout_of(text: bytes) -> JsonLayout:
    """The layout of a valid JSON object."""
    tokens = [Span(*match.span()) for match in TOKEN.finditer(text)]
    layout = JsonLayout([], [], [])
    past_json_value(text, tokens, 0, layout)
    if len(layout.values) > 8:
        layout.values.pop()  # the object itself: in a small file it would be replaced too often
    return layout


def past_json_value(text: bytes, tokens: list[Span], i: int, layout: JsonLayout) -> int:
    """The number of the token after the value that begins with token ``i``."""
    start, first = tokens[i].start, text[tokens[i].start]
    if first not in b"[{":
        layout.values.append(tokens[i])
        return i + 1
    i, seen, n = i + 1, layout, 0
    while text[tokens[i].start] not in b"]}":
        n += 1
        seen = layout if first == ord("{") or n <= SHOWN_ITEMS else JsonLayout([], [], [])
        begin = tokens[i]
        if first == ord("{"):
            i += 2
        i = past_json_value(text, tokens, i, seen)
        if first == ord("{"):
            layout.keys.append(begin)
            layout.members.append(Span(begin.start, tokens[i - 1].stop))
        if text[tokens[i].start] == ord(","):
            i += 1
    layout.values.append(Span(start, tokens[i].stop))
    return i + 1


def json_mutated(text: bytes, rng: Random, hostile: tuple[bytes, ...] = HOSTILE) -> bytes:
    """A mutant of a valid JSON object; ``hostile`` are the texts that may stand for a value."""
    layout = json_layout_of(text)
    edits: dict[Span, bytes] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        span, new = edit(text, layout, rng, hostile)
        if all(span.stop <= other.start or other.stop <= span.start for other in edits):
            edits[span] = new
    for span in sorted(edits, reverse=True):
        text = text[: span.start] + edits[span] + text[span.stop :]
    return text


def edit(text: bytes, layout: JsonLayout, rng: Random, hostile: tuple[bytes, ...]) -> tuple[Span, bytes]:
    """A stretch of the text and what is to be in its place."""
    way = rng.randrange(8)
    if way == 0 and layout.members:
        member = rng.choice(layout.members)
        present = text[slice(*member)]
        return member, rng.choice((present + b"," + present, b"", present + b",", b'"new":1,' + present))
    if way == 1 and layout.keys:
        key, other = rng.choice(layout.keys), rng.choice(layout.keys)
        return key, rng.choice((text[slice(*other)], text[slice(*other)], b'""', b'"\\udfff"', b'"a\\u0000b"', b"7"))
    value = rng.choice(layout.values)
    if way == 2:
        return value, text[slice(*rng.choice(layout.values))]
    if way in (3, 4):
        return value, b"%d" % (rng.choice(NUMBERS) * rng.choice((1, 1, 1, -1, 2**64)))
    return value, rng.choice(hostile)
