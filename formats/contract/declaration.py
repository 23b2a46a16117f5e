"""What an arithmetic rounds, said by whoever computes in it: the judge forgives that much, and no more.

    Declaration()                                                  # every number in f32
    Declaration(activations="int8/256", cache="f16")               # llama.cpp on a file of K-quants
    Declaration(activations="bf16", weights="bf16", cache="bf16", results="bf16")     # a PyTorch model in bf16
    Declaration(activations={"q": "int8/32", "down": ("f32", "int8/32")})             # by matrix; by layer
    Declaration.from_json({"activations": "bf16", "weights": "bf16"})

Types are written as the field writes them. ``f64``, ``f32``, ``tf32``, ``f16`` and ``bf16`` round every number by
itself. ``int8/32`` are integers of 8 bits, of which 32 neighbours share a scale (the largest of them over 127: ggml's
Q8_0 and Q8_1; ``int8/256`` is its Q8_K); of ``int8`` alone, all numbers of a token share one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from assay.formats.contract.arguments import check_fields
from assay.formats.errors import InputError

MATRICES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "attn_output": "attn_output",
            "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "output": "output"}  # fmt: skip
"""The matrices of a model as a declaration names them, and as its tensors are named; ``output`` makes the logits."""

BITS = {"f64": 52, "f32": 23, "tf32": 10, "f16": 10, "bf16": 7}
"""Bits of a float after the leading one."""
AS_STORED = "as stored"
INT8 = re.compile(r"int8(?:/([1-9][0-9]{0,5}))?", re.ASCII)
ByMatrix = Mapping[str, str | Sequence[str]]
"""A type for each matrix, or one for each of its layers."""
Kept = Literal["f64", "f32", "f16", "bf16"]


@dataclass(frozen=True)
class Declaration:
    """What is rounded, and to what. Whatever is not given is f32, or as it is stored.

    Frozen; two that say the same are equal. Raises InputError for a matrix or a type that does not exist.
    """

    activations: str | ByMatrix = "f32"
    """The numbers that a matrix is multiplied with: one type, or one for each matrix (the others are f32)."""
    weights: str | ByMatrix = AS_STORED
    """A matrix's own numbers where they are multiplied, after decoding: ``"as stored"``, or a type of float."""
    cache: Kept = "f32"
    """Keys and values, and the query that meets them."""
    results: Kept = "f32"
    """The numbers that every stage hands to the next one."""
    scores: Kept = "f32"
    """What attention computes between its two products."""
    accumulation: Literal["f64", "f32"] = "f32"
    """Partial sums of products."""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "activations", _by_matrix(self.activations, "activations", "f32"))
        object.__setattr__(self, "weights", _by_matrix(self.weights, "weights", AS_STORED))

    def __hash__(self) -> int:
        return hash(self.key)

    def activation(self, matrix: str, layer: int | None) -> str:
        """The type of what ``matrix`` is multiplied with in ``layer`` (None: of ``output``)."""
        return _of_layer(self.activations, matrix, layer, "activations")

    def weight(self, matrix: str, layer: int | None) -> str:
        """The type of a matrix's own numbers where they are multiplied."""
        return _of_layer(self.weights, matrix, layer, "weights")

    def coarse_products(self) -> set[str]:
        """The types coarser than f32 that any matrix, or what it is multiplied with, is rounded to."""
        both = (*_grouped(self.activations), *_grouped(self.weights))
        return {kind for kind in both if is_coarse(kind)}

    def check_layers(self, n_layers: int) -> None:
        """Raise InputError where a list does not have a type for each of ``n_layers``."""
        for name in ("activations", "weights"):
            for matrix, kinds in getattr(self, name).items():
                wanted = 1 if matrix == "output" else n_layers
                if isinstance(kinds, str) or len(kinds) == wanted:
                    continue
                raise InputError(f"{len(kinds)} types for the {wanted} layers of {matrix}",
                                 where=f"{name} of Declaration", remedy="Give one for each, or one type")  # fmt: skip

    @property
    def key(self) -> str:
        """The same text for two declarations that say the same."""
        return json.dumps(self.to_json(), sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """As JSON: every field by its name, ``activations`` and ``weights`` by matrix."""
        said: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("activations", "weights"):
            said[name] = {matrix: kinds if isinstance(kinds, str) else list(kinds)
                          for matrix, kinds in said[name].items()}  # fmt: skip
        return said

    @classmethod
    def from_json(cls, said: Any, where: str = "declaration") -> Declaration:
        """The declaration that ``to_json`` wrote, or a person; what is left out is as by default.

        Raises InputError for what is not an object, a field of another name, and what does not fit.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(said, Mapping):
            raise InputError(f"a {type(said).__name__} is not an object", where=where, remedy="Give a JSON object")
        if unknown := [key for key in said if key not in names]:
            raise InputError(f"there is no field {unknown[0]!r:.60}", where=where,
                             remedy=f"A declaration has {', '.join(names)}")  # fmt: skip
        return cls(**said)

    def describe(self) -> list[str]:
        """What it forgives, in words: a line for each kind of rounding that is coarser than f32."""
        lines = []
        for kind, matrices in _grouped(self.activations).items():
            if kind not in ("f64", "f32"):
                lines.append(f"activations rounded to {in_words(kind)} before {', '.join(matrices)}")
        for kind, matrices in _grouped(self.weights).items():
            if kind not in ("f64", "f32", AS_STORED):
                lines.append(f"weights rounded to {in_words(kind)} in {', '.join(matrices)}")
        for kind, what in ((self.cache, "keys and values kept in"), (self.results, "every stage's result rounded to"),
                           (self.scores, "attention scores computed in")):  # fmt: skip
            if kind not in ("f64", "f32"):
                lines.append(f"{what} {kind}")
        if not lines and self.accumulation == "f32":
            lines.append("f32 rounding, with sums added in any order")
        return lines or ["f64 sums of f32 numbers"]


def block_of(kind: str) -> int | None:
    """How many neighbours share a scale, 0 for all of a token; None for a type that has none."""
    found = INT8.fullmatch(kind)
    return int(found[1] or 0) if found else None


def is_coarse(kind: str) -> bool:
    """Whether a type is coarser than f32."""
    return kind not in ("f64", "f32", AS_STORED)


def in_words(kind: str) -> str:
    """A type as a sentence names it."""
    block = block_of(kind)
    if block is None:
        return kind
    return f"8 bits in blocks of {block}" if block else "8 bits with one scale a token"


def _by_matrix(given: str | ByMatrix, name: str, default: str) -> dict[str, str | tuple[str, ...]]:
    """``given`` with every matrix in it, each type checked."""
    by_matrix: ByMatrix = dict.fromkeys(MATRICES, given) if isinstance(given, str) else given
    if unknown := [key for key in by_matrix if key not in MATRICES]:
        raise InputError(f"there is no matrix {unknown[0]!r:.60}", where=f"{name} of Declaration",
                         remedy=f"Choose among {', '.join(MATRICES)}")  # fmt: skip
    others = "int8 or int8/32" if name == "activations" else repr(AS_STORED)
    whole: dict[str, str | tuple[str, ...]] = {}
    for matrix in MATRICES:
        kinds = by_matrix.get(matrix, default)
        whole[matrix] = kinds if isinstance(kinds, str) else tuple(kinds)
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            if not (kind in BITS or kind == default or (name == "activations" and INT8.fullmatch(kind))):
                raise InputError(f"there is no type {kind!r:.60}", where=f"{name} of Declaration, {matrix}",
                                 remedy=f"Give one of {', '.join(BITS)}, {others}")  # fmt: skip
    return whole


def _of_layer(by_matrix: Any, matrix: str, layer: int | None, name: str) -> str:
    kinds = by_matrix[matrix]
    return kinds if isinstance(kinds, str) else kinds[layer or 0]


def _grouped(by_matrix: Any) -> dict[str, list[str]]:
    """The matrices of each type; a type that some layers have only is said so."""
    groups: dict[str, list[str]] = {}
    for matrix, kinds in by_matrix.items():
        some = [kinds] if isinstance(kinds, str) else list(kinds)
        for kind in dict.fromkeys(some):
            part = "" if len(set(some)) == 1 else f" ({some.count(kind)} of {len(some)} layers)"
            groups.setdefault(kind, []).append(matrix + part)
    return groups
