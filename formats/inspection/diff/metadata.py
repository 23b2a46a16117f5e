"""What two files say differently: key by key within a format, fact by fact between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from assay.formats.containers.base import Container
from assay.formats.errors import FormatError, ModelError
from assay.formats.model_file import described

ABSENT = "(absent)"
SHOWN = 60


class Change(NamedTuple):
    """``a`` and ``b`` are short texts; ``"(absent)"`` on the side that does not have the key."""

    key: str
    a: str
    b: str

    @property
    def kind(self) -> str:
        """added (only in B), removed (only in A), changed."""
        return "added" if self.a == ABSENT else "removed" if self.b == ABSENT else "changed"


def changes(a: Container, b: Container) -> Iterator[Change]:
    """Every difference, sorted by key."""
    left, right = (_facts(a), _facts(b)) if a.format != b.format else (_pairs(a), _pairs(b))
    for key in sorted(left.keys() | right.keys()):
        if key not in left or key not in right:
            one = _short(left.get(key, right.get(key)))
            yield Change(key, one if key in left else ABSENT, one if key in right else ABSENT)
        elif not _equal(left[key], right[key]):
            yield Change(key, *_both(left[key], right[key]))


def _pairs(container: Container) -> Mapping[str, Any]:
    """The file's own keys; a value that cannot be read says so."""
    values = {}
    for key in container.metadata:
        try:
            values[key] = container.metadata[key]
        except FormatError as error:
            values[key] = f"({error.what})"
    return values


def _facts(container: Container) -> Mapping[str, Any]:
    """What any format says of its model, under common keys; floats as f32, the precision GGUF keeps them in."""
    try:
        qwen2 = described(container)
    except (ModelError, FormatError) as error:
        return {"model": f"({error.what})"}
    vocabulary = asdict(qwen2.vocabulary)
    vocabulary["end_ids"] = sorted(vocabulary["end_ids"])
    config = asdict(qwen2.config)
    facts = {f"config.{key}": float(np.float32(value)) if isinstance(value, float) else value
             for key, value in config.items() if key != "tied"}  # fmt: skip
    facts |= {f"vocabulary.{key}": value for key, value in vocabulary.items()}
    return facts | {"name": qwen2.name, "chat_template": qwen2.chat_template}


def _is_list(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def _equal(a: Any, b: Any) -> bool:
    if _is_list(a) and _is_list(b):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(_plain(a), _plain(b), strict=True))
    if type(a) is not type(b) and not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        return False
    both_nan = isinstance(a, float) and isinstance(b, float) and a != a and b != b
    return bool(a == b) or both_nan


def _plain(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _both(a: Any, b: Any) -> tuple[str, str]:
    """Two unequal values, cut to where they differ."""
    if _is_list(a) and _is_list(b):
        left, right = _plain(a), _plain(b)
        n = sum(not _equal(x, y) for x, y in zip(left, right, strict=False)) + abs(len(left) - len(right))
        pairs = enumerate(zip(left, right, strict=False))
        at = next((i for i, (x, y) in pairs if not _equal(x, y)), min(len(left), len(right)))
        said = [_short(side[at]) if at < len(side) else ABSENT for side in (left, right)]
        return (f"{len(left)} items, {n} differ, [{at}] = {said[0]}",
                f"{len(right)} items, {n} differ, [{at}] = {said[1]}")  # fmt: skip
    if isinstance(a, str) and isinstance(b, str) and max(len(a), len(b)) > SHOWN:
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return (f"{len(a)} characters, from {at}: {_short(a[at:])}",
                f"{len(b)} characters, from {at}: {_short(b[at:])}")  # fmt: skip
    return _short(a), _short(b)


def _short(value: Any) -> str:
    if _is_list(value):
        head = ", ".join(_short(item) for item in _plain(value[:3]))
        return f"{len(value)} items: {head}{' ...' if len(value) > 3 else ''}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
