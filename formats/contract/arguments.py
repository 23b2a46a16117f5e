"""What a caller may give: a public function holds its arguments against its own annotations.

    @checked
    def generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int = 128) -> Generation: ...

    generate(model, "Hi", max_tokens=2.5)
    InputError: max_tokens of generate: 2.5 is a float. Give an integer

The annotation is the rule, so nothing is said twice. What fits is handed on as plain Python: NumPy's integers as int,
an array of ids as a list. Stricter than Python in what people get wrong: True is not an integer, 3.0 is not an integer,
bytes are not text, and a text is not a list of texts.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from assay.formats.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class AtLeast:
    """For ``Annotated[int, AtLeast(0)]``: no smaller number."""

    least: float


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which now raises InputError, naming the argument, for one that is not of its annotated type.

    Arguments are checked when it is called, also where it is a generator, and handed on as :func:`fit` returns them.
    """
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.cache
    def hints() -> dict[str, Any]:  # at the first call: by then every name in an annotation is defined
        found = get_type_hints(function, include_extras=True)
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return {key: hint for key, hint in found.items()
                if key in signature.parameters and signature.parameters[key].kind not in kinds}  # fmt: skip

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for key, hint in hints().items():
            if key in given.arguments:
                given.arguments[key] = fit(hint, given.arguments[key], key, name)
        return function(*given.args, **given.kwargs)

    return checking


def check_fields(record: Any) -> None:
    """Hold the fields of a frozen dataclass against their annotations, in its ``__post_init__``; raises InputError."""
    for key, hint in _fields(type(record)).items():
        object.__setattr__(record, key, fit(hint, getattr(record, key), key, type(record).__name__))


_fields = functools.cache(functools.partial(get_type_hints, include_extras=True))


def fit(hint: Any, value: Any, place: str, function: str) -> Any:
    """``value`` as ``hint`` wants it; InputError if it is not that. ``place`` of ``function`` is where it was given."""
    origin, of = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fit_bounded(hint, value, place, function)
    if origin in (Union, types.UnionType):
        return _fit_one_of(of, value, place, function)
    if origin is tuple and of[1:] != (...,):
        return _fit_tuple(of, value, place, function)
    if origin in (Sequence, Iterable, list, tuple):
        items = _items(origin, value)
        if items is not None:
            if of[0] is not int or not _all_plain(items):
                items = [fit(of[0], item, f"{place}[{i}]", function) for i, item in enumerate(items)]
            return tuple(items) if origin is tuple else items
    elif origin in (Mapping, dict) and isinstance(value, dict):  # of another mapping, a dump say, no value is fetched
        for key, item in value.items():
            fit(of[0], key, f"{place}, key", function)
            fit(of[1], item, f"{place}[{key!r:.40}]", function)
        return value
    elif (fitted := _single(origin or hint, value, of)) is not _NOTHING:
        return fitted
    raise _unfit(_noun(hint), value, place, function)


def _fit_bounded(hint: Any, value: Any, place: str, function: str) -> Any:
    inner, *bounds = get_args(hint)
    fitted = fit(inner, value, place, function)
    for bound in bounds:
        if isinstance(bound, AtLeast) and fitted < bound.least:
            raise InputError(f"{fitted} is too small", where=f"{place} of {function}",
                             remedy=f"Give at least {bound.least:g}")  # fmt: skip
    return fitted


def _fit_one_of(hints: Sequence[Any], value: Any, place: str, function: str) -> Any:
    """By the first of ``hints`` that fits; if none does, the complaint is about the list item that is to blame."""
    where = f"{place} of {function}"
    inside = None
    for hint in hints:
        try:
            return fit(hint, value, place, function)
        except InputError as error:
            if error.where != where:
                inside = error
    raise inside or _unfit(_either(hints), value, place, function)


def _fit_tuple(hints: Sequence[Any], value: Any, place: str, function: str) -> Any:
    items = _items(tuple, value)
    if items is None or len(items) != len(hints):
        raise _unfit(f"a tuple of {len(hints)}", value, place, function)
    return tuple(fit(hint, item, f"{place}[{i}]", function)
                 for i, (hint, item) in enumerate(zip(hints, items, strict=True)))  # fmt: skip


