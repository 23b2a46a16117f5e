"""What differs between our reading of a file and another reader's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from assay.formats import ModelFile, Tensor
from assay.judging.independent import weights
from assay.judging.independent.reading import Place, Reading

CHUNK = 1 << 20
"""Elements that are decoded at once."""
SHOWN = 80
"""Characters of a value, at most."""
ITEMS = {"tokens": "token", "kinds": "kind of token", "merges": "merge"}
"""Facts that are lists, and what one item is called."""


class Difference(NamedTuple):
    """One fact of which the two readings differ."""

    fact: str
    ours: str
    theirs: str


def differences(file: ModelFile, theirs: Reading) -> Iterator[Difference]:
    """All that differs but decoded weights; of a tensor, its first and its last row as they are stored."""
    yield from different_facts(facts_of(file), theirs.facts)
    for name in sorted(file.tensors.keys() | theirs.tensors.keys()):
        if name not in file.tensors or name not in theirs.tensors:
            there = ("there" if name in one else "not there" for one in (file.tensors, theirs.tensors))
            yield Difference(f"tensor {name}", *there)
            continue
        tensor, place = file.tensors[name], theirs.tensors[name]
        ours = (tensor.stored or tensor.type.name, tensor.shape)
        if ours != (place.type, place.shape):
            yield Difference(f"tensor {name}", *(f"{kind} {list(shape)}" for kind, shape in (ours, place[:2])))
        elif not tensor.stored:  # of those types ours hands on another form than the stored one
            yield from different_bytes(tensor, place)


def facts_of(file: ModelFile) -> dict[str, Any]:
    """What the engines are given."""
    v = file.vocabulary
    return asdict(file.config) | {
        "tokens": v.tokens, "kinds": v.kinds, "merges": v.merges, "pre": v.pre, "bos_id": v.bos_id,
        "eos_id": v.eos_id, "add_bos": v.add_bos, "end_ids": sorted(v.end_ids), "chat_template": file.chat_template,
    }  # fmt: skip


def different_facts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Difference]:
    """The facts that differ; of a list or a text the first place where it does."""
    for fact, value in theirs.items():
        if ours[fact] == value:
            continue
        both = ours[fact], value
        at = first_apart(*both) if all(isinstance(one, str | list) for one in both) else 0
        if fact in ITEMS:
            yield Difference(f"{ITEMS[fact]} {at}", *(item(one, at) for one in both))
        elif all(isinstance(one, str) for one in both):
            yield Difference(f"{fact} from character {at}", *(shown(one[at : at + SHOWN // 2]) for one in both))
        else:
            yield Difference(fact, *map(shown, both))


def first_apart(a: Any, b: Any) -> int:
    """The first index at which two sequences differ; the shorter one's length, if it is how the other begins."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def item(values: list[Any], at: int) -> str:
    """One item, or that there is none."""
    return shown(values[at]) if at < len(values) else f"none, of {len(values):,}"


def shown(value: Any) -> str:
    """A value for one line."""
    text = f"{value:.9g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def different_bytes(tensor: Tensor, place: Place) -> Iterator[Difference]:
    """The first and the last row as they are stored."""
    for row in sorted({0, tensor.n_rows - 1}):
        ours, theirs = tensor.raw(slice(row, row + 1))[0], weights.bytes_of(place, row, row + 1)
        if not np.array_equal(ours, theirs):
            yield Difference(f"tensor {tensor.name}, row {row}", *(bytes(one[:8]).hex(" ") for one in (ours, theirs)))
            return


def different_values(tensor: Tensor, place: Place) -> Iterator[Difference]:
    """The first decoded weight of which not every bit is the same."""
    step = max(1, CHUNK // tensor.row_elements)
    for start in range(0, tensor.n_rows, step):
        stop = min(start + step, tensor.n_rows)
        ours, theirs = (np.ascontiguousarray(rows) for rows in (tensor.rows(start, stop),
                                                                weights.values_of(place, start, stop)))  # fmt: skip
        apart = np.argwhere(ours.view(np.uint32) != theirs.view(np.uint32))
        if len(apart):
            row, column = (int(i) for i in apart[0])
            yield Difference(f"weight [{start + row}, {column}] of {tensor.name}",
                             *(shown(float(one[row, column])) for one in (ours, theirs)))  # fmt: skip
            return
