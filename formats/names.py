"""Tensor names: Hugging Face's and GGUF's mapped to one spelling, and what a name says (role, layer).

    model.layers.3.self_attn.q_proj.weight   ->   blk.3.attn_q.weight   ->   role "attn_q.weight", layer 3
    model.embed_tokens.weight                ->   token_embd.weight     ->   role "token_embd.weight", no layer

The common spelling is GGUF's. A name that neither side knows is its own: nothing is guessed. Sources: gguf-py's tensor
mapping, transformers' Qwen2 model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from formats.apr_qwen2 import canonical_name as canonical
from formats.container import TensorInfo

__all__ = ["canonical", "common_names", "naming", "role_and_layer"]

_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def common_names(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors by common name, in the file's order. Two that would share one keep the names they have."""
    counts = Counter(map(canonical, tensors))
    return {canonical(name) if counts[canonical(name)] == 1 else name: info for name, info in tensors.items()}


def naming(names: list[str]) -> str:
    """``"Hugging Face"`` if a name had to be mapped, ``"GGUF"`` if one has the common form, else ``"own"``."""
    if any(canonical(name) != name for name in names):
        return "Hugging Face"
    known = {"token_embd.weight", "output.weight", "output_norm.weight"}
    return "GGUF" if any(name in known or _GGUF_LAYER.fullmatch(name) for name in names) else "own"


def role_and_layer(name: str) -> tuple[str, int | None]:
    """``("attn_q.weight", 3)`` of either spelling; the layer is None outside the layers."""
    match = _GGUF_LAYER.fullmatch(canonical(name))
    return (match[2], int(match[1])) if match and len(match[1]) < 10 else (canonical(name), None)
