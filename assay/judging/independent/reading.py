"""A model file as some reader understands it: facts by name, and where each tensor lies."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CONTROL = 3
ENDS = ("<|endoftext|>", "<|im_end|>")
"""Control tokens that end a text or a turn of Qwen2, whatever a file names as its one end token."""


class Place(NamedTuple):
    """Where a tensor lies."""

    type: str
    """GGUF's name of it, or APR's own."""
    shape: tuple[int, ...]
    """Row-major."""
    path: str
    offset: int
    """Absolute, in bytes."""
    nbytes: int


class Reading(NamedTuple):
    """What one reader makes of a model file."""

    reader: str
    """Its name and version."""
    facts: Mapping[str, Any]
    """Those that it can tell, by the names of the fields of ``Config`` and ``Vocabulary``; and ``chat_template``."""
    tensors: Mapping[str, Place]
    """By GGUF's names."""


class Unread(Exception):
    """A second reader could not make anything of a file that Assay's own has accepted; its text says why."""


def f32(value: float) -> float:
    """``value`` as the nearest f32: what GGUF holds of a number."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def end_ids(named: Sequence[int | None], tokens: Sequence[str], kinds: Sequence[int] | None) -> list[int]:
    """Every id that ends a generation: those that the file names, and Qwen2's own if they are control tokens."""
    ends = {int(i) for i in named if i is not None}
    if kinds is not None:
        ends |= {i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
                 if kind == CONTROL and token in ENDS}  # fmt: skip
    return sorted(ends)


def common_names(tensors: Mapping[str, Place], n_layers: int) -> dict[str, Place]:
    """``tensors`` by GGUF's names, as the ``gguf`` package maps Hugging Face's; what it does not know is left out.

    Not known to it are the frequencies of the rotation, which some checkpoints repeat.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, n_layers)
    known = {names.get_name(name, try_suffixes=(".weight", ".bias")): place for name, place in tensors.items()}
    return {name: place for name, place in known.items() if name is not None}
