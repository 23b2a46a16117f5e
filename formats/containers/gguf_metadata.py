"""GGUF metadata: typed key/value pairs, read at once and interpreted when used.

    pair  := u64 key length, key, u32 type, value
    value := scalar | u64 length, bytes | u32 element type, u64 count, elements

Reading checks what could lead a reader astray: lengths, counts, types, duplicates. Whether a bool byte is 0
or 1 and a string is UTF-8 is asked when the value is used, as llama.cpp's own test files hold random ones.
Source: ggml docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from assay.formats.containers.cursor import MAX_HEADER, Cursor, shown
from assay.formats.errors import FormatError, InputError

MAX_KEY = 65535
MAX_PAIRS = 1 << 16
MIN_PAIR = 8 + 1 + 4 + 1
MIN_STRING = 8
MAX_STRINGS = 1 << 22
"""Elements of one array of strings; the largest known vocabularies have 2**18."""

NUMBERS = {
    0: ("uint8", "<u1"), 1: ("int8", "<i1"), 2: ("uint16", "<u2"), 3: ("int16", "<i2"),
    4: ("uint32", "<u4"), 5: ("int32", "<i4"), 6: ("float32", "<f4"), 7: ("bool", "<u1"),
    10: ("uint64", "<u8"), 11: ("int64", "<i8"), 12: ("float64", "<f8"),
}  # fmt: skip
"""Value type -> (name, NumPy dtype as stored)."""
STRING, ARRAY = 8, 9
DTYPES = dict(NUMBERS.values())

INTEGERS = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"})
FLOATS = frozenset({"float32", "float64"})

T = TypeVar("T")


class Required:
    """Marks an accessor's key as one the file must have."""


REQUIRED = Required()


@dataclass(frozen=True, slots=True)
class Value:
    """One value as stored: a scalar is an array of one item."""

    type: str
    """Type of the items."""
    is_array: bool
    items: list[bytes] | np.ndarray
    offset: int = 0
    """Byte offset of the value in the file it was read from."""


def typed(kind: str, value: Any) -> Value:
    """``typed("uint32", 24)``, ``typed("array of string", ["a", "b"])``: a value to be written, its type stated.

    ``kind`` as :meth:`Metadata.type_of` gives it. Raises InputError if the value is not of that type or does not fit.
    """
    name = kind.removeprefix("array of ")
    is_array = name != kind
    items = list(value) if is_array else [value]
    try:
        if name == "string":
            return Value(name, is_array, [item.encode() for item in items])  # bytes and numbers have no ``encode``
        return Value(name, is_array, _numbers(name, items))
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError) as error:
        raise InputError(f"{shown(str(value))} is not of type {kind}", where="GGUF metadata",
                         remedy="Give another value or type") from error  # fmt: skip


def _numbers(name: str, items: list[Any]) -> np.ndarray:
    """Numbers or bools as stored in the type ``name``. Raises ValueError and its like for any that is not one."""
    truths, integers = (bool, np.bool_), (int, np.integer)
    wanted = truths if name == "bool" else (*integers, float, np.floating) if name in FLOATS else integers
    if not all(isinstance(item, wanted) and isinstance(item, truths) is (name == "bool") for item in items):
        raise ValueError(name)
    if name in FLOATS:
        with np.errstate(over="ignore"):
            stored = np.array(items, np.float64).astype(DTYPES[name])
        if (np.isfinite(stored) != np.isfinite(np.array(items, np.float64))).any():
            raise ValueError(name)
        return stored
    return np.array([int(item) for item in items], DTYPES[name])  # OverflowError for one that does not fit


