"""A model file as somebody else reads it: other bytes, other hyper-parameters, tensors in other places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from assay.formats import ModelFile, Tensor
from assay.judging.proof.faults import NotApplied
from assay.parity.mutants.record import Bytes, Reader
from assay.parity.precision import Key

STAGE_OF = {"attn_norm.weight": "attn_norm", "attn_q.weight": "q_proj", "attn_k.weight": "k_proj",
            "attn_v.weight": "v_proj", "attn_q.bias": "q_bias", "attn_k.bias": "k_bias", "attn_v.bias": "v_bias",
            "attn_output.weight": "attn_out", "ffn_norm.weight": "ffn_norm", "ffn_gate.weight": "ffn_gate",
            "ffn_up.weight": "ffn_up", "ffn_down.weight": "ffn_out"}  # fmt: skip
"""The stage that shows a tensor first."""
WHOLE_MATRIX = "token_embd.weight"


def with_rows(tensor: Tensor, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A tensor whose encoded rows are changed."""
    raw = change(np.array(tensor.raw()))
    raw.flags.writeable = False
    return replace(tensor, read=lambda rows: raw[rows])


def spoiled(file: ModelFile, seam: Bytes) -> tuple[ModelFile, list[str]]:
    """The file with other bytes, and the tensors that differ. Raises NotApplied where none does."""
    tensors, changed = dict(file.tensors), []
    for name, tensor in file.tensors.items():
        if not fnmatchcase(name, seam.tensors) or (seam.types and tensor.type.name not in seam.types):
            continue
        if seam.tensors in ("blk.*.weight",) and len(tensor.shape) < 2:
            continue  # matrices, not gains
        try:
            new = with_rows(tensor, lambda raw, t=tensor: seam.change(raw, t.type.name))
        except KeyError as error:
            raise NotApplied(f"the change does not know blocks of type {error}") from None
        if not np.array_equal(new.raw(), tensor.raw()):
            tensors[name] = new
            changed.append(name)
    if not changed:
        raise NotApplied("no such tensor, or not a byte of it differs")
    return replace(file, tensors=tensors), changed


def site_of(names: list[str], used_as: str) -> Key:
    """The first stage that computes with one of these tensors."""
    if WHOLE_MATRIX in names:
        return ("logits" if used_as == "head" else "embedding"), None
    order = list(STAGE_OF)
    layer, _, stage = min((int(layer), order.index(role), STAGE_OF[role])
                          for _, layer, role in (name.split(".", 2) for name in names))  # fmt: skip
    return stage, layer


def misread(file: ModelFile, seam: Reader) -> ModelFile:
    """The file with another config, other names or end tokens."""
    tensors = dict(file.tensors)
    if seam.zero:
        lost = [name for name in tensors if fnmatchcase(name, seam.zero)]
        if not lost:
            raise NotApplied(f"no tensor {seam.zero}")
        tensors |= {name: with_rows(tensors[name], np.zeros_like) for name in lost}
    if seam.exchange:
        tensors |= exchanged(file, *seam.exchange)
    known = vars(file.config)
    config = replace(file.config, **{name: known[name] * factor for name, factor in seam.config})
    vocabulary = file.vocabulary if seam.end_ids else replace(file.vocabulary, end_ids=frozenset())
    return replace(file, tensors=tensors, config=config, vocabulary=vocabulary)


def exchanged(file: ModelFile, a: str, b: str) -> dict[str, Tensor]:
    """Tensors in one another's places."""
    pairs = [(a, b)] if "*" not in a else [(a.replace("*", str(i)), b.replace("*", str(i)))
                                          for i in range(file.config.n_layers)]  # fmt: skip
    out = {}
    for one, other in pairs:
        if one not in file.tensors or other not in file.tensors:
            raise NotApplied(f"no tensor {one} or {other}")
        first, second = file.tensors[one], file.tensors[other]
        if (first.shape, first.type.name) != (second.shape, second.type.name):
            raise NotApplied(f"{one} and {other} have different shapes or types")
        out |= {one: replace(second, name=one), other: replace(first, name=other)}
    return out
