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

from assay.formats.containers.base import Container, TensorInfo
from assay.formats.containers.cursor import shown
from assay.formats.errors import ModelError

HF_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Hugging Face's names of a layer's tensors, without the suffix -> ours, which are GGUF's."""
HF_WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}  # fmt: skip
_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def canonical_name(name: str) -> str:
    """Our name, which is GGUF's, of a tensor that Hugging Face names ``name``; any other name is left as it is."""
    if match := re.fullmatch(r"model\.layers\.(0|[1-9][0-9]{0,3})\.(.+)\.(weight|bias)", name):
        layer, role, suffix = match.groups()
        return f"blk.{layer}.{HF_LAYER[role]}.{suffix}" if role in HF_LAYER else name
    return HF_WHOLE.get(name, name)


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor of ``anatomy.tensor_shapes``; any other name is left as it is."""
    if match := re.fullmatch(r"blk\.([0-9]+)\.(.+)\.(weight|bias)", name):
        layer, role, suffix = match.groups()
        theirs = {ours: theirs for theirs, ours in HF_LAYER.items()}
        return f"model.layers.{layer}.{theirs[role]}.{suffix}" if role in theirs else name
    return {ours: theirs for theirs, ours in HF_WHOLE.items()}.get(name, name)


def by_common_name(container: Container, remedy: str) -> dict[str, TensorInfo]:
    """A container's tensors by common name, in its order.

    Raises ModelError, with ``remedy``, for two of one meaning: only one of them can be the model's.
    """
    tensors: dict[str, TensorInfo] = {}
    for info in container.tensors.values():
        name = canonical_name(info.name)
        if name in tensors:
            raise ModelError(f"{shown(info.name)} and {shown(tensors[name].name)} are the same tensor of the model",
                             where=str(container.path), remedy=remedy)  # fmt: skip
        tensors[name] = info
    return tensors


def common_names(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors by common name, in the file's order. Two that would share one keep the names they have."""
    counts = Counter(map(canonical_name, tensors))
    return {canonical_name(name) if counts[canonical_name(name)] == 1 else name: info for name, info in tensors.items()}


def naming(names: list[str]) -> str:
    """``"Hugging Face"`` if a name had to be mapped, ``"GGUF"`` if one has the common form, else ``"own"``."""
    if any(canonical_name(name) != name for name in names):
        return "Hugging Face"
    known = {"token_embd.weight", "output.weight", "output_norm.weight"}
    return "GGUF" if any(name in known or _GGUF_LAYER.fullmatch(name) for name in names) else "own"


def role_and_layer(name: str) -> tuple[str, int | None]:
    """``("attn_q.weight", 3)`` of either spelling; the layer is None outside the layers."""
    match = _GGUF_LAYER.fullmatch(canonical_name(name))
    return (match[2], int(match[1])) if match and len(match[1]) < 10 else (canonical_name(name), None)
