"""JSON out of an untrusted file: no key twice, no NaN, bounded in size, depth and number of values.

Python's own reader lets the last of two equal keys win, takes ``NaN`` for a number, and makes a gigabyte of empty
lists out of 60 MB of ``[],[],``. Two readers that resolve a doubt differently see two models in one file, so here a
doubt is an error.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from assay.formats.containers.cursor import opened, shown
from assay.formats.containers.foreign import demand_no_message
from assay.formats.errors import FormatError

MAX_VALUES = 1 << 20
"""Commas, and so roughly values: what bounds the memory that a short text can ask for."""
MAX_DEPTH = 32
REMEDY = "The file is damaged, or its writer is; fetch it again."
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(raw: bytes, path: Path, field: str, *, offset: int = 0, code: str = "bad-json",
                 last_wins: bool = False) -> dict[str, Any]:  # fmt: skip
    """The JSON object in ``raw``; as :func:`parse_value`, and FormatError if it is not an object."""
    values = parse_value(raw, path, field, offset=offset, code=code, last_wins=last_wins)
    if not isinstance(values, dict):
        raise FormatError(code, "it is not a JSON object", path=path, field=field, offset=offset, remedy=REMEDY)
    return values


def parse_value(raw: bytes, path: Path, field: str, *, offset: int = 0, code: str = "bad-json",
                last_wins: bool = False) -> Any:  # fmt: skip
    """The JSON value in ``raw``, which ``field`` names in errors and ``offset`` places in the file.

    ``last_wins`` is for a format whose own writers repeat keys. Raises FormatError ``code``: not UTF-8, not JSON, a key
    twice, a number that is none or too large, more than ``MAX_VALUES`` values or ``MAX_DEPTH`` levels.
    """

    def fail(detail: str) -> FormatError:
        return FormatError(code, detail, path=path, field=field, offset=offset, remedy=REMEDY)

    def constant(name: str) -> float:
        raise fail(f"{name} is not JSON")

    def floating(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise fail(f"the number {shown(text)} is too large")
        return value

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise fail(f"the key {shown(twice)} appears twice")
        return values

    if (n := raw.count(b",")) > MAX_VALUES:
        raise fail(f"it has about {n} values, more than the {MAX_VALUES} allowed")
    try:
        text = raw.decode()
        values = json.loads(text, parse_constant=constant, parse_float=floating,
                            object_pairs_hook=None if last_wins else distinct)
        if SURROGATE.search(raw):  # one half of a pair is a string that no file and no terminal could be given
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise fail("it is not valid UTF-8") from error
    except ValueError as error:  # also an integer of more digits than Python takes
        raise fail(f"it is not valid JSON: {shown(str(error))}") from error
    except RecursionError as error:
        raise fail("it is nested too deeply") from error
    if isinstance(values, dict | list) and not shallow(values):
        raise fail(f"it is nested more than {MAX_DEPTH} deep")
    return values


def read_object(path: Path, most: int) -> dict[str, Any]:
    """The JSON object that is a file of at most ``most`` bytes.

    Raises FormatError: no-file, not-a-file, unreadable, json-too-large, file-changed, bad-json, and the codes of
    ``foreign.py``.
    """
    with opened(path, text=True) as (fd, status):
        if status.st_size > most:
            raise FormatError("json-too-large", f"it has {status.st_size} bytes, more than the {most} allowed",
                              path=path, field="file", remedy="No model needs so much; fetch it again.")  # fmt: skip
        raw = os.pread(fd, status.st_size, 0)
    if len(raw) < status.st_size:
        raise FormatError("file-changed", "the file became shorter while it was read", path=path, field="file")
    values = parse_object(raw, path, "file")
    demand_no_message(values, path)
    return values


def shallow(values: Any) -> bool:
    """Whether no value is nested more than MAX_DEPTH deep. Level by level: it does not recurse itself."""
    level = [values]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            items = value.values() if isinstance(value, dict) else value
            if not {dict, list}.isdisjoint(map(type, items)):
                inner += [item for item in items if isinstance(item, dict | list)]
        level = inner
    return not level
