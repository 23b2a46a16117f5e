"""Write the built-in model's files from its trained weights.

    python -m assay.goldens.training.make_builtin FOLDER [OUT]

FOLDER is what ``train.py`` filled. OUT (this folder if left out) receives ``builtin.gguf`` and ``builtin.apr``,
the same tensors in the same bytes: quantised by ``formats/quantizers/whole_tensors.py`` in llama.cpp's quantization
mix Q4_K_M, written by the writers in ``formats/containers``. The same weights give the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.formats.containers.apr_writer import write_apr
from assay.formats.containers.base import Stored
from assay.formats.containers.gguf_metadata import typed
from assay.formats.containers.gguf_writer import write_gguf
from assay.formats.contract.vocabulary import CONTROL, NORMAL, USER_DEFINED
from assay.formats.quantizers.quantization_mix import MIXES
from assay.formats.quantizers.whole_tensors import quantized_arrays
from assay.formats.qwen2.tensor_names import hf_name
from assay.goldens import BUILTIN
from assay.goldens.training import train as trained

HERE = BUILTIN.parent
NAME, LICENCE, CONTEXT, MIX = "Assay built-in", "apache-2.0", 2048, "Q4_K_M"


def quantised(weights: Mapping[str, np.ndarray]) -> list[Stored]:
    """Every tensor as it is stored, by GGUF's names and in the order of the layers."""
    return quantized_arrays({name: weights[name].astype(np.float32) for name in trained.shapes()}, MIX)


def vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens, kinds and merges out of a ``tokenizer.json``."""
    model = tokenizer["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    added = [*trained.SPECIALS, *trained.USER_DEFINED]
    kinds = [NORMAL] * len(tokens) + [CONTROL] * len(trained.SPECIALS) + [USER_DEFINED] * len(trained.USER_DEFINED)
    return {"tokens": tokens + added, "kinds": kinds, "merges": [" ".join(pair) for pair in model["merges"]]}


def write(out: Path, tensors: Sequence[Stored], words: Mapping[str, Any]) -> None:
    """Both files in the folder ``out``."""
    write_gguf(out / "builtin.gguf", gguf_metadata(words), tensors, force=True)
    renamed = [Stored(hf_name(tensor.name), tensor.type, tensor.shape, tensor.read) for tensor in tensors]
    write_apr(out / "builtin.apr", apr_metadata(words), renamed, force=True)


def gguf_metadata(words: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converter would write of such a model."""
    ids = {token: i for i, token in enumerate(words["tokens"])}
    values = {
        "general.architecture": ("string", "qwen2"),
        "general.name": ("string", NAME),
        "general.license": ("string", LICENCE),
        "general.file_type": ("uint32", MIXES[MIX].file_type),
        "general.quantization_version": ("uint32", 2),
        "qwen2.block_count": ("uint32", trained.N_LAYERS),
        "qwen2.context_length": ("uint32", CONTEXT),
        "qwen2.embedding_length": ("uint32", trained.HIDDEN),
        "qwen2.feed_forward_length": ("uint32", trained.FFN),
        "qwen2.attention.head_count": ("uint32", trained.N_HEADS),
        "qwen2.attention.head_count_kv": ("uint32", trained.N_KV_HEADS),
        "qwen2.attention.layer_norm_rms_epsilon": ("float32", trained.EPS),
        "qwen2.rope.freq_base": ("float32", trained.ROPE_THETA),
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.pre": ("string", "qwen2"),
        "tokenizer.ggml.tokens": ("array of string", words["tokens"]),
        "tokenizer.ggml.token_type": ("array of int32", words["kinds"]),
        "tokenizer.ggml.merges": ("array of string", words["merges"]),
        "tokenizer.ggml.eos_token_id": ("uint32", ids["<|im_end|>"]),
        "tokenizer.ggml.padding_token_id": ("uint32", ids["<|endoftext|>"]),
        "tokenizer.ggml.bos_token_id": ("uint32", ids["<|endoftext|>"]),
        "tokenizer.ggml.add_bos_token": ("bool", False),
        "tokenizer.chat_template": ("string", trained.TEMPLATE),
    }
    return {key: typed(kind, value) for key, (kind, value) in values.items()}


def apr_metadata(words: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the keys of an APR file; ``rope_type`` 2 is the rotation of split halves."""
    ids = {token: i for i, token in enumerate(words["tokens"])}
    return {
        "name": NAME, "license": LICENCE, "architecture": "qwen2", "num_layers": trained.N_LAYERS,
        "hidden_size": trained.HIDDEN, "num_heads": trained.N_HEADS, "num_kv_heads": trained.N_KV_HEADS,
        "intermediate_size": trained.FFN, "vocab_size": trained.N_VOCAB, "max_position_embeddings": CONTEXT,
        "rope_theta": trained.ROPE_THETA, "rope_type": 2, "rms_norm_eps": trained.EPS,
        "tokenizer.model": "gpt2", "tokenizer.pre_type": "qwen2", "tokenizer.vocab_size": len(words["tokens"]),
        "tokenizer.vocabulary": words["tokens"], "tokenizer.token_type": words["kinds"],
        "tokenizer.merges": words["merges"], "tokenizer.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.eos_token_id": ids["<|im_end|>"], "tokenizer.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.add_bos_token": False, "tokenizer.chat_template": trained.TEMPLATE,
    }  # fmt: skip


def main() -> None:
    """Read what was trained, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=HERE)
    asked = parser.parse_args()
    with np.load(asked.folder / "weights.npz") as arrays:
        weights = {key.removeprefix("params/"): arrays[key] for key in arrays.files if key.startswith("params/")}
    tokenizer = json.loads((asked.folder / "tokenizer.json").read_text(encoding="utf-8"))
    write(asked.out, quantised(weights), vocabulary(tokenizer))


if __name__ == "__main__":
    main()
