"""A dump: every stage of one forward pass in a folder, and what was read, by which engine, from which weights.

    DIR/trace.json             format, version, layout, ids, prompt, weights, engine, stages (below)
    DIR/<stage>.npy            a stage of the whole model
    DIR/layer-<N>/<stage>.npy  a stage of layer N; f32 or f64, first axis positions, as the engine showed it

    "prompt"   {"text": as rendered, "literal": ranges of it that hold no control tokens}; null if ids were given
    "weights"  SHA-256 of the model file
    "engine"   its fingerprint: what it declares to round follows from it
    "stages"   a list of {"stage", "layer" (null: whole model), "shape", "dtype" ("<f4" or "<f8"), "file"}

With the layout ``aprt`` the tensors are those of ``aprt.py``, which tools of others read, in f32; q, k and v are side
by side in one file there. A folder of such files without ``trace.json`` is read, too, if the ids are given.

A dump is untrusted: file names follow from stage and layer and may not be others, and sizes are checked before memory
is asked for.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assay.formats.containers.cursor import opened
from assay.formats.containers.strict_json import read_object
from assay.formats.contract.arguments import checked
from assay.formats.contract.config import STAGES, WHOLE_MODEL_STAGES, Config
from assay.formats.contract.engine import Prompt
from assay.formats.errors import FormatError, InputError
from assay.parity import aprt
from assay.parity.precision import Key
from assay.parity.sample import Sample

MANIFEST = "trace.json"
FORMAT, VERSION = "assay trace", 1
LAYOUTS = {"npy": "npy", "aprt": "bin"}
"""How the tensors may be laid out, and how their files' names end."""
DTYPES = ("<f4", "<f8")
MAX_MANIFEST = 64 << 20
MAX_IDS, MAX_LAYERS, MAX_AXES = 1 << 20, 10_000, 4
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Dump(Mapping[Key, np.ndarray]):
    """The stages of a dump, read from the disk when they are asked for.

    It stands where an engine would: ``fingerprint`` says how it computed, ``forward`` has the logits.
    """

    folder: Path
    layout: str
    ids: tuple[int, ...]
    prompt: Prompt | None
    weights: str | None
    """SHA-256 of the model file; None if the dump does not say."""
    engine: Mapping[str, Any]
    shapes: Mapping[Key, tuple[int, ...]]
    dtypes: Mapping[Key, str]

    def __getitem__(self, key: Key) -> np.ndarray:
        """One stage. Raises FormatError for a file that is not what the manifest says."""
        path = self.folder / file_of(*key, self.layout)
        if self.layout == "npy":
            return read_npy(path, self.shapes[key], self.dtypes[key])
        stage, layer = key
        path = aprt.path_of(path.parent, path.stem)
        width, n = aprt.width(path, layer, len(self.ids)), len(self.ids)
        parts = aprt.HOLDS[aprt.NAME_OF[stage]]
        sizes = [math.prod(self.shapes[part, layer][1:]) for part in parts]
        if width != sum(sizes):
            raise FormatError("bad-shape", f"{width} elements a position, not {' + '.join(map(str, sizes))}", path=path,
                              field="count", remedy="The dump is damaged, or of another model.")  # fmt: skip
        start = sum(sizes[: parts.index(stage)])
        whole = payload(path, aprt.HEADER.size, n * width, "<f4").reshape(n, width)
        return whole[:, start : start + sizes[parts.index(stage)]].reshape(self.shapes[key])

    def __contains__(self, key: object) -> bool:
        return key in self.shapes

    def __iter__(self) -> Iterator[Key]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def sample(self) -> Sample:
        """What was read; ``weights`` is empty if the dump does not say."""
        return Sample(self.prompt.text if self.prompt else None, self.ids, self.weights or "")

    def fingerprint(self) -> dict[str, Any]:
        """What the engine said of itself."""
        return dict(self.engine)

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        """The dumped logits [n_tokens, n_vocab] of the ids that were read."""
        assert tuple(ids) == self.ids
        logits = self["logits", None]
        return logits.reshape(len(logits), -1)


