"""What a model is apart from any container, and how GGUF, APR and a Hugging Face folder each say it.

    facts = facts_of(open_container("model.gguf"))       # hyper-parameters, vocabulary, template, name
    gguf_of(facts, ...), apr_of(facts), hf_of(facts, ...)   # the metadata of a file that states just them

The three are what llama.cpp's converter, aprender's import and ``save_pretrained`` write, key by key and in their
order. What a file says beyond that has no counterpart elsewhere; ``formats/conversion/sidecar.py`` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from assay.formats.containers.apr import Apr
from assay.formats.containers.base import Container
from assay.formats.containers.gguf import GGUF
from assay.formats.containers.gguf_metadata import Value, typed
from assay.formats.containers.hf_folder import CONFIG, GENERATION, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, HFFolder
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import CONTROL, USER_DEFINED, Vocabulary
from assay.formats.qwen2.description import ARCHITECTURE, END_SPELLINGS, Qwen2
from assay.formats.qwen2.from_hf import HF_ARCHITECTURE, JsonFile, special_id
from assay.formats.qwen2.hf_tokenizer import PRE, SAME_PATTERN, added_token, padded, tokenizer_json

FORMATS = ("gguf", "apr", "hf")
ABOUT = {"description": "general.description", "author": "general.author", "license": "general.license"}
"""APR's keys -> GGUF's, of text about the model; a folder says such things in its README."""

NAMES: dict[str, tuple[str, str, str]] = {
    "architecture": ("general.architecture", "architecture", f"{CONFIG}: model_type"),
    "name": ("general.name", "name", f"{CONFIG}: _name_or_path"),
    **{apr: (gguf, apr, "") for apr, gguf in ABOUT.items()},
    "n_layers": ("qwen2.block_count", "num_layers", f"{CONFIG}: num_hidden_layers"),
    "context_length": ("qwen2.context_length", "max_position_embeddings", f"{CONFIG}: max_position_embeddings"),
    "hidden_size": ("qwen2.embedding_length", "hidden_size", f"{CONFIG}: hidden_size"),
    "ffn_size": ("qwen2.feed_forward_length", "intermediate_size", f"{CONFIG}: intermediate_size"),
    "n_heads": ("qwen2.attention.head_count", "num_heads", f"{CONFIG}: num_attention_heads"),
    "n_kv_heads": ("qwen2.attention.head_count_kv", "num_kv_heads", f"{CONFIG}: num_key_value_heads"),
    "head_dim": ("qwen2.attention.key_length", "head_dim", f"{CONFIG}: head_dim"),
    "n_vocab": ("qwen2.vocab_size", "vocab_size", f"{CONFIG}: vocab_size"),
    "rope_theta": ("qwen2.rope.freq_base", "rope_theta", f"{CONFIG}: rope_theta"),
    "rms_norm_eps": ("qwen2.attention.layer_norm_rms_epsilon", "rms_norm_eps", f"{CONFIG}: rms_norm_eps"),
    "tied": ("", "tied_embeddings", f"{CONFIG}: tie_word_embeddings"),
    "model": ("tokenizer.ggml.model", "tokenizer.model", f"{TOKENIZER}: model"),
    "pre": ("tokenizer.ggml.pre", "tokenizer.pre_type", f"{TOKENIZER}: pre_tokenizer"),
    "tokens": ("tokenizer.ggml.tokens", "tokenizer.vocabulary", f"{TOKENIZER}: model"),
    "kinds": ("tokenizer.ggml.token_type", "tokenizer.token_type", f"{TOKENIZER}: added_tokens"),
    "merges": ("tokenizer.ggml.merges", "tokenizer.merges", f"{TOKENIZER}: model"),
    "bos_id": ("tokenizer.ggml.bos_token_id", "tokenizer.bos_token_id", f"{CONFIG}: bos_token_id"),
    "eos_id": ("tokenizer.ggml.eos_token_id", "tokenizer.eos_token_id", f"{TOKENIZER_CONFIG}: eos_token"),
    "end_ids": ("tokenizer.ggml.eot_token_id", "", f"{GENERATION}: eos_token_id"),
    "pad_id": ("tokenizer.ggml.padding_token_id", "tokenizer.padding_token_id", f"{TOKENIZER_CONFIG}: pad_token"),
    "add_bos": ("tokenizer.ggml.add_bos_token", "tokenizer.add_bos_token", f"{TOKENIZER_CONFIG}: add_bos_token"),
    "chat_template": ("tokenizer.chat_template", "tokenizer.chat_template", f"{TOKENIZER_CONFIG}: chat_template"),
}  # fmt: skip
"""Every fact, and the key under which each format states it, in the order of ``FORMATS``."""

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12,
              "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32}  # fmt: skip
"""``general.file_type`` by the type of most matrices (for a mix, llama.cpp's "M"); it is only ever displayed."""
HF_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Facts:
    """What a model is, in no format's terms."""

    name: str | None
    """None if the file does not state one."""
    config: Config
    vocabulary: Vocabulary
    chat_template: str | None
    pad_id: int | None
    about: Mapping[str, str]
    """By the keys of ``ABOUT``."""


def facts_of(container: Container, model: Qwen2) -> Facts:
    """The facts that ``container`` states about ``model``, which was read from it."""
    meta: Any = container.metadata
    name, about, pad_id = None, {}, None
    if isinstance(container, GGUF):
        name = meta.description("general.name", [])
        pad_id = meta.integer("tokenizer.ggml.padding_token_id", default=-1)
        about = {ours: meta.description(key, []) for ours, key in ABOUT.items()}
    elif isinstance(container, Apr):
        name = meta.description("name", [])
        pad_id = meta.integer("tokenizer.padding_token_id", default=-1)
        about = {key: meta.description(key, []) for key in ABOUT}
    elif isinstance(container, HFFolder):
        name = JsonFile(container, CONFIG).description("_name_or_path", [])
        pad_id = special_id(container, "pad", {token: i for i, token in enumerate(model.vocabulary.tokens)})
    known = pad_id is not None and 0 <= pad_id < len(model.vocabulary)
    return Facts(name or None, model.config, model.vocabulary, model.chat_template, pad_id if known else None,
                 {key: value for key, value in about.items() if value is not None})  # fmt: skip


def as_stated_in(facts: Facts, target: str) -> Facts:
    """``facts`` as a file of another format states them, where that is not word for word the same.

    A folder names every row of the embedding, knows one name for the pre-tokeniser's pattern, and says nothing about
    the model. ``differences`` takes either form for the same.
    """
    if target != "hf":
        return facts
    tokens, kinds = padded(facts.vocabulary.tokens, facts.vocabulary.kinds, facts.config.n_vocab)
    return replace(facts, about={}, vocabulary=replace(facts.vocabulary, tokens=tokens, kinds=kinds, pre=PRE))


def differences(a: Facts, b: Facts) -> list[str]:
    """The names of the facts that differ between two files of what should be one model; ``about`` is not compared."""
    def comparable(facts: Facts) -> dict[str, Any]:
        facts = as_stated_in(facts, "hf")
        pre = PRE if facts.vocabulary.pre in SAME_PATTERN else facts.vocabulary.pre
        vocabulary = {"tokens": facts.vocabulary.tokens, "kinds": facts.vocabulary.kinds, "pre": pre,
                      "merges": facts.vocabulary.merges, "bos_id": facts.vocabulary.bos_id,
                      "eos_id": facts.vocabulary.eos_id, "add_bos": facts.vocabulary.add_bos,
                      "end_ids": facts.vocabulary.end_ids}  # fmt: skip
        return {**asdict(facts.config), **vocabulary, "chat_template": facts.chat_template, "name": facts.name,
                "pad_id": facts.pad_id}  # fmt: skip

    first, second = comparable(a), comparable(b)
    return [key for key in first if not same(first[key], second[key])]


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(a, list | tuple) and isinstance(b, list | tuple) else a == b


def decimal(value: float) -> float:
    """An f32 as the shortest decimal that rounds to it: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def further_ends(vocabulary: Vocabulary) -> list[int]:
    """Ids that end a text and are neither eos nor known to end one by their spelling."""
    spelled = {i for i in vocabulary.ids_of_kind(CONTROL) if vocabulary.tokens[i] in END_SPELLINGS}
    return sorted(vocabulary.end_ids - spelled - {vocabulary.eos_id})


def gguf_of(facts: Facts, types: list[str]) -> dict[str, Value]:
    """GGUF metadata, as llama.cpp's converter writes it for a model whose matrices are of ``types``."""
    config, vocabulary = facts.config, facts.vocabulary
    usual = max(sorted(set(types)), key=types.count, default="F32")
    values: dict[str, tuple[str, Any]] = {
        "general.architecture": ("string", ARCHITECTURE),
        "general.type": ("string", "model"),
        "general.name": ("string", facts.name),
        **{key: ("string", facts.about.get(ours)) for ours, key in ABOUT.items()},
        "qwen2.block_count": ("uint32", config.n_layers),
        "qwen2.context_length": ("uint32", config.context_length),
        "qwen2.embedding_length": ("uint32", config.hidden_size),
        "qwen2.feed_forward_length": ("uint32", config.ffn_size),
        "qwen2.attention.head_count": ("uint32", config.n_heads),
        "qwen2.attention.head_count_kv": ("uint32", config.n_kv_heads),
        **{f"qwen2.attention.{key}": ("uint32", None if usual_heads(config) else config.head_dim)
           for key in ("key_length", "value_length")},
        "qwen2.rope.freq_base": ("float32", config.rope_theta),
        "qwen2.attention.layer_norm_rms_epsilon": ("float32", config.rms_norm_eps),
        "general.file_type": ("uint32", FILE_TYPES.get(usual)),
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.pre": ("string", vocabulary.pre),
        "tokenizer.ggml.tokens": ("array of string", vocabulary.tokens),
        "tokenizer.ggml.token_type": ("array of int32", vocabulary.kinds),
        "tokenizer.ggml.merges": ("array of string", vocabulary.merges),
        "tokenizer.ggml.eos_token_id": ("uint32", vocabulary.eos_id),
        **{f"tokenizer.ggml.{key}_token_id": ("uint32", end)
           for key, end in zip(("eot", "eom"), further_ends(vocabulary), strict=False)},
        "tokenizer.ggml.padding_token_id": ("uint32", facts.pad_id),
        "tokenizer.ggml.bos_token_id": ("uint32", vocabulary.bos_id),
        "tokenizer.ggml.add_bos_token": ("bool", vocabulary.add_bos),
        "tokenizer.chat_template": ("string", facts.chat_template),
        "general.quantization_version": ("uint32", 2 if any(kind not in HF_DTYPES for kind in types) else None),
    }  # fmt: skip
    return {key: typed(kind, value) for key, (kind, value) in values.items() if value is not None}


def usual_heads(config: Config) -> bool:
    """Whether ``head_dim`` is what follows from the other two numbers, so that no file states it."""
    return config.head_dim * config.n_heads == config.hidden_size


def apr_of(facts: Facts, *, copied_output: bool = False) -> dict[str, Any]:
    """APR metadata, by the keys of aprender's import; ``copied_output``: there is a copy of the embedding."""
    config, vocabulary = facts.config, facts.vocabulary
    values: dict[str, Any] = {
        "model_type": ARCHITECTURE,
        "name": facts.name,
        **{key: facts.about.get(key) for key in ABOUT},
        "architecture": ARCHITECTURE,
        "hf_architecture": HF_ARCHITECTURE,
        "hf_model_type": ARCHITECTURE,
        "hidden_size": config.hidden_size,
        "num_layers": config.n_layers,
        "num_heads": config.n_heads,
        "num_kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.n_vocab,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.context_length,
        "rope_theta": decimal(config.rope_theta),
        "rope_type": 2,  # NEOX: halves are rotated, not neighbours
        "rms_norm_eps": decimal(config.rms_norm_eps),
        "tied_embeddings": True if copied_output else None,
        "tokenizer.model": "gpt2",
        "tokenizer.pre_type": vocabulary.pre,
        "tokenizer.vocabulary": list(vocabulary.tokens),
        "tokenizer.vocab_size": len(vocabulary),
        "tokenizer.token_type": list(vocabulary.kinds),
        "tokenizer.merges": list(vocabulary.merges),
        "tokenizer.bos_token_id": vocabulary.bos_id,
        "tokenizer.eos_token_id": vocabulary.eos_id,
        "tokenizer.padding_token_id": facts.pad_id,
        "tokenizer.add_bos_token": vocabulary.add_bos,
        "tokenizer.chat_template": facts.chat_template,
    }
    return {key: value for key, value in values.items() if value is not None}


def hf_of(facts: Facts, types: list[str], *, merges_as_pairs: bool = True, template_file: bool = False,
          ) -> dict[str, Any]:  # fmt: skip
    """A folder's files by name, as transformers writes them, for a model whose matrices are of ``types``.

    Two things changed over time: whether a merge is a pair or a string, and whether the template has its own file.
    Raises ModelError for a kind of token that tokenizer.json cannot state.
    """
    config, vocabulary = facts.config, facts.vocabulary
    usual = max(sorted(set(types)), key=types.count, default="F32")
    config_json = {
        "_name_or_path": facts.name,
        "architectures": [HF_ARCHITECTURE],
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "head_dim": None if usual_heads(config) else config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.context_length,
        "model_type": ARCHITECTURE,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": decimal(config.rms_norm_eps),
        "rope_theta": decimal(config.rope_theta),
        "tie_word_embeddings": config.tied,
        "torch_dtype": HF_DTYPES.get(usual),
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.n_vocab,
    }
    generation = {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": sorted(vocabulary.end_ids, key=lambda i: (i != vocabulary.eos_id, i)),
        "pad_token_id": facts.pad_id,
    }
    tokenizer = tokenizer_json(vocabulary.tokens, vocabulary.kinds, vocabulary.merges, merges_as_pairs=merges_as_pairs)
    files = {CONFIG: stated(config_json), TOKENIZER: tokenizer, TOKENIZER_CONFIG: stated(tokenizer_config(facts)),
             GENERATION: stated(generation)}  # fmt: skip  in the order in which hf_folder.py reads them
    if template_file and facts.chat_template:
        files[TEMPLATE] = files[TOKENIZER_CONFIG].pop("chat_template")
    return files


def tokenizer_config(facts: Facts) -> dict[str, Any]:
    """tokenizer_config.json of a Qwen2 tokenizer; like Qwen's own it has no bos token unless one is put first."""
    vocabulary = facts.vocabulary

    def named(token_id: int | None) -> str | None:
        return None if token_id is None else vocabulary.tokens[token_id]

    added = {str(i): added_token(i, vocabulary.tokens[i], special=kind == CONTROL)
             for i, kind in enumerate(vocabulary.kinds) if kind in (CONTROL, USER_DEFINED)}  # fmt: skip
    for token in added.values():
        del token["id"]
    return {
        "add_bos_token": vocabulary.add_bos,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": named(vocabulary.bos_id) if vocabulary.add_bos else None,
        "chat_template": facts.chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": named(vocabulary.eos_id),
        "errors": "replace",
        "model_max_length": facts.config.context_length,
        "pad_token": named(facts.pad_id),
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }


def stated(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
