"""Small Qwen2 files of any shape, written with the ``gguf`` package; every value in them can be made a lie.

Weights are random blocks of the storage type itself, so no quantiser is needed: the integers are random, the
f16 numbers are chosen so that the decoded weights have mean about 0 and the standard deviation asked for.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, quants
from tokenizers.pre_tokenizers import ByteLevel

from assay.formats.blocks.ggml_types import BY_NAME
from tests.random_blocks import HALVES

OFFSET_PER_D = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
"""The second f16 number over the first for which the decoded values' mean is 0: the mean of the integers."""

TOKENS = [*sorted(ByteLevel.alphabet()), "th", "the", "Ġthe", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
KINDS = [1] * 259 + [3] * 3
MERGES = ["t h", "th e", "Ġ the"]
SCALARS = {str: GGUFValueType.STRING, bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32,
           float: GGUFValueType.FLOAT32, list: GGUFValueType.ARRAY}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Hyper-parameters; ``head_dim`` is stated in the file, hence free of ``hidden`` / ``n_heads``."""

    n_layers: int = 1
    hidden: int = 32
    n_heads: int = 2
    n_kv_heads: int = 1
    head_dim: int = 16
    ffn: int = 48
    tied: bool = True
    n_padding: int = 0
    """Rows of the embedding beyond the vocabulary."""
    theta: float = 1e6
    eps: float = 1e-6
    context: int = 512
    embedding_std: float = 0.05
    types: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Storage type of each role's matrix, layer by layer, e.g. ``{"attn_q": ["Q4_K", "Q6_K"]}``; else F32."""

    def type_of(self, role: str, layer: int = 0) -> str:
        kinds = self.types.get(role, ["F32"])
        return kinds[layer % len(kinds)]


Stored = tuple[np.ndarray, str]
"""Raw rows, uint8 [n_rows, row_bytes] (or f32 [size] for F32), and the storage type."""


def random_rows(rng: np.random.Generator, type_name: str, shape: tuple[int, int], std: float) -> np.ndarray:
    """Rows of random blocks, uint8 [n_rows, row_bytes], that decode to about mean 0 and deviation ``std``."""
    kind = BY_NAME[type_name]
    if kind.block_elements == 1:
        values = (rng.standard_normal(shape) * std).astype(np.float32)
        return np.ascontiguousarray(quants.quantize(values, GGMLQuantizationType[type_name])).view(np.uint8)
    n_blocks = math.prod(shape) // kind.block_elements
    raw = rng.integers(0, 256, (n_blocks, kind.block_bytes), dtype=np.uint8)
    d = rng.uniform(0.8, 1.2, n_blocks)

    def set_halves(size: float) -> None:
        for at, factor in zip(HALVES[type_name], (1.0, OFFSET_PER_D.get(type_name, 1.0)), strict=False):
            raw[:, at : at + 2] = (size * factor * d).astype(np.float16)[:, None].view(np.uint8)

    set_halves(1.0)
    deviation = quants.dequantize(raw, GGMLQuantizationType[type_name]).std()
    set_halves(std / float(deviation))
    return raw.reshape(shape[0], -1)


def tensors_of(shape: Shape, seed: int = 0) -> dict[str, Stored]:
    """Every tensor that a Qwen2 model of this shape has."""
    rng = np.random.default_rng(seed)
    q_size, kv_size = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    n_rows = len(TOKENS) + shape.n_padding

    def matrix(role: str, layer: int, n_out: int, n_in: int, std: float) -> Stored:
        kind = shape.type_of(role, layer)
        return random_rows(rng, kind, (n_out, n_in), std), kind

    def vector(size: int, mean: float, std: float) -> Stored:
        return (mean + std * rng.standard_normal(size)).astype(np.float32), "F32"

    tensors = {
        "token_embd.weight": matrix("token_embd", 0, n_rows, shape.hidden, shape.embedding_std),
        "output_norm.weight": vector(shape.hidden, 1, 0.1),
    }
    if not shape.tied:
        tensors["output.weight"] = matrix("output", 0, n_rows, shape.hidden, 0.3)
    for layer in range(shape.n_layers):
        for role, n_out, n_in in [
            ("attn_q", q_size, shape.hidden), ("attn_k", kv_size, shape.hidden), ("attn_v", kv_size, shape.hidden),
            ("attn_output", shape.hidden, q_size), ("ffn_gate", shape.ffn, shape.hidden),
            ("ffn_up", shape.ffn, shape.hidden), ("ffn_down", shape.hidden, shape.ffn),
        ]:  # fmt: skip
            tensors[f"blk.{layer}.{role}.weight"] = matrix(role, layer, n_out, n_in, 1.2 / math.sqrt(n_in))
        for role, size in [("attn_q", q_size), ("attn_k", kv_size), ("attn_v", kv_size)]:
            tensors[f"blk.{layer}.{role}.bias"] = vector(size, 0, 0.5)
        for role in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{role}.weight"] = vector(shape.hidden, 1, 0.1)
    return tensors


def metadata_of(shape: Shape) -> dict[str, Any]:
    """Every key that the file of such a model has."""
    return {
        "general.architecture": "qwen2",
        "qwen2.block_count": shape.n_layers,
        "qwen2.context_length": shape.context,
        "qwen2.embedding_length": shape.hidden,
        "qwen2.feed_forward_length": shape.ffn,
        "qwen2.attention.head_count": shape.n_heads,
        "qwen2.attention.head_count_kv": shape.n_kv_heads,
        "qwen2.attention.key_length": shape.head_dim,
        "qwen2.attention.value_length": shape.head_dim,
        "qwen2.attention.layer_norm_rms_epsilon": shape.eps,
        "qwen2.rope.freq_base": shape.theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|im_end|>"),
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def build(path: Path, shape: Shape | None = None, *, metadata: Mapping[str, Any] | None = None,
          tensors: Mapping[str, Stored | None] | None = None, seed: int = 0, split: int = 0) -> Path:  # fmt: skip
    """Write a model file and return its path; with ``split`` files of so many tensors each, and the first one's path.

    ``metadata`` and ``tensors`` replace or add what the shape implies; None leaves it out. A metadata value
    may be a pair (value, type) to state its type, or for a list that of its items.
    """
    shape = shape or Shape()
    writer = gguf.GGUFWriter(path, "qwen2", split_max_tensors=split)
    writer.kv_data[0].clear()  # the writer states the architecture unasked
    for key, value in {**metadata_of(shape), **(metadata or {})}.items():
        if value is None:
            continue
        value, kind = value if isinstance(value, tuple) else (value, None)
        if isinstance(value, list):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(key, value, kind or SCALARS[type(value)])
    for name, stored in {**tensors_of(shape, seed), **(tensors or {})}.items():
        if stored is not None:
            writer.add_tensor(name, stored[0], raw_dtype=GGMLQuantizationType[stored[1]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-*.gguf")) if split else path