def file_of(stage: str, layer: int | None, layout: str) -> str:
    """Where in the folder a stage is."""
    name = stage if layout == "npy" else aprt.NAME_OF[stage]
    return f"{'' if layer is None else f'layer-{layer}/'}{name}.{LAYOUTS[layout]}"


@checked
def read(folder: Path, ids: Sequence[int] | None = None, config: Config | None = None) -> Dump:
    """Open a dump. Without a manifest it needs ``ids``, and ``config`` to tell q from k from v.

    Raises FormatError for a folder that is none, and InputError for one without a manifest where these are not given.
    """
    return _described(folder) if has_manifest(folder) else _nameless(folder, ids, config)


def has_manifest(folder: Path) -> bool:
    """Whether a dump says itself what was read."""
    return (folder / MANIFEST).exists()


def _described(folder: Path) -> Dump:
    """The dump of a manifest. FormatError bad-manifest names the field that is not as the head of this file says."""
    path = folder / MANIFEST
    said: Any = defaultdict(lambda: None, read_object(path, MAX_MANIFEST))
    _demand((said["format"], said["version"]) == (FORMAT, VERSION), path, "format", f"no {FORMAT}, version {VERSION}")
    layout, ids, weights, engine, prompt = (said[name] for name in ("layout", "ids", "weights", "engine", "prompt"))
    _demand(isinstance(layout, str) and layout in LAYOUTS, path, "layout", f"not one of {', '.join(LAYOUTS)}")
    _demand(_integers(ids, 1 << 31) and 0 < len(ids) <= MAX_IDS, path, "ids", "no list of token ids")
    _demand(isinstance(weights, str) and bool(SHA256.fullmatch(weights)), path, "weights", "no SHA-256")
    _demand(isinstance(engine, dict) and isinstance(engine.get("engine"), str)
            and isinstance(engine.get("int8_up_to", 0), int), path, "engine", "no fingerprint")  # fmt: skip
    shapes: dict[Key, tuple[int, ...]] = {}
    dtypes: dict[Key, str] = {}
    _demand(isinstance(said["stages"], list) and bool(said["stages"]), path, "stages", "no list of stages")
    for i, entry in enumerate(said["stages"]):
        key, shape = _entry(entry, layout, len(ids), path, f"stages[{i}]")
        _demand(key not in shapes, path, f"stages[{i}]", "the stage is listed twice")
        shapes[key], dtypes[key] = shape, entry["dtype"]
    if layout == "aprt":
        together = {(part, layer) for stage, layer in shapes for part in aprt.HOLDS[aprt.NAME_OF[stage]]}
        _demand(together == set(shapes), path, "stages", "q, k and v share a file, but not all are listed")
    return Dump(folder, layout, tuple(ids), _prompt(prompt, path), weights, engine, shapes, dtypes)


def _entry(entry: Any, layout: str, n_tokens: int, path: Path, field: str) -> tuple[Key, tuple[int, ...]]:
    """Stage and layer of one entry of ``stages``, and its shape."""
    _demand(isinstance(entry, dict), path, field, "no object")
    stage, layer, shape = entry.get("stage"), entry.get("layer"), entry.get("shape")
    _demand(isinstance(stage, str) and stage in STAGES, path, f"{field}.stage", "no stage of this name")
    _demand(layer is None if stage in WHOLE_MODEL_STAGES else _integers([layer], MAX_LAYERS), path, f"{field}.layer",
            "no layer of this stage")  # fmt: skip
    _demand(_integers(shape, 1 << 31) and 2 <= len(shape) <= MAX_AXES and shape[0] == n_tokens and min(shape) > 0, path,
            f"{field}.shape", "no shape of these tokens")  # fmt: skip
    _demand(entry.get("dtype") in (DTYPES if layout == "npy" else DTYPES[:1]), path, f"{field}.dtype", "no such type")
    _demand(entry.get("file") == file_of(stage, layer, layout), path, f"{field}.file", "not the file of this stage")
    return (stage, layer), tuple(shape)