class Metadata(Mapping[str, Any]):
    """Key -> int, float, bool, str, list[str] or read-only array; the accessors also check the type.

    Every accessor raises FormatError: ``missing-key`` if the key is absent and no default is given,
    ``bad-value`` if its type is not one the accessor takes, a bool byte is neither 0 nor 1, or a string is
    not UTF-8. Plain ``metadata[key]`` raises KeyError for an absent key, as every Mapping does.
    """

    def __init__(self, values: dict[str, Value], path: Path) -> None:
        self._values, self._path = values, path

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value.items, list):
            items = self._text(key, value.items)
            return items if value.is_array else items[0]
        items = self._truth(key, value.items) if value.type == "bool" else value.items
        return items if value.is_array else items[0].item()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    @property
    def stored(self) -> Mapping[str, Value]:
        """Every value as the file has it, to be written again."""
        return MappingProxyType(self._values)

    def type_of(self, key: str) -> str:
        """``"uint32"``, ``"string"``, ``"array of string"`` ..."""
        value = self._demand(key)
        return f"array of {value.type}" if value.is_array else value.type

    def string(self, key: str, default: T | Required = REQUIRED) -> str | T:
        return self._checked(key, frozenset({"string"}), False, default)

    def integer(self, key: str, default: T | Required = REQUIRED) -> int | T:
        """Any integer type; a bool or a float is not one."""
        return self._checked(key, INTEGERS, False, default)

    def floating(self, key: str, default: T | Required = REQUIRED) -> float | T:
        """float32 or float64; may be NaN or infinite."""
        return self._checked(key, FLOATS, False, default)

    def boolean(self, key: str, default: T | Required = REQUIRED) -> bool | T:
        return self._checked(key, frozenset({"bool"}), False, default)

    def strings(self, key: str, default: T | Required = REQUIRED) -> list[str] | T:
        return self._checked(key, frozenset({"string"}), True, default)

    def integers(self, key: str, default: T | Required = REQUIRED) -> np.ndarray | T:
        """[count] read-only, in the integer type in which it is stored."""
        return self._checked(key, INTEGERS, True, default)

    def description(self, key: str, warnings: list[str]) -> str | None:
        """Text that only describes the model, so that nothing wrong with it is worth a refusal; None if there is none.

        What is not UTF-8 in it is escaped, a value of another type is left out; ``warnings`` then says so.
        """
        value = self._values.get(key)
        if value is None:
            return None
        if value.is_array or not isinstance(value.items, list):
            warnings.append(f"{shown(key)} is not text but {self.type_of(key)}: it is ignored")
            return None
        text = value.items[0].decode(errors="backslashreplace")
        if text.encode() != value.items[0]:
            warnings.append(f"{shown(key)} is not valid UTF-8: it is read as {shown(text)}")
        return text

    def fail(self, key: str, detail: str, code: str = "bad-value") -> FormatError:
        """The error to raise for the value of ``key``, with its place in the file."""
        return FormatError(code, detail, path=self._path, field=f"key {shown(key)}",
                           offset=self._values[key].offset,
                           remedy="Convert the model again with a current converter.")

    def _checked(self, key: str, types: frozenset[str], is_array: bool, default: Any) -> Any:
        if key not in self._values and default is not REQUIRED:
            return default
        value = self._demand(key)
        if value.type not in types or value.is_array is not is_array:
            wanted = ("an array of " if is_array else "") + " or ".join(sorted(types))
            raise self.fail(key, f"the value is {self.type_of(key)}, but must be {wanted}")
        return self[key]

    def _demand(self, key: str) -> Value:
        if key not in self._values:
            raise FormatError("missing-key", "the file does not have this key", path=self._path,
                              field=f"key {shown(key)}", remedy="Convert the model with a current converter.")
        return self._values[key]

    def _text(self, key: str, items: list[bytes]) -> list[str]:
        strings: list[str] = []
        try:
            for item in items:
                strings.append(item.decode())  # noqa: PERF401  the length of the list names the item that failed
        except UnicodeDecodeError as error:
            raise self.fail(key, f"string {len(strings)} is not valid UTF-8") from error
        return strings

    def _truth(self, key: str, items: np.ndarray) -> np.ndarray:
        if items.size and items.max() > 1:
            raise self.fail(key, f"a bool is stored as {items.max()}, but must be 0 or 1")
        return items.view(np.bool_)


def read_metadata(cursor: Cursor, n_pairs: int) -> Metadata:
    """``n_pairs`` pairs. Codes: the cursor's, duplicate-key, bad-value-type, nested-array."""
    values: dict[str, Value] = {}
    for i in range(n_pairs):
        start = cursor.pos
        key = cursor.name(f"kv[{i}].key", MAX_KEY)
        if key in values:
            raise cursor.fail("duplicate-key", f"key {shown(key)} appears twice", f"kv[{i}].key", start)
        values[key] = _read_value(cursor, f"key {shown(key)}")
    return Metadata(values, cursor.path)


def _read_value(cursor: Cursor, field: str) -> Value:
    kind = cursor.u32(field)
    is_array = kind == ARRAY
    if is_array:
        kind = cursor.u32(field)
    if kind == ARRAY:
        raise cursor.fail("nested-array", "an array of arrays is not supported", field, cursor.pos - 4)
    if kind != STRING and kind not in NUMBERS:
        raise cursor.fail("bad-value-type", f"value type {kind} does not exist", field, cursor.pos - 4)
    if kind == STRING:
        if not is_array:
            at = cursor.pos
            return Value("string", False, [cursor.string(field)], at)
        n = cursor.count(field, MIN_STRING, MAX_STRINGS)
        at = cursor.pos
        return Value("string", True, cursor.strings(n, field), at)
    name, dtype = NUMBERS[kind]
    item_bytes = np.dtype(dtype).itemsize
    n = cursor.count(field, item_bytes, MAX_HEADER) if is_array else 1
    at = cursor.pos
    return Value(name, is_array, np.frombuffer(cursor.take(n * item_bytes, field), dtype), at)
