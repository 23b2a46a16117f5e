"""What a GGUF file says about a Qwen2 model: hyper-parameters, vocabulary and template, read and doubted.

A container can be well-formed and still lie. Each value is taken with its type, held against the range that
any real model keeps to, and against the tensors. What is required is never defaulted: a missing
``rope.freq_base`` read as 10000 gives a model that is right for ten tokens and drifts from there.
"""

from __future__ import annotations

from typing import Any

from assay.formats.containers.cursor import shown
from assay.formats.containers.gguf import GGUF
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import Vocabulary
from assay.formats.errors import ModelError
from assay.formats.qwen2.description import ARCHITECTURE, Qwen2, checked_vocabulary, demand_heads, demand_plausible
from assay.formats.qwen2.no_effect import (
    PER_LAYER,
    demand_full_attention,
    demand_neutral,
    demand_plain_rotation,
    refused,
    uniform,
    without_rotation,
)


def qwen2_of(gguf: GGUF) -> Qwen2:
    """The Qwen2 model in ``gguf``. Raises ModelError and FormatError as :func:`config_of` and :func:`vocabulary_of`."""
    warnings: list[str] = []
    config = config_of(gguf, warnings)
    return Qwen2(
        name=gguf.metadata.description("general.name", warnings) or gguf.path.stem,
        config=config,
        vocabulary=vocabulary_of(gguf, n_rows=config.n_vocab),
        chat_template=chat_template(gguf),
        tensors=without_rotation(gguf, gguf.tensors, config, warnings),
        warnings=tuple(warnings),
    )


def config_of(gguf: GGUF, warnings: list[str]) -> Config:
    """Hyper-parameters of the Qwen2 model in ``gguf``; ``warnings`` collects what has no effect and is ignored.

    Raises ModelError for another architecture, for a value outside the plausible range, for what would change the
    model (rope scaling, which moves every position, a sliding window) and for a file that is one shard of several.
    """
    meta, where = gguf.metadata, str(gguf.path)
    architecture = meta.string("general.architecture")
    if architecture != ARCHITECTURE:
        raise ModelError(f"architecture {shown(architecture)} is not {ARCHITECTURE!r}", where=where,
                         remedy="Assay runs Qwen2, Qwen2.5 and models distilled into them")  # fmt: skip
    if meta.integer("split.count", default=1) > 1:
        raise ModelError("the file is one shard of a split model", where=where,
                         remedy="Merge the shards first (llama-gguf-split --merge)")  # fmt: skip

    n_layers = _integer(gguf, "block_count", "n_layers", 1)

    def integer(key: str, field: str, default: int | None = None) -> int:
        return _integer(gguf, key, field, n_layers, default)

    hidden_size = integer("embedding_length", "hidden_size")
    n_heads = integer("attention.head_count", "n_heads")
    head_dim = integer("attention.key_length", "head_dim", hidden_size // n_heads)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("there is no token_embd.weight matrix", where=where,
                         remedy="The conversion lost it; convert again from the original")  # fmt: skip
    config = Config(
        n_layers=n_layers,
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=integer("attention.head_count_kv", "n_kv_heads", n_heads),
        head_dim=head_dim,
        ffn_size=integer("feed_forward_length", "ffn_size"),
        n_vocab=integer("vocab_size", "n_vocab", embedding.shape[0]),
        context_length=integer("context_length", "context_length"),
        rope_theta=_floating(gguf, "rope.freq_base", "rope_theta"),
        rms_norm_eps=_floating(gguf, "attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        tied="output.weight" not in gguf.tensors,
    )
    demand_heads(config, where, head_dim_stated="qwen2.attention.key_length" in meta)
    if integer("attention.value_length", "head_dim", head_dim) != head_dim:
        raise refused("key and value heads differ in width", where)
    if integer("rope.dimension_count", "head_dim", head_dim) != head_dim:
        raise refused("only part of each head is rotated", where)
    demand_neutral(meta, where, gguf=True)
    demand_plain_rotation(_rope_scaling(gguf), config.context_length, where, warnings)
    window = meta.integer(f"{ARCHITECTURE}.attention.sliding_window", default=0)
    demand_full_attention(window or None, [True] * n_layers, config.context_length, where, warnings)
    return config


def _rope_scaling(gguf: GGUF) -> dict[str, Any]:
    """Rope scaling in the terms of config.json. A factor of 0 is none, and one without a kind is linear scaling, as
    llama.cpp reads it."""
    def stated(*keys: str) -> float | None:
        values = (gguf.metadata.floating(f"{ARCHITECTURE}.rope.{key}", default=None) for key in keys)
        return next((value for value in values if value is not None), None)

    return {"rope_type": gguf.metadata.string(f"{ARCHITECTURE}.rope.scaling.type", default=None),
            "factor": stated("scaling.factor", "scale_linear") or None,
            "attention_factor": stated("scaling.attn_factor")}  # fmt: skip


def _integer(gguf: GGUF, key: str, field: str, n_layers: int, default: int | None = None) -> int:
    """A hyper-parameter; one that may be stated for each of ``n_layers`` layers is the number that all of them are."""
    key, where = f"{ARCHITECTURE}.{key}", str(gguf.path)
    if field in PER_LAYER and key in gguf.metadata and gguf.metadata.type_of(key).startswith("array of "):
        value = int(uniform(gguf.metadata.integers(key).tolist(), n_layers, key, where))
    else:
        value = gguf.metadata.integer(key, **({} if default is None else {"default": default}))
    demand_plausible(field, value, key, where)
    return value


def _floating(gguf: GGUF, key: str, field: str) -> float:
    key = f"{ARCHITECTURE}.{key}"
    value = gguf.metadata.floating(key)
    demand_plausible(field, value, key, str(gguf.path))
    return value


def vocabulary_of(gguf: GGUF, *, n_rows: int) -> Vocabulary:
    """The vocabulary in ``gguf``; ``n_rows`` is the number of embedding rows, which may exceed it.

    Raises ModelError for another kind of tokenizer, and as ``qwen2.checked_vocabulary``.
    """
    meta, where = gguf.metadata, str(gguf.path)
    if (kind := meta.string("tokenizer.ggml.model")) != "gpt2":
        raise ModelError(f"tokenizer {shown(kind)} is not byte-level BPE ('gpt2')", where=where,
                         remedy="Text could not be encoded reliably with this file")  # fmt: skip
    ids = {key: meta.integer(f"tokenizer.ggml.{key}", default=-1)
           for key in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id")}  # fmt: skip
    return checked_vocabulary(
        meta.strings("tokenizer.ggml.tokens"),
        meta.integers("tokenizer.ggml.token_type").tolist(),
        meta.strings("tokenizer.ggml.merges"),
        pre=meta.string("tokenizer.ggml.pre"),
        add_bos=meta.boolean("tokenizer.ggml.add_bos_token", default=False),
        special={key: None if value == -1 else value for key, value in ids.items()},
        n_rows=n_rows,
        where=where,
    )


def chat_template(gguf: GGUF) -> str | None:
    """The chat template's source text, or None; never rendered here, a template is code."""
    return gguf.metadata.string("tokenizer.chat_template", default="") or None
