"""Split GGUF: one model in several files, each a GGUF file of its own, as llama.cpp's gguf-split writes them.

    NAME-00001-of-00003.gguf    all of the metadata, some tensors or none; split.no is 0
    NAME-00002-of-00003.gguf    more tensors; split.no is 1, and hardly any other key
    NAME-00003-of-00003.gguf

``split.count`` is the number of files, ``split.tensors.count`` that of the tensors in all of them. Files are found by
their names and believed by their keys: the two must agree. Source: llama.cpp, tools/gguf-split, llama_split_path.

Opening fails with FormatError; its codes are those of ``gguf.py``, for whichever file, and

    missing-shard     files of the split are not there
    bad-split         names and keys differ, a tensor is in two files, or tensors are missing: files are mixed up
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assay.formats.containers.base import Container
from assay.formats.containers.cursor import shown
from assay.formats.containers.gguf import GGUF, read_gguf
from assay.formats.containers.gguf_metadata import Metadata, Value
from assay.formats.errors import FormatError

PREFIX = "split."
NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MAX_SHARDS = 1 << 10
NAME = re.compile(r"(?s)(.+)-(\d{5})-of-(\d{5})\.gguf")
NAMED_AT_MOST = 4
MIXED_UP = "Fetch all files of one split into one folder, and keep their names."


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitGGUF(GGUF):
    """The open files of a split model as one container: ``path``, ``version``, ``alignment`` and ``data_start`` are the
    first file's, ``metadata`` is without the keys of the split, and a tensor's ``offset`` counts in its own file."""

    shards: tuple[GGUF, ...] = field(repr=False)
    shard_of: Mapping[str, GGUF] = field(repr=False)
    """By tensor name."""

    @property
    def members(self) -> tuple[Container, ...]:
        return self.shards

    @property
    def parts(self) -> tuple[Path, ...]:
        return tuple(shard.path for shard in self.shards)

    def raw(self, name: str) -> np.ndarray:
        return self.shard_of.get(name, self.shards[0]).raw(name)


def open_gguf(path: Path, *, strict: bool = False) -> GGUF:
    """Open a GGUF file; of a split model all files, whichever of them ``path`` names. Raises FormatError."""
    one = read_gguf(path, strict=strict)
    if one.metadata.integer(COUNT, default=0) <= 1:
        return one
    paths = paths_of(one)
    shards = [one if shard == path else read_gguf(shard, strict=strict) for shard in paths]
    demand_alike(shards)
    shard_of = owners(shards)
    first = shards[0]
    own = {key: value for key, value in first.metadata.stored.items() if not key.startswith(PREFIX)}
    return SplitGGUF(
        path=first.path, version=first.version, alignment=first.alignment, data_start=first.data_start,
        metadata=Metadata(own, first.path), shards=tuple(shards), shard_of=shard_of,
        tensors={name: shard.tensors[name] for name, shard in shard_of.items()},
        size=sum(shard.size for shard in shards),
        warnings=tuple(f"{shard.path.name}: {warning}" for shard in shards for warning in shard.warnings),
    )  # fmt: skip


def bad_split(shard: GGUF, detail: str, field: str = "split") -> FormatError:
    """The error for files that do not belong together."""
    return FormatError("bad-split", detail, path=shard.path, field=field, remedy=MIXED_UP)


def place_of(shard: GGUF) -> tuple[int, int]:
    """(number of the file, counted from 1, number of files) by its keys; 0 for one that is not there."""
    return shard.metadata.integer(NO, default=-1) + 1, shard.metadata.integer(COUNT, default=0)


def paths_of(one: GGUF) -> list[Path]:
    """The paths of all files of the split that ``one`` belongs to, in order; all of them are there."""
    number, count = place_of(one)
    if not 1 <= number <= count <= MAX_SHARDS:
        raise bad_split(one, f"it says that it is file {number} of {count}, but files are counted from 1, to at most "
                        f"{MAX_SHARDS}", NO)  # fmt: skip
    match = NAME.fullmatch(one.path.name)
    if match is None:
        raise bad_split(one, f"it is file {number} of the {count} of a split model, but its name does not end in "
                        f"-{number:05}-of-{count:05}.gguf: the others cannot be found", "path")  # fmt: skip
    if (int(match[2]), int(match[3])) != (number, count):
        raise bad_split(one, f"by its name it is file {int(match[2])} of {int(match[3])} of a split model, but by its "
                        f"keys {number} of {count}", NO)  # fmt: skip
    paths = [one.path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [path.name for path in paths if not path.exists()]:
        more = f" and {len(missing) - NAMED_AT_MOST} more" if len(missing) > NAMED_AT_MOST else ""
        raise FormatError("missing-shard", f"{len(missing)} of the {count} files of this split model are missing: "
                          f"{', '.join(map(shown, missing[:NAMED_AT_MOST]))}{more}", path=one.path, field="split",
                          remedy="Fetch them into the same folder.")  # fmt: skip
    return paths


def demand_alike(shards: Sequence[GGUF]) -> None:
    """Raise FormatError bad-split unless each file is in its place, and says nothing else than the first."""
    first = shards[0]
    for i, shard in enumerate(shards):
        number, count = place_of(shard)
        if (number, count) != (i + 1, len(shards)):
            said = f"file {number} of {count}" if count else "not part of a split model"
            raise bad_split(shard, f"by its keys it is {said}, but it stands in the place of file {i + 1} of "
                            f"{len(shards)}", NO)  # fmt: skip
        for key, value in shard.metadata.stored.items():
            known = first.metadata.stored.get(key)
            if key != NO and known is not None and not equal(value, known):
                raise bad_split(shard, f"its value is not the one in {shown(first.path.name)}", f"key {shown(key)}")


def equal(a: Value, b: Value) -> bool:
    """Whether two values are of one type and the same bytes."""
    as_bytes = [value.items if isinstance(value.items, list) else value.items.tobytes() for value in (a, b)]
    return (a.type, a.is_array, as_bytes[0]) == (b.type, b.is_array, as_bytes[1])


def owners(shards: Sequence[GGUF]) -> dict[str, GGUF]:
    """The file that holds each tensor. Raises FormatError bad-split for one in two files, or too few or too many."""
    owner: dict[str, GGUF] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in owner:
                raise bad_split(shard, f"it is also in {shown(owner[name].path.name)}", f"tensor {shown(name)}")
            owner[name] = shard
    stated = shards[0].metadata.integer(TENSORS, default=len(owner))
    if stated != len(owner):
        raise bad_split(shards[0], f"the value is {stated}, but together the files hold {len(owner)} tensors", TENSORS)
    return owner