def _items(origin: Any, value: Any) -> list[Any] | None:
    """The items of a list, of an array of one dimension, or (for an Iterable) of anything that has some; else None."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping | Set):
        return None
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return array.tolist() if array.ndim == 1 else None
    wanted = Iterable if origin is Iterable else Sequence
    return list(value) if isinstance(value, wanted) else None


def _all_plain(ids: Sequence[Any]) -> bool:
    """Whether these are integers already and none is huge: of a long prompt this is asked at every call."""
    return all(type(i) is int for i in ids) and (not ids or (min(ids) > -(2**64) and max(ids) < 2**64))


class _NOTHING:
    """What stands for a value that does not fit."""


def _single(kind: Any, value: Any, of: Sequence[Any]) -> Any:
    """``value`` where it is of this kind, as plain Python; _NOTHING where it is not."""
    if kind in (Any, inspect.Parameter.empty) or isinstance(kind, TypeVar):
        return value
    if kind is Literal:
        return value if isinstance(value, str) and value in of else _NOTHING
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    if kind is Callable:
        return value if callable(value) else _NOTHING
    if getattr(kind, "_is_protocol", False):
        members = [name for name in vars(kind) if not name.startswith("_")]
        return value if all(hasattr(value, name) for name in members) else _NOTHING
    return value if isinstance(value, kind) else _NOTHING


def _integer(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return _NOTHING
    try:
        whole = int(operator.index(value))
    except TypeError:
        return _NOTHING
    return whole if -(2**64) < whole < 2**64 else _NOTHING  # no count is larger; and Python refuses to print a huge one


def _number(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return _NOTHING if np.isnan(value) else float(value)
    return _NOTHING if (whole := _integer(value)) is _NOTHING else float(whole)


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str) else _NOTHING


def _slice(value: Any) -> Any:
    if not isinstance(value, slice):
        return _NOTHING
    ends = [end if end is None else _integer(end) for end in (value.start, value.stop, value.step)]
    return _NOTHING if _NOTHING in ends else slice(*ends)


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    bool: lambda value: bool(value) if isinstance(value, bool | np.bool_) else _NOTHING,
    Path: _path,
    slice: _slice,
}
"""What is more than an ``isinstance``."""

_NOUNS = {int: "an integer", float: "a number", bool: "True or False", str: "text", Path: "a path", Any: "anything",
          types.NoneType: "None", np.ndarray: "a NumPy array", Mapping: "a dictionary",
          Callable: "a function"}  # fmt: skip
_PLURALS = {"an integer": "integers", "a number": "numbers", "text": "texts", "a dictionary": "dictionaries"}


def _noun(hint: Any) -> str:
    origin, of = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _noun(of[0])
    if origin in (Union, types.UnionType):
        return _either(of)
    if origin is Literal:
        return " or ".join(map(repr, of))
    if origin in (Sequence, Iterable, list) or (origin is tuple and of[1:] == (...,)):
        noun = _noun(of[0])
        return f"a list of {_PLURALS.get(noun, noun)}"
    kind = origin or hint
    return _NOUNS.get(kind) or _with_article(getattr(kind, "__name__", str(kind)))


def _either(hints: Sequence[Any]) -> str:
    *others, last = map(_noun, hints)
    return f"{', '.join(others)} or {last}"


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _unfit(wanted: str, value: Any, place: str, function: str) -> InputError:
    kind = "None" if value is None else _with_article(type(value).__name__)
    if isinstance(value, np.ndarray):
        kind = f"an array of {value.ndim} dimensions"
    short = "it"
    if isinstance(value, str | bytes):
        short = repr(value[:40])
    elif isinstance(value, bool | float):
        short = repr(value)
    elif isinstance(value, int) and not -(2**64) < value < 2**64:
        kind = "an integer of more than 64 bits"
    return InputError(f"{short} is {kind}", where=f"{place} of {function}", remedy=f"Give {wanted}")
