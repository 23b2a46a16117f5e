"""A Hugging Face folder: a model as a handful of JSON files beside one or more safetensors files.

    config.json                    hyper-parameters                                     (formats/qwen2/from_hf.py)
    model.safetensors              the weights; or, in shards,
    model.safetensors.index.json   {"weight_map": {tensor: "model-00001-of-00002.safetensors", ...}}
    tokenizer.json                 vocabulary and merges                                (formats/qwen2/hf_tokenizer.py)
    tokenizer_config.json          special tokens, chat template         not in every folder
    generation_config.json         what ends a text                      not in every folder
    chat_template.jinja            the template, in newer folders        not in every folder

``metadata`` has the parsed files by their names, and under the names of the safetensors files what those hold of it.
The index is believed in nothing: shards must hold the tensors that it lists, all of them and no other.

Opening fails with FormatError; its codes are those of ``safetensors.py`` and

    no-model                   a folder without config.json, or without safetensors
    pickle                     weights in PyTorch's own files only (*.bin, *.pt): to read one is to run it
    json-too-large bad-json    as in formats/containers/strict_json.py
    bad-text                   the template is too long or not UTF-8
    bad-index                  no weight_map, a shard's name that is a path, shards and index that differ
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assay.formats.containers.base import Container
from assay.formats.containers.cursor import opened, shown
from assay.formats.containers.foreign import pickle_refused
from assay.formats.containers.safetensors import MAX_TENSORS, Safetensors, read_safetensors
from assay.formats.containers.strict_json import read_object
from assay.formats.errors import FormatError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
TOKENIZER_CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = {CONFIG: 16 << 20, TOKENIZER: 64 << 20, TOKENIZER_CONFIG: 16 << 20, GENERATION: 1 << 20}
"""Most bytes of each; Qwen2.5's tokenizer.json has 7 MB, the others a few thousand bytes."""
MAX_TEMPLATE = 1 << 20
MAX_SHARDS = 1 << 10
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin")


@dataclass(frozen=True, eq=False, kw_only=True)
class HFFolder(Container):
    """An open folder; tensors by the names in its safetensors files."""

    format: str = "hf"
    metadata: Mapping[str, Any]
    shards: Mapping[str, Safetensors] = field(repr=False)
    """By file name."""
    shard_of: Mapping[str, Safetensors] = field(repr=False)
    """By tensor name."""
    files: tuple[Path, ...] = ()
    """Everything that was read, by name."""

    @property
    def parts(self) -> tuple[Path, ...]:
        return self.files

    @property
    def members(self) -> tuple[Container, ...]:
        return tuple(self.shards.values())

    def raw(self, name: str) -> np.ndarray:
        return self.shard_of.get(name, next(iter(self.shards.values()))).raw(name)


def open_folder(path: Path) -> HFFolder:
    """Open a Hugging Face folder. Raises FormatError with the codes above; no other exception, whatever it holds."""
    metadata: dict[str, Any] = {}
    if not (path / CONFIG).exists():
        raise no_model(path, f"there is no {CONFIG}")
    for name, most in JSON_FILES.items():
        if (path / name).exists():
            metadata[name] = read_object(path / name, most)
    if (path / TEMPLATE).exists():
        metadata[TEMPLATE] = read_text(path / TEMPLATE, MAX_TEMPLATE)
    index = None
    if not (path / WHOLE).exists():
        index = read_index(path)
    names = [WHOLE] if index is None else sorted(set(index.values()))
    shards = {name: read_safetensors(path / name) for name in names}
    shard_of = owners(path, shards, index)
    metadata |= {name: dict(shard.metadata) for name, shard in shards.items() if shard.metadata}
    tensors = {name: shard.tensors[name] for name, shard in sorted(shard_of.items())}
    files = tuple(sorted([path / name for name in {*metadata, *names}] + ([path / INDEX] if index else [])))
    return HFFolder(path=path, metadata=metadata, tensors=tensors, shards=shards, shard_of=shard_of, files=files,
                    size=sum(file.stat().st_size for file in files))  # fmt: skip


def read_index(path: Path) -> dict[str, str]:
    """``weight_map``: the shard of each tensor."""
    if not (path / INDEX).exists():
        if any(any(path.glob(pattern)) for pattern in PICKLES):
            raise pickle_refused(path)
        raise no_model(path, f"there is neither {WHOLE} nor {INDEX}")

    def fail(detail: str) -> FormatError:
        return FormatError("bad-index", detail, path=path / INDEX, field="weight_map",
                           remedy="The folder is damaged or incomplete; fetch it again.")  # fmt: skip

    index = read_object(path / INDEX, 16 << 20).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise fail("the value must be an object that gives each tensor the name of its file")
    if len(index) > MAX_TENSORS or len(set(index.values())) > MAX_SHARDS:
        raise fail(f"it lists {len(index)} tensors in {len(set(index.values()))} files, more than any model has")
    for name in index.values():
        if "/" in name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise fail(f"{shown(name)} is not the name of a safetensors file in this folder")
    return index


def owners(path: Path, shards: Mapping[str, Safetensors], index: Mapping[str, str] | None) -> dict[str, Safetensors]:
    """The shard that holds each tensor. Raises FormatError bad-index unless shards and index agree."""
    owner: dict[str, Safetensors] = {}

    def fail(name: str, detail: str) -> FormatError:
        return FormatError("bad-index", detail, path=path, field=f"tensor {shown(name)}",
                           remedy="Files are mixed up, or one is missing; fetch the folder again.")  # fmt: skip

    for file, shard in shards.items():
        for name in shard.tensors:
            if name in owner:
                raise fail(name, f"it is in {owner[name].path.name} and in {file}")
            if index is not None and index.get(name) != file:
                raise fail(name, f"it is in {file}, but the index says {shown(str(index.get(name)))}")
            owner[name] = shard
    for name, file in (index or {}).items():
        if name not in owner:
            raise fail(name, f"the index says that it is in {file}, but it is not")
    return owner


def read_text(path: Path, most: int) -> str:
    """A UTF-8 file of at most ``most`` bytes. Raises FormatError."""
    with opened(path, text=True) as (fd, status):
        size = status.st_size
        raw = os.pread(fd, min(size, most), 0)
    try:
        if size <= most:
            return raw.decode()
        detail = f"it has {size} bytes, more than the {most} allowed"
    except UnicodeDecodeError:
        detail = "it is not valid UTF-8"
    raise FormatError("bad-text", detail, path=path, field="file", remedy="Fetch the file again.")


def no_model(path: Path, detail: str) -> FormatError:
    """The error for a folder without a model; it names a model file that is in the folder."""
    file = next(iter(sorted([*path.glob("*.gguf"), *path.glob("*.apr")])), None)
    remedy = f"Give {shown(file.name)}, which is in it." if file else "Give a model file, or a Hugging Face folder."
    return FormatError("no-model", f"{detail}, so this folder holds no model", path=path, field="path", remedy=remedy)
