"""``model_builder``'s small Qwen2 models as Hugging Face folders, tokenizer.json by the ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelProcessor

from tests import safetensors_files as raw
from tests.apr_builder import hf_name
from tests.model_builder import KINDS, MERGES, TOKENS, Shape, tensors_of

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")  # fmt: skip


def tokenizer() -> Tokenizer:
    """The library's tokenizer with ``model_builder``'s vocabulary."""
    vocab = {token: i for i, (token, kind) in enumerate(zip(TOKENS, KINDS, strict=True)) if kind == 1}
    merges: list[tuple[str, str]] = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    made = Tokenizer(BPE(vocab=vocab, merges=merges))
    made.normalizer = NFC()
    split = Split(Regex(QWEN2), "isolated")
    made.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    made.post_processor = ByteLevelProcessor(trim_offsets=False, add_prefix_space=False, use_regex=False)
    made.decoder = ByteLevelDecoder()
    made.add_special_tokens([AddedToken(token) for token, kind in zip(TOKENS, KINDS, strict=True) if kind == 3])
    return made


def config_of(shape: Shape) -> dict[str, Any]:
    """config.json as transformers writes it."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": shape.hidden,
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads, "head_dim": shape.head_dim, "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context, "rope_theta": shape.theta, "rms_norm_eps": shape.eps,
        "vocab_size": len(TOKENS) + shape.n_padding, "tie_word_embeddings": shape.tied, "hidden_act": "silu",
        "bos_token_id": TOKENS.index("<|endoftext|>"), "eos_token_id": TOKENS.index("<|im_end|>"),
        "use_sliding_window": False, "sliding_window": 32768, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
    }  # fmt: skip


def tensors(shape: Shape, dtype: str, seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor (dtype, shape, bytes) by Hugging Face's name, norms and biases in ``dtype``, too."""
    stored = {}
    for name, (rows, kind) in tensors_of(shape, seed).items():
        values = rows if rows.ndim == 1 else quants.dequantize(rows, GGMLQuantizationType[kind])
        values = values.reshape(values.shape).astype(np.float32)
        encoded = quants.quantize(values.reshape(1, -1), GGMLQuantizationType[dtype])
        stored[hf_name(name)] = (dtype, values.shape, encoded.tobytes())
    return stored


def build(folder: Path, shape: Shape | None = None, *, dtype: str = "BF16", shards: int = 1, seed: int = 0,
          config: Mapping[str, Any] | None = None, files: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
    """Write a folder and return its path. ``config`` and ``files`` (JSON, text or None: none) replace or add."""
    shape = shape or Shape()
    folder.mkdir(parents=True)
    values = {key: value for key, value in {**config_of(shape), **(config or {})}.items() if value is not ...}
    content: dict[str, Any] = {
        "config.json": values,
        "generation_config.json": {"eos_token_id": [TOKENS.index("<|im_end|>"), TOKENS.index("<|endoftext|>")]},
        "tokenizer.json": json.loads(tokenizer().to_str()),
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
                                  "add_bos_token": False, "chat_template": "{{ messages[0].content }}"},
        **(files or {}),
    }  # fmt: skip
    for name, value in content.items():
        if value is not None:
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    write_weights(folder, tensors(shape, dtype, seed), shards)
    return folder


def write_weights(folder: Path, stored: Mapping[str, tuple[str, tuple[int, ...], bytes]], shards: int) -> None:
    names = list(stored)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(raw.packed(stored, {"format": "pt"}))
        return
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: stored[name] for name in names[i::shards]}
        weight_map |= dict.fromkeys(part, file)
        (folder / file).write_bytes(raw.packed(part, {"format": "pt"}))
    index = {"metadata": {"total_size": sum(len(data) for _, _, data in stored.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def as_gguf(path: Path, folder_dtype: str, shape: Shape, seed: int = 0) -> Path:
    """The same model as a GGUF file made by the ``gguf`` package: matrices in ``folder_dtype``, vectors in F32."""
    from tests.model_builder import build as build_gguf

    replaced = {}
    for name, (rows, kind) in tensors_of(shape, seed).items():
        values = rows if rows.ndim == 1 else quants.dequantize(rows, GGMLQuantizationType[kind])
        encoded = quants.quantize(values.astype(np.float32).reshape(1, -1), GGMLQuantizationType[folder_dtype])
        if rows.ndim == 1:
            exact = quants.dequantize(encoded, GGMLQuantizationType[folder_dtype])
            replaced[name] = (exact.reshape(-1).astype(np.float32), "F32")
        else:
            width = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[folder_dtype]][1] * values.shape[-1]
            replaced[name] = (encoded.view(np.uint8).reshape(len(values), width), folder_dtype)
    return build_gguf(path, shape, seed=seed, tensors=replaced,
                      metadata={"tokenizer.chat_template": "{{ messages[0].content }}",
                                "tokenizer.ggml.padding_token_id": TOKENS.index("<|endoftext|>")})  # fmt: skip
