"""Small Qwen2 models as APR files: the same models as ``model_builder``'s, in the bytes of ``apr_files.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants

from tests import apr_files as raw
from tests.model_builder import KINDS, MERGES, TOKENS, Shape, random_rows, tensors_of

CODES = {"F32": raw.F32, "F16": raw.F16, "BF16": raw.BF16, "Q4_K": raw.Q4_K, "Q6_K": raw.Q6_K}
ROLES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    """Hugging Face's name for GGUF's."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{ROLES[parts[2]]}.{parts[3]}"
    return f"{WHOLE[parts[0]]}.{parts[1]}"


def metadata_of(shape: Shape) -> dict[str, Any]:
    """Every key that an import writes for such a model."""
    return {
        "name": "test", "license": None, "architecture": "qwen2", "hidden_size": shape.hidden,
        "num_layers": shape.n_layers,
        "num_heads": shape.n_heads, "num_kv_heads": shape.n_kv_heads, "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn, "max_position_embeddings": shape.context, "rope_theta": shape.theta,
        "rope_type": 2, "rms_norm_eps": shape.eps, "vocab_size": len(TOKENS) + shape.n_padding,
        "tokenizer.vocabulary": TOKENS, "tokenizer.vocab_size": len(TOKENS), "tokenizer.merges": MERGES,
        "tokenizer.token_type": KINDS, "tokenizer.model": "gpt2", "tokenizer.pre_type": "qwen2",
        "tokenizer.bos_token_id": TOKENS.index("<|endoftext|>"), "tokenizer.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.add_bos_token": False,
    }  # fmt: skip


def build(path: Path, shape: Shape | None = None, *, metadata: Mapping[str, Any] | None = None,
          tensors: Mapping[str, raw.Tensor | None] | None = None, seed: int = 0,
          named: Callable[[str], str] = hf_name) -> Path:  # fmt: skip
    """Write a model file and return its path.

    ``metadata`` and ``tensors`` (by GGUF's names) replace or add; ``...`` for a key and None for a tensor omit it.
    """
    shape = shape or Shape()
    content: dict[str, raw.Tensor | None] = {}
    for name, (rows, kind) in tensors_of(shape, seed).items():
        elements, size = raw.BLOCKS[CODES[kind]]
        dims = rows.shape if rows.ndim == 1 else (len(rows), rows.shape[1] // size * elements)
        content[name] = raw.Tensor(named(name), dims, CODES[kind], rows.tobytes())
    content.update(tensors or {})
    values = {key: value for key, value in {**metadata_of(shape), **(metadata or {})}.items() if value is not ...}
    path.write_bytes(bytes(raw.File(values, [tensor for tensor in content.values() if tensor is not None])))
    return path


def padded_matrix(name: str, n_rows: int, n_columns: int, kind: str, seed: int) -> tuple[raw.Tensor, np.ndarray]:
    """A matrix whose rows are filled up to whole blocks of 256 with noise that must not count, and its values."""
    width = (n_columns + 255) // 256 * 256
    rows = random_rows(np.random.default_rng(seed), kind, (n_rows, width), 0.05)
    values = quants.dequantize(rows, GGMLQuantizationType[kind]).reshape(n_rows, width)[:, :n_columns]
    return raw.Tensor(name, (n_rows, n_columns), CODES[kind], rows.tobytes()), values
