"""The well-formed files that mutants are made of: small models of each format, and the headers of the built-in one."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from assay.formats.conversion.convert import convert
from assay.goldens import BUILTIN
from tests import (
    apr_builder,
    apr_files,
    gguf_files,
    hf_builder,
    model_builder,
    safetensors_files,
)
from tests.fuzz import (
    apr_mutations,
    gguf_mutations,
    hf_mutations,
    safetensors_mutations,
)


class Seed(NamedTuple):
    """A well-formed file: ``content``, then ``tail`` zeros, which need not be written."""

    name: str
    content: bytes
    tail: int = 0
    beside: tuple[tuple[str, bytes], ...] = ()
    """Of a folder: its other files. ``name`` is then that of the file that is mutated."""


class Mutant(NamedTuple):
    """A file to be tried: ``content``, then ``tail`` zeros."""

    seed: str
    content: bytes
    tail: int = 0
    beside: tuple[tuple[str, bytes], ...] = ()


MUTATED: dict[str, Callable[[bytes, Random], bytes]] = {
    "gguf": gguf_mutations.mutated, "apr": apr_mutations.mutated, "safetensors": safetensors_mutations.mutated,
    "hf": hf_mutations.mutated,
}  # fmt: skip
FORMATS = tuple(MUTATED)
SMALL = model_builder.Shape(types={"token_embd": ["Q8_0"], "attn_q": ["Q4_0"], "ffn_up": ["Q5_1"]})
SMALL_APR = model_builder.Shape(hidden=16, head_dim=8, ffn=16, types={"token_embd": ["BF16"], "ffn_up": ["F16"]})


def mutant(format: str, number: int) -> Mutant:
    """The ``number``-th mutant of ``format``; the same at any time and on any machine."""
    rng = Random(f"{format} {number}")
    seed = rng.choice(seeds(format))
    content = MUTATED[format](seed.content, rng)
    tail = seed.tail + rng.choice((0, 0, 0, 0, 1, -1)) if seed.tail else 0
    return Mutant(seed.name, content, tail, seed.beside)


@cache
def seeds(format: str) -> tuple[Seed, ...]:
    """The seeds of a format, built on first use."""
    with tempfile.TemporaryDirectory() as folder:
        return SEEDS[format](Path(folder))


def gguf_seeds(folder: Path) -> tuple[Seed, ...]:
    """Version 3 and 2 of a model, one of everything, random types, and the built-in model's header."""
    model = model_builder.build(folder / "x.gguf", SMALL).read_bytes()
    pairs, tensors = gguf_files.random_pairs(1, 30), gguf_files.random_tensors(1, 12)
    builtin = BUILTIN.read_bytes()
    header = gguf_mutations.layout_of(builtin).data
    return (
        Seed("model", model),
        Seed("model of version 2", model[:4] + struct.pack("<I", 2) + model[8:]),
        Seed("one of everything", gguf_files.small_file()),
        Seed("random types", bytes(gguf_files.File(pairs, tensors))),
        Seed("built-in", builtin[:header], len(builtin) - header),
    )


def apr_seeds(folder: Path) -> tuple[Seed, ...]:
    """A model, one of everything, every storage type, and the built-in model's header."""
    model = apr_builder.build(folder / "x.apr", SMALL_APR).read_bytes()
    kinds = [*apr_files.BLOCKS, apr_files.APR_Q4, apr_files.APR_Q8]
    every = [apr_files.Tensor(f"t.{kind}", (2, 64), kind) for kind in kinds]
    convert(BUILTIN, folder / "b.apr", treatment="F32")
    builtin = (folder / "b.apr").read_bytes()
    header = apr_mutations.layout_of(builtin).data
    return (
        Seed("model", model),
        Seed("one of everything", apr_files.small_file()),
        Seed("every type", bytes(apr_files.File({"a": [1, {"b": None}], "c": 1.5}, every))),
        Seed("built-in", builtin[:header], len(builtin) - header),
    )


def safetensors_seeds(folder: Path) -> tuple[Seed, ...]:
    """Three tensors, every dtype, no tensors, and the built-in model's header."""
    convert(BUILTIN, folder / "b", treatment="F32")
    builtin = (folder / "b" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(builtin[:8], "little")
    sizes = safetensors_files.SIZES
    every = {f"t.{dtype}": (dtype, (2, 3), bytes(6 * sizes[dtype])) for dtype in sizes}
    few = {"a": ("F32", (2, 2), bytes(16)), "b": ("BF16", (0, 3), b""), "c": ("F16", (), b"\0\0")}
    return (
        Seed("few", safetensors_files.packed(few, {"format": "pt", "a": "b"})),
        Seed("every type", safetensors_files.packed(every)),
        Seed("no tensors", safetensors_files.packed({}, {"format": "pt", "c": "d", "e": "f"})),
        Seed("built-in", builtin[:header], len(builtin) - header),
    )


def hf_seeds(folder: Path) -> tuple[Seed, ...]:
    """Each JSON file of a folder, also of one in two shards, with a list of templates and the newer spellings."""
    templates = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    extra = {
        "tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}, "add_bos_token": False,
                                  "bos_token": None, "chat_template": templates},
        "generation_config.json": {"eos_token_id": 3, "bos_token_id": [2]},
    }  # fmt: skip
    scaled = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": None}
    shape = model_builder.Shape(hidden=16, head_dim=8, ffn=16)
    first = hf_builder.build(folder / "one", shape)
    second = hf_builder.build(folder / "two", shape, shards=2, config=scaled, files=extra)
    seeds = []
    for built in (first, second):
        files = {file.name: file.read_bytes() for file in sorted(built.iterdir())}
        for name, content in files.items():
            if name.endswith(".json") and not (built is second and name == "tokenizer.json"):
                seeds.append(Seed(name, content, beside=tuple((n, c) for n, c in files.items() if n != name)))
    return tuple(seeds)


SEEDS = {"gguf": gguf_seeds, "apr": apr_seeds, "safetensors": safetensors_seeds, "hf": hf_seeds}
