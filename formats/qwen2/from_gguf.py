"""What a GGUF file says about a Qwen2 model: hyper-parameters, vocabulary and template, read and doubted.

A container can be well-formed and still lie. Each value is taken with its type, held against the range that
any real model keeps to, and against the tensors. What is required is never defaulted: a missing
``rope.freq_base`` read as 10000 gives a model that is right for ten tokens and drifts from there.
"""

from __future__ import annotations

from assay.formats.containers.cursor import shown
from assay.formats.containers.gguf import GGUF
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import Vocabulary
from assay.formats.errors import ModelError
from assay.formats.qwen2.description import ARCHITECTURE, Qwen2, checked_vocabulary, demand_heads, demand_plausible


def qwen2_of(gguf: GGUF) -> Qwen2:
    """The Qwen2 model in ``gguf``. Raises ModelError and FormatError as :func:`config_of` and :func:`vocabulary_of`."""
    config = config_of(gguf)
    return Qwen2(
        name=gguf.metadata.string("general.name", default=gguf.path.stem),
        config=config,
        vocabulary=vocabulary_of(gguf, n_rows=config.n_vocab),
        chat_template=chat_template(gguf),
        tensors=gguf.tensors,
    )


def config_of(gguf: GGUF) -> Config:
    """Hyper-parameters of the Qwen2 model in ``gguf``.

    Raises ModelError for another architecture, for a value outside the plausible range, for rope scaling
    (which changes every position, so ignoring it would be wrong) and for a file that is one shard of several.
    """
    meta, where = gguf.metadata, str(gguf.path)
    architecture = meta.string("general.architecture")
    if architecture != ARCHITECTURE:
        raise ModelError(f"architecture {shown(architecture)} is not {ARCHITECTURE!r}", where=where,
                         remedy="Assay runs Qwen2, Qwen2.5 and models distilled into them")  # fmt: skip
    if meta.integer("split.count", default=1) > 1:
        raise ModelError("the file is one shard of a split model", where=where,
                         remedy="Merge the shards first (llama-gguf-split --merge)")  # fmt: skip

    hidden_size = _integer(gguf, "embedding_length", "hidden_size")
    n_heads = _integer(gguf, "attention.head_count", "n_heads")
    head_dim = _integer(gguf, "attention.key_length", "head_dim", default=hidden_size // n_heads)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("there is no token_embd.weight matrix", where=where,
                         remedy="The conversion lost it; convert again from the original")  # fmt: skip
    config = Config(
        n_layers=_integer(gguf, "block_count", "n_layers"),
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=_integer(gguf, "attention.head_count_kv", "n_kv_heads", default=n_heads),
        head_dim=head_dim,
        ffn_size=_integer(gguf, "feed_forward_length", "ffn_size"),
        n_vocab=_integer(gguf, "vocab_size", "n_vocab", default=embedding.shape[0]),
        context_length=_integer(gguf, "context_length", "context_length"),
        rope_theta=_floating(gguf, "rope.freq_base", "rope_theta"),
        rms_norm_eps=_floating(gguf, "attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        tied="output.weight" not in gguf.tensors,
    )
    demand_heads(config, where, head_dim_stated="qwen2.attention.key_length" in meta)
    rules = {
        "key and value heads differ in width":
            _integer(gguf, "attention.value_length", "head_dim", default=head_dim) != head_dim,
        "only part of each head is rotated":
            _integer(gguf, "rope.dimension_count", "head_dim", default=head_dim) != head_dim,
        "rope scaling is set": _rope_scaling(gguf) != "none",
    }  # fmt: skip
    for complaint, broken in rules.items():
        if broken:
            raise ModelError(complaint, where=where, remedy="Assay does not run such a model")
    return config


def _rope_scaling(gguf: GGUF) -> str:
    """Kind of rope scaling; a factor without a kind is linear scaling, as llama.cpp reads it."""
    keys = (f"{ARCHITECTURE}.rope.scaling.factor", f"{ARCHITECTURE}.rope.scale_linear")
    factors = [gguf.metadata.floating(key, default=1.0) for key in keys]
    scaled = any(factor not in (0.0, 1.0) for factor in factors)
    return gguf.metadata.string(f"{ARCHITECTURE}.rope.scaling.type", default="linear" if scaled else "none")


def _integer(gguf: GGUF, key: str, field: str, default: int | None = None) -> int:
    key = f"{ARCHITECTURE}.{key}"
    optional = {} if default is None else {"default": default}
    value = gguf.metadata.integer(key, **optional)
    demand_plausible(field, value, key, str(gguf.path))
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
