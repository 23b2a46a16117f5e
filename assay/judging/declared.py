"""What our own engines' fingerprints declare, as the typed record that anybody's engine may give instead.

    {"engine": "mine", "declaration": {"activations": "bf16", "weights": "bf16"}}     the record itself, as JSON
    {"arith": "ggml", "cache": "f16"}            what llama.cpp and the oracle's ``ggml`` do: by the type of each matrix
    {"arith": "fast", "dense": "bfloat16", "int8_up_to": 16, "cache": "f16"}          the accelerated engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assay.formats import ModelFile, Tensor
from assay.formats.contract.declaration import AS_STORED, MATRICES, Declaration

PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""The types that the accelerated engine multiplies as integers, or in bf16; all others it decodes to f32."""


def declaration_of(fingerprint: Mapping[str, Any], file: ModelFile, n_at_once: int) -> Declaration | None:
    """What an engine of this fingerprint rounds when it reads ``n_at_once`` tokens of this model at a time.

    None if it does not say: then there is no floor, and no verdict. Raises InputError for a ``declaration`` that is
    not one.
    """
    if (said := fingerprint.get("declaration")) is not None:
        return said if isinstance(said, Declaration) else Declaration.from_json(said, "declaration of the fingerprint")
    arith, dense = fingerprint.get("arith"), fingerprint.get("dense", "float32")
    cache = fingerprint.get("cache", "f16" if arith == "ggml" else "f32")
    if arith not in ("f64", "f32", "ggml", "fast") or cache not in ("f32", "f16", "bf16"):
        return None
    if arith == "f64":
        return Declaration(cache=cache, results="f64")
    if arith == "ggml":
        return Declaration(by_matrix(file, of_ggml), cache=cache)
    if arith == "fast" and n_at_once <= fingerprint.get("int8_up_to", 0):
        return Declaration(by_matrix(file, lambda one: of_ggml(one) if is_packed(one) else "f32"), cache=cache)
    if arith == "fast" and dense == "bfloat16":
        weights = by_matrix(file, lambda one: "bf16" if is_packed(one) else AS_STORED)
        return Declaration(by_matrix(file, lambda one: "bf16" if is_packed(one) else "f32"), weights, cache=cache)
    return Declaration(cache=cache)


def of_ggml(matrix: Tensor) -> str:
    """What ggml rounds before a matrix: its ``vec_dot_type`` for the matrix's type, blocks as long as the matrix's."""
    size = matrix.type.block_elements
    return f"int8/{size}" if size > 1 else matrix.type.name.lower()


def is_packed(matrix: Tensor) -> bool:
    """Whether the accelerated engine has a layout of packed words for it."""
    return matrix.type.name in PACKED


def by_matrix(file: ModelFile, kind: Callable[[Tensor], str]) -> dict[str, str | tuple[str, ...]]:
    """For each matrix its kind, layer by layer where they differ."""
    found: dict[str, str | tuple[str, ...]] = {}
    for matrix, name in MATRICES.items():
        tensors = [f"blk.{layer}.{name}.weight" for layer in range(file.config.n_layers)]
        if matrix == "output":
            tensors = ["token_embd.weight" if file.config.tied else "output.weight"]
        kinds = tuple(kind(file.tensors[one]) for one in tensors)
        found[matrix] = kinds[0] if len(set(kinds)) == 1 else kinds
    return found
