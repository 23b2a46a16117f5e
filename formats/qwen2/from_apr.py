"""What an APR file says about a Qwen2 model, read and doubted as ``formats/qwen2/from_gguf.py`` does for GGUF.

Tensors have Hugging Face's names, or GGUF's in some files; both are understood. Shapes and bytes are the same in
either container, so nothing is transposed here. What the format leaves open is concluded from what cannot be
otherwise, and said in a warning: which tokens are special, and that the output matrix is the embedding's copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.formats.containers.apr import Apr
from assay.formats.containers.base import TensorInfo
from assay.formats.containers.cursor import shown, shown_number
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary
from assay.formats.errors import ModelError
from assay.formats.qwen2.description import ARCHITECTURE, Qwen2, checked_vocabulary, demand_heads, demand_plausible
from assay.formats.qwen2.no_effect import (
    PER_LAYER,
    demand_full_attention,
    demand_neutral,
    demand_plain_rotation,
    refused,
    sliding_layers,
    uniform,
    without_rotation,
)
from assay.formats.qwen2.tensor_names import by_common_name

KEYS = {"n_layers": "num_layers", "hidden_size": "hidden_size", "n_heads": "num_heads", "ffn_size": "intermediate_size",
        "context_length": "max_position_embeddings"}  # fmt: skip
"""Fields of Config -> keys of the file, all required."""
NEOX = 2
"""Rotation of split halves, which is Qwen2's; 0 would be adjacent pairs."""
BYTES_AT_ONCE = 4 << 20


def qwen2_of(apr: Apr) -> Qwen2:
    """The Qwen2 model in ``apr``.

    Raises ModelError and FormatError as :func:`config_of` and :func:`vocabulary_of`, and if two tensors have names
    of the same meaning.
    """
    tensors = by_common_name(apr, "One of them is a leftover; convert again")
    demand_whole(apr)
    warnings: list[str] = []
    if tied_by_copy(apr, tensors, warnings):
        del tensors["output.weight"]
    config = config_of(apr, tensors, warnings)
    check_tensor_shapes(apr)
    return Qwen2(
        name=apr.metadata.description("name", warnings) or apr.path.stem,
        config=config,
        vocabulary=vocabulary_of(apr, config.n_vocab, warnings),
        chat_template=apr.metadata.string("tokenizer.chat_template", default="") or None,
        tensors=without_rotation(apr, tensors, config, warnings),
        warnings=tuple(warnings),
    )


def demand_whole(apr: Apr) -> None:
    """Raise ModelError for a file that is not a plain, whole Qwen2 model."""
    meta, where = apr.metadata, str(apr.path)
    architecture = architecture_of(apr)
    if architecture.lower() not in (ARCHITECTURE, "qwen2forcausallm"):
        raise ModelError(f"architecture {shown(architecture)} is not {ARCHITECTURE!r}", where=where,
                         remedy="Assay runs Qwen2, Qwen2.5 and models distilled into them")  # fmt: skip
    sharding = meta.table("sharding", default={})
    rules = {
        "the file is one shard of a split model": sharding.get("shard_count") not in (None, 0, 1),
        "its rotation is of adjacent pairs (rope_type 0), but Qwen2's is of split halves (2)":
            meta.integer("rope_type", default=NEOX) != NEOX,
    }  # fmt: skip
    for complaint, broken in rules.items():
        if broken:
            raise refused(complaint, where)
    demand_neutral(meta, where)


def architecture_of(apr: Apr) -> str:
    """``architecture``; where there is none, what Hugging Face's config.json said."""
    for key in ("architecture", "hf_model_type"):
        if apr.metadata.names_of(key):
            return apr.metadata.string(key)
    return apr.metadata.string("hf_architecture", default="") or apr.metadata.string("architecture")


