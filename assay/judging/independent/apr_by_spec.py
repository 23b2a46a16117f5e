"""APR read a second time, from the format's description alone (aprender, crates/apr-format): the critical keys.

    <4s BB H I Q I Q Q    magic, version, flags, n_tensors, metadata at, metadata bytes, index at, data at
    u16 n, name[n], u8 type, u8 n_dims, u64 dims[n_dims], u64 offset, u64 size        n_tensors times

There is no package of others to ask. This reader shares no code with ``formats/``, and was written after it.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from assay.judging.independent.reading import Place, Reading, common_names, end_ids, f32

TYPES = {0: "F32", 1: "F16", 3: "F64", 4: "I32", 5: "I64", 6: "I8", 7: "U8", 8: "APR_Q4", 9: "APR_Q8", 12: "Q4_K",
         14: "Q6_K", 30: "BF16", 128: "APR_Q4", 129: "APR_Q8"}  # fmt: skip
NAMES = {
    "n_layers": ("num_layers", "n_layers", "num_hidden_layers", "n_layer"),
    "hidden_size": ("hidden_size", "hidden_dim", "d_model", "n_embd"),
    "n_heads": ("num_heads", "n_heads", "num_attention_heads", "n_head"),
    "n_kv_heads": ("num_kv_heads", "n_kv_heads", "num_key_value_heads"),
    "head_dim": ("head_dim",),
    "ffn_size": ("intermediate_size", "ffn_dim", "intermediate_dim", "n_inner"),
    "n_vocab": ("vocab_size", "n_vocab"),
    "context_length": ("max_position_embeddings", "max_seq_len", "context_length", "n_ctx"),
    "rope_theta": ("rope_theta",),
    "rms_norm_eps": ("rms_norm_eps", "layer_norm_eps", "norm_eps"),
}  # fmt: skip
"""Every name that some writer has for a hyper-parameter; an import from GGUF writes ``model.`` before the first."""
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"


def read(path: Path) -> Reading:
    """The Qwen2 model in an APR file; whatever is raised says that this reader does not understand it."""
    with path.open("rb") as file:
        _, _, _, _, n, metadata_at, metadata_bytes, index_at, data_at = struct.unpack("<4sBBHIQIQQ", file.read(40))
        file.seek(metadata_at)
        values = json.loads(file.read(metadata_bytes))
        file.seek(index_at)
        index = file.read(data_at - index_at)
    stored, at = {}, 0
    for _ in range(n):
        (length,) = struct.unpack_from("<H", index, at)
        name = index[at + 2 : at + 2 + length].decode()
        kind, n_dims = struct.unpack_from("<BB", index, at := at + 2 + length)
        *dims, offset, size = struct.unpack_from(f"<{n_dims + 2}Q", index, at + 2)
        at += 2 + 8 * (n_dims + 2)
        stored[name] = Place(TYPES[kind], tuple(dims), str(path), data_at + offset, size)
    found = {field: value_of(values, names) for field, names in NAMES.items()}
    tensors = common_names(stored, int(found["n_layers"]))
    if values.get("tied_embeddings") is True and OUTPUT in tensors and same(tensors[EMBEDDING], tensors[OUTPUT]):
        del tensors[OUTPUT]
    return Reading("a second reader of APR", facts_of(values, found, tensors), tensors)


def value_of(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of ``names`` that has a value; of a list, one number for each layer, its first."""
    found = next((values[name] for name in (*names, f"model.{names[0]}") if values.get(name) is not None), None)
    return found[0] if isinstance(found, list) else found


def facts_of(values: dict[str, Any], found: dict[str, Any], tensors: dict[str, Place]) -> dict[str, Any]:
    """What the metadata says; which tokens are special only where the file says so."""

    def told(key: str, default: Any) -> Any:
        return default if values.get(key) is None else values[key]

    tokens, kinds = values["tokenizer.vocabulary"], values.get("tokenizer.token_type")
    eos = values.get("tokenizer.eos_token_id")
    facts = found | {
        "n_kv_heads": found["n_kv_heads"] or found["n_heads"],
        "head_dim": found["head_dim"] or found["hidden_size"] // found["n_heads"],
        "n_vocab": found["n_vocab"] or tensors[EMBEDDING].shape[0],
        "rope_theta": f32(found["rope_theta"]), "rms_norm_eps": f32(found["rms_norm_eps"]),
        "tied": OUTPUT not in tensors, "tokens": tokens, "merges": values["tokenizer.merges"],
        "pre": told("tokenizer.pre_type", "") or "qwen2", "bos_id": values.get("tokenizer.bos_token_id"), "eos_id": eos,
        "add_bos": told("tokenizer.add_bos_token", False),
        "chat_template": told("tokenizer.chat_template", told("chat_template", "")) or None,
    }  # fmt: skip
    return facts if kinds is None else facts | {"kinds": kinds, "end_ids": end_ids([eos], tokens, kinds)}


def same(a: Place, b: Place) -> bool:
    """Whether two tensors are one, stored twice."""
    first, second = (np.memmap(one.path, np.uint8, "r", one.offset, one.nbytes) for one in (a, b))
    return (a.type, a.shape) == (b.type, b.shape) and np.array_equal(first, second)


def q4(raw: np.ndarray, n: int) -> np.ndarray:
    """A whole APR_Q4 tensor, u8 [18 * blocks], as f32 [n]: (nibble - 8) * scale, low nibbles at even places."""
    blocks = raw.reshape(-1, 18)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    scales[np.abs(scales) < 2.0**-14] = 0
    nibbles = np.empty((len(blocks), 32), np.float32)
    nibbles[:, 0::2], nibbles[:, 1::2] = blocks[:, 2:] % 16, blocks[:, 2:] // 16
    return ((nibbles - 8) * scales).reshape(-1)[:n]


def q8(raw: np.ndarray, n: int) -> np.ndarray:
    """A whole APR_Q8 tensor, u8 [4 + n], as f32 [n]."""
    return np.frombuffer(raw[4:].tobytes(), np.int8)[:n].astype(np.float32) * np.frombuffer(raw[:4].tobytes(), "<f4")
