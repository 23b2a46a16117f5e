"""What a GGUF file says about a Qwen2 model: hyper-parameters, vocabulary and template, read and doubted.

A container can be well-formed and still lie. Each value is taken with its type, held against the range that
any real model keeps to, and against the tensors. What is required is never defaulted: a missing
``rope.freq_base`` read as 10000 gives a model that is right for ten tokens and drifts from there.
"""

from __future__ import annotations

import math

from formats.anatomy import Config
from formats.errors import ModelError
from formats.gguf import GGUF
from formats.qwen2 import ARCHITECTURE, Qwen2
from formats.vocabulary import CONTROL, Vocabulary

END_SPELLINGS = ("<|endoftext|>", "<|im_end|>")
"""Control tokens that end a Qwen2 turn or text; base and chat files each name only one of them as eos."""


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
        raise ModelError(f"architecture {architecture!r} is not {ARCHITECTURE!r}", where=where,
                         remedy="Assay runs Qwen2, Qwen2.5 and models distilled into them")  # fmt: skip
    if meta.integer("split.count", default=1) > 1:
        raise ModelError("the file is one shard of a split model", where=where,
                         remedy="Merge the shards first (llama-gguf-split --merge)")  # fmt: skip

    hidden_size = _integer(gguf, "embedding_length", 1, 1 << 16)
    n_heads = _integer(gguf, "attention.head_count", 1, 1 << 10)
    n_kv_heads = _integer(gguf, "attention.head_count_kv", 1, 1 << 10, default=n_heads)
    head_dim = _integer(gguf, "attention.key_length", 1, 1 << 10, default=hidden_size // n_heads)
    rules = {
        f"{n_kv_heads} key/value heads do not divide {n_heads} heads": n_heads % n_kv_heads,
        f"{n_heads} heads do not divide hidden size {hidden_size}":
            "qwen2.attention.key_length" not in meta and hidden_size % n_heads,
        f"head_dim {head_dim} is odd, so it has no rotation pairs": head_dim % 2,
        "key and value heads differ in width":
            _integer(gguf, "attention.value_length", 1, 1 << 10, default=head_dim) != head_dim,
        "only part of each head is rotated":
            _integer(gguf, "rope.dimension_count", 1, 1 << 10, default=head_dim) != head_dim,
        "rope scaling is set": _rope_scaling(gguf) != "none",
    }  # fmt: skip
    for complaint, broken in rules.items():
        if broken:
            raise ModelError(complaint, where=where, remedy="Assay does not run such a model")

    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("there is no token_embd.weight matrix", where=where,
                         remedy="The conversion lost it; convert again from the original")  # fmt: skip
    return Config(
        n_layers=_integer(gguf, "block_count", 1, 1 << 10),
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_size=_integer(gguf, "feed_forward_length", 1, 1 << 20),
        n_vocab=_integer(gguf, "vocab_size", 1, 1 << 24, default=embedding.shape[0]),
        context_length=_integer(gguf, "context_length", 1, 1 << 24),
        rope_theta=_floating(gguf, "rope.freq_base", 1.0, 1e12),
        rms_norm_eps=_floating(gguf, "attention.layer_norm_rms_epsilon", 1e-12, 1e-2),
        tied="output.weight" not in gguf.tensors,
    )


def _rope_scaling(gguf: GGUF) -> str:
    """Kind of rope scaling; a factor without a kind is linear scaling, as llama.cpp reads it."""
    keys = (f"{ARCHITECTURE}.rope.scaling.factor", f"{ARCHITECTURE}.rope.scale_linear")
    factors = [gguf.metadata.floating(key, default=1.0) for key in keys]
    scaled = any(factor not in (0.0, 1.0) for factor in factors)
    return gguf.metadata.string(f"{ARCHITECTURE}.rope.scaling.type", default="linear" if scaled else "none")


def _integer(gguf: GGUF, key: str, low: int, high: int, default: int | None = None) -> int:
    key = f"{ARCHITECTURE}.{key}"
    optional = {} if default is None else {"default": default}
    value = gguf.metadata.integer(key, **optional)
    if not low <= value <= high:
        raise ModelError(f"{key} = {value} is outside {low}..{high}", where=str(gguf.path),
                         remedy="No Qwen2 model has such a value; the file is damaged")  # fmt: skip
    return value


def _floating(gguf: GGUF, key: str, low: float, high: float) -> float:
    key = f"{ARCHITECTURE}.{key}"
    value = gguf.metadata.floating(key)
    if not (math.isfinite(value) and low <= value <= high):
        raise ModelError(f"{key} = {value:g} is outside {low:g}..{high:g}", where=str(gguf.path),
                         remedy="No Qwen2 model has such a value; the file is damaged")  # fmt: skip
    return value


def vocabulary_of(gguf: GGUF, *, n_rows: int) -> Vocabulary:
    """The vocabulary in ``gguf``; ``n_rows`` is the number of embedding rows, which may exceed it.

    Raises ModelError for another kind of tokenizer, for lengths that do not fit one another, for duplicate
    tokens and for special ids outside the vocabulary.
    """
    meta, where = gguf.metadata, str(gguf.path)

    def refuse(complaint: str) -> ModelError:
        return ModelError(complaint, where=where, remedy="Text could not be encoded reliably with this file")

    if (kind := meta.string("tokenizer.ggml.model")) != "gpt2":
        raise refuse(f"tokenizer {kind!r} is not byte-level BPE ('gpt2')")
    tokens = meta.strings("tokenizer.ggml.tokens")
    kinds = meta.integers("tokenizer.ggml.token_type").tolist()
    merges = meta.strings("tokenizer.ggml.merges")
    if not 0 < len(tokens) <= n_rows:
        raise refuse(f"{len(tokens)} tokens do not fit the {n_rows} embedding rows")
    if len(kinds) != len(tokens):
        raise refuse(f"{len(kinds)} token types for {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise refuse(f"{len(tokens) - len(ids)} tokens occur twice")
    if bad := [m for m in merges if m.count(" ") != 1 or m[0] == " " or m[-1] == " "]:
        raise refuse(f"merge {bad[0]!r} is not a pair of tokens")

    def special(key: str) -> int | None:
        value = meta.integer(f"tokenizer.ggml.{key}", default=-1)
        if value != -1 and not 0 <= value < len(tokens):
            raise refuse(f"{key} {value} is outside the vocabulary of {len(tokens)}")
        return None if value == -1 else value

    ends = {special("eos_token_id"), special("eot_token_id"), special("eom_token_id")}
    ends |= {ids[s] for s in END_SPELLINGS if s in ids and kinds[ids[s]] == CONTROL}
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=merges,
        pre=meta.string("tokenizer.ggml.pre"),
        bos_id=special("bos_token_id"),
        eos_id=special("eos_token_id"),
        add_bos=meta.boolean("tokenizer.ggml.add_bos_token", default=False),
        end_ids=frozenset(i for i in ends if i is not None),
    )


def chat_template(gguf: GGUF) -> str | None:
    """The chat template's source text, or None; never rendered here, a template is code."""
    return gguf.metadata.string("tokenizer.chat_template", default="") or None