def _prompt(said: Any, path: Path) -> Prompt | None:
    """The rendered text, if there is one."""
    if said is None:
        return None
    _demand(isinstance(said, dict) and isinstance(said.get("text"), str), path, "prompt", "no text")
    text: str = said["text"]
    literal: Any = said.get("literal")
    _demand(isinstance(literal, list) and all(_integers(pair, 1 << 31) and len(pair) == 2 for pair in literal), path,
            "prompt.literal", "no list of ranges")  # fmt: skip
    places = [0, *(place for pair in literal for place in pair), len(text)]
    _demand(places == sorted(places), path, "prompt.literal", "no ascending ranges of the text")
    return Prompt(text, tuple((start, stop) for start, stop in literal))


def _demand(holds: bool, path: Path, field: str, detail: str) -> None:
    if not holds:
        raise FormatError("bad-manifest", detail, path=path, field=field, remedy=aprt.REMEDY)


def _nameless(folder: Path, ids: Sequence[int] | None, config: Config | None) -> Dump:
    try:
        files = aprt.found_in(folder)
    except (OSError, ValueError) as error:
        raise InputError("there is no such folder", where=str(folder), remedy="Give the folder of a dump") from error
    if not files:
        raise FormatError("no-stages", f"neither {MANIFEST} nor APRT files are in this folder", path=folder,
                          field="folder", remedy="Give a folder that 'assay trace --out' wrote.")  # fmt: skip
    if not ids or config is None:
        raise InputError(f"the folder has no {MANIFEST} that says which tokens were read", where=str(folder),
                         remedy="Say it with --ids")  # fmt: skip
    shapes: dict[Key, tuple[int, ...]] = {}
    for name, layer, path in files:
        width, stages = aprt.width(path, layer, len(ids)), aprt.HOLDS[name]
        heads = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
        sizes = [width] if len(stages) == 1 else [n * config.head_dim for n in heads]
        shapes |= {(stage, layer): (len(ids), size) for stage, size in zip(stages, sizes, strict=True)}
    engine, dtypes = {"engine": "another tool"}, dict.fromkeys(shapes, "<f4")
    return Dump(folder, "aprt", tuple(ids), None, None, engine, shapes, dtypes)


def read_npy(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An ``.npy`` file that must have this shape and type.

    Raises FormatError: bad-npy, truncated, bad-size, and those of ``opened``.
    """
    wanted = npy_header(shape, dtype)
    with opened(path) as (fd, status):
        raw = os.pread(fd, 10 + 256, 0)
    size = 10 + int.from_bytes(raw[8:10], "little")
    if raw[:8] != wanted[:8] or raw[10:size].split() != wanted[10:].split():
        raise FormatError("bad-npy", f"not the header of {dtype} in the shape {list(shape)}", path=path, field="header",
                          offset=0, remedy=aprt.REMEDY)  # fmt: skip
    count = math.prod(shape)
    if status.st_size != size + count * np.dtype(dtype).itemsize:
        code = "truncated" if status.st_size < size + count * np.dtype(dtype).itemsize else "bad-size"
        raise FormatError(code, f"{status.st_size} bytes are not a header of {size} and {count} elements", path=path,
                          field="data", offset=size, remedy=aprt.REMEDY)  # fmt: skip
    return payload(path, size, count, dtype).reshape(shape)


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """What NumPy writes before the elements."""
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": dtype, "fortran_order": False, "shape": shape})
    return raw.getvalue()


def payload(path: Path, offset: int, count: int, dtype: str) -> np.ndarray:
    """``count`` elements from byte ``offset`` on, which the file was seen to have."""
    with opened(path) as (fd, _), open(fd, "rb", closefd=False) as file:
        found = np.fromfile(file, dtype, count, offset=offset)
    if len(found) < count:
        raise FormatError("file-changed", f"only {len(found)} of {count} elements are left", path=path, field="data",
                          offset=offset, remedy=aprt.REMEDY)  # fmt: skip
    return found


def _integers(value: Any, below: int) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < below for item in value)