def config_of(apr: Apr, tensors: Mapping[str, TensorInfo], warnings: list[str]) -> Config:
    """Hyper-parameters of the Qwen2 model in ``apr``, whose tensors are ``tensors`` by our names.

    Raises FormatError for a key that is missing, or has several values; ModelError for one that is implausible, or
    that changes the model; ``warnings`` collects what has no effect and is ignored.
    """
    meta, where = apr.metadata, str(apr.path)

    def integer(key: str, field: str, default: int | None = None) -> int:
        if field in PER_LAYER and any(isinstance(meta[name], list) for name in meta.names_of(key)):
            value = int(uniform(meta.integers(key), integer("num_layers", "n_layers"), key, where))
        else:
            value = meta.integer(key, **({} if default is None else {"default": default}))
        demand_plausible(field, value, key, where)
        return value

    def floating(key: str) -> float:
        value = max(-1e38, min(meta.floating(key), 1e38))
        value = float(np.float32(value))  # what every writer of these files holds, and GGUF too
        demand_plausible(key, value, key, where)
        return value

    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("there is no token_embd.weight matrix (model.embed_tokens.weight)", where=where,
                         remedy="The conversion lost it; convert again from the original")  # fmt: skip
    required = {field: integer(key, field) for field, key in KEYS.items()}
    n_heads = required["n_heads"]
    config = Config(
        **required,
        n_kv_heads=integer("num_kv_heads", "n_kv_heads", default=n_heads),
        head_dim=integer("head_dim", "head_dim", default=required["hidden_size"] // n_heads),
        n_vocab=integer("vocab_size", "n_vocab", default=embedding.shape[0]),
        rope_theta=floating("rope_theta"),
        rms_norm_eps=floating("rms_norm_eps"),
        tied="output.weight" not in tensors,
    )
    demand_heads(config, where, head_dim_stated=bool(meta.names_of("head_dim")))
    demand_plain_rotation(meta.table("rope_scaling", default={}), config.context_length, where, warnings)
    if meta.boolean("use_sliding_window", default=False):
        sliding = sliding_layers(None, meta.integer("max_window_layers", default=0), config.n_layers, where)
        window = meta.integer("sliding_window", default=None)
        demand_full_attention(window, sliding, config.context_length, where, warnings)
    return config


def check_tensor_shapes(apr: Apr) -> None:
    """Raise FormatError if ``tensor_shapes``, a second copy of the shapes, says otherwise than the index."""
    shapes = apr.metadata.table("tensor_shapes", default={})
    for name, shape in shapes.items():
        info = apr.tensors.get(name)
        if info is not None and shape != list(info.shape):
            reverse = ", the same in reverse" if shape == list(info.shape)[::-1] else ""
            raise apr.metadata.fail("tensor_shapes", f"it says {shown(str(shape))} of {shown(name)}, the index "
                                    f"{list(info.shape)}{reverse}")  # fmt: skip


def tied_by_copy(apr: Apr, tensors: Mapping[str, TensorInfo], warnings: list[str]) -> bool:
    """Whether the output matrix is only a copy of the embedding, as an import writes it for a model that has none.

    Asked only where the file claims it (``tied_embeddings``); then both are read whole and compared.
    """
    if not apr.metadata.boolean("tied_embeddings", default=False):
        return False
    embedding, output = tensors.get("token_embd.weight"), tensors.get("output.weight")
    if embedding is None or output is None:
        return False
    alike = (embedding.type.name, embedding.shape) == (output.type.name, output.shape)
    if not (alike and same_bytes(apr, embedding, output)):
        warnings.append("tied_embeddings is true, but the output matrix is not the embedding: it is used as it is")
        return False
    return True


def same_bytes(apr: Apr, a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors of one size hold the same bytes."""
    first, second = apr.raw(a.name), apr.raw(b.name)
    same = all(np.array_equal(first[at : at + BYTES_AT_ONCE], second[at : at + BYTES_AT_ONCE])
               for at in range(0, a.nbytes, BYTES_AT_ONCE))  # fmt: skip
    apr.release()
    return same


def vocabulary_of(apr: Apr, n_rows: int, warnings: list[str]) -> Vocabulary:
    """The vocabulary in ``apr``; ``n_rows`` is the number of embedding rows, which may exceed it.

    Raises ModelError for a file without one, or without merges (no text could be encoded), for another kind of
    tokenizer, and as ``qwen2.checked_vocabulary``.
    """
    meta, where = apr.metadata, str(apr.path)
    remedy = "Convert the original again, with its tokenizer"
    for key, what in (("tokenizer.vocabulary", "vocabulary"), ("tokenizer.merges", "merges")):
        if not meta.strings(key, default=[]):
            raise ModelError(f"the file has no tokenizer {what} ({key})", where=where, remedy=remedy)
    if (kind := meta.string("tokenizer.model", default="gpt2")).lower() not in ("gpt2", "bpe"):
        raise ModelError(f"tokenizer {shown(kind)} is not byte-level BPE ('gpt2')", where=where, remedy=remedy)
    tokens, merges = meta.strings("tokenizer.vocabulary"), meta.strings("tokenizer.merges")
    if meta.integer("tokenizer.vocab_size", default=len(tokens)) != len(tokens):
        stated = shown_number(meta.integer("tokenizer.vocab_size"))
        raise ModelError(f"tokenizer.vocab_size is {stated}, but there are {len(tokens)} tokens", where=where,
                         remedy=remedy)  # fmt: skip
    pre = meta.string("tokenizer.pre_type", default="")
    if not pre:
        warnings.append("the file does not name its pre-tokeniser; it is taken to be Qwen2's own")
    kinds = meta.integers("tokenizer.token_type", default=None)
    if kinds is None:
        kinds = concluded_kinds(tokens, merges)
        warnings.append("the file does not say which tokens are special; that was concluded from the merges")
    special: dict[str, Any] = {
        key: meta.integer(f"tokenizer.{key}", default=None) for key in ("bos_token_id", "eos_token_id")
    }
    return checked_vocabulary(tokens, kinds, merges, pre=pre or ARCHITECTURE, special=special, n_rows=n_rows,
                              where=where, add_bos=meta.boolean("tokenizer.add_bos_token", default=False))  # fmt: skip


def concluded_kinds(tokens: Sequence[str], merges: Sequence[str]) -> list[int]:
    """The kind of each token where the file does not state it.

    A token that is neither a single byte nor what a merge makes cannot come from text: it was added. Of those, the
    ``<|...|>`` ones are control tokens, as llama.cpp's converter has it, ``[PAD...]`` ones fill up rows, and the
    others (``<tool_call>``) are read in text. (Upstream knows only the first spelling, and splits the others: #3726.)
    """
    made = {merge.replace(" ", "", 1) for merge in merges}

    def kind_of(token: str) -> int:
        if len(token) == 1 or token in made:
            return NORMAL
        if re.fullmatch(r"\[PAD[0-9]+\]", token):
            return UNUSED
        return CONTROL if re.fullmatch(r"<\|.*\|>", token, re.DOTALL) else USER_DEFINED

    return [kind_of(token) for token in tokens]

