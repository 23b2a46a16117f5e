"""What a Hugging Face folder says about a Qwen2 model, read and doubted as ``from_gguf.py`` does for GGUF.

Where files disagree about special tokens, the order is llama.cpp's: tokenizer_config.json (which names tokens), then
config.json (which numbers them). Everything that generation_config.json lists ends a text, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.formats.containers.base import TensorInfo
from assay.formats.containers.cursor import shown
from assay.formats.containers.hf_folder import CONFIG, GENERATION, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, HFFolder
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import Vocabulary
from assay.formats.errors import FormatError, ModelError
from assay.formats.qwen2.description import ARCHITECTURE, Qwen2, checked_vocabulary, demand_heads, demand_plausible
from assay.formats.qwen2.hf_tokenizer import PRE, Reader
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

HF_ARCHITECTURE = "Qwen2ForCausalLM"
KEYS = {"n_layers": "num_hidden_layers", "hidden_size": "hidden_size", "n_heads": "num_attention_heads",
        "ffn_size": "intermediate_size", "context_length": "max_position_embeddings",
        "n_vocab": "vocab_size"}  # fmt: skip
"""Fields of Config -> keys of config.json, all required."""
BYTES_AT_ONCE = 4 << 20


class JsonFile:
    """Typed access to one of the folder's JSON files; ``null`` is the same as absent, as transformers has it."""

    def __init__(self, folder: HFFolder, name: str) -> None:
        self.values: Mapping[str, Any] = folder.metadata.get(name, {})
        self.path, self.name = folder.path, name

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """The value of ``key``. Raises FormatError missing-key (no default given) or bad-value."""
        return self.typed(key, self.values.get(key), kind, default)

    def typed(self, key: str, value: Any, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """``value``, which some object of the file has under ``key``; as :meth:`get`."""
        if value is None and default is not ...:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is None or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            code, detail = ("missing-key", "there is no such key") if value is None else (
                "bad-value", f"{shown(str(value))} is not of type {wanted}")  # fmt: skip
            raise FormatError(code, detail, path=self.path, field=f"{self.name}: {key}",
                              remedy="Fetch the folder again; this value cannot be guessed.")  # fmt: skip
        return value

    def description(self, key: str, warnings: list[str]) -> str | None:
        """Text that only describes the model; None if there is none, or, said in ``warnings``, something else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            warnings.append(f"{key} is not text but {shown(str(value))}: it is ignored")
            return None
        return value


def qwen2_of(folder: HFFolder) -> Qwen2:
    """The Qwen2 model in ``folder``. Raises ModelError and FormatError as the functions below."""
    config_json = JsonFile(folder, CONFIG)
    demand_plain(config_json)
    tensors = by_common_name(folder, "One is a leftover; fetch the folder again")
    warnings: list[str] = []
    config = config_of(config_json, warnings, tied=drop_tied_copy(folder, tensors, config_json))
    embedding = tensors.get("token_embd.weight")
    wanted = (config.n_vocab, config.hidden_size)
    if embedding is None or embedding.shape != wanted:
        raise ModelError(f"the embedding is {list(embedding.shape) if embedding else 'missing'}, but config.json "
                         f"says {list(wanted)}", where=str(folder.path),
                         remedy="Files of two models are mixed; fetch the folder again")  # fmt: skip
    return Qwen2(
        name=config_json.description("_name_or_path", warnings) or folder.path.resolve().name,
        config=config,
        vocabulary=vocabulary_of(folder, config.n_vocab, warnings),
        chat_template=chat_template(folder, warnings),
        tensors=without_rotation(folder, tensors, config, warnings),
        warnings=tuple(warnings),
    )


def demand_plain(config: JsonFile) -> None:
    """Raise ModelError for a config.json that is not of a plain Qwen2 model."""
    where = f"{config.path}: {config.name}"
    architectures = config.get("architectures", list, [HF_ARCHITECTURE])
    if config.get("model_type", str) != ARCHITECTURE or architectures != [HF_ARCHITECTURE]:
        raise ModelError(f"a model of class {shown(str(architectures))} and type "
                         f"{shown(config.get('model_type', str))} is not {HF_ARCHITECTURE}", where=where,
                         remedy="Assay runs Qwen2, Qwen2.5 and models distilled into them")  # fmt: skip
    if config.values.get("quantization_config"):
        raise refused("its weights are quantised in their own way (quantization_config)", where)
    if (activation := config.get("hidden_act", str, "silu")) not in ("silu", "swish"):  # two names of one function
        raise refused(f"its activation is {shown(activation)}, not silu", where)
    for stated in (config.values, rope_of(config)):
        demand_neutral(stated, where)


def rope_of(config: JsonFile) -> Mapping[str, Any]:
    """``rope_scaling``, which newer files call ``rope_parameters`` and in which they put ``rope_theta``, too.

    Where those are given for each kind of layer, they are those of full attention: there is no other kind.
    """
    rope = {**config.get("rope_scaling", dict, {}), **config.get("rope_parameters", dict, {})}
    inner = rope.get("full_attention")
    return inner if isinstance(inner, dict) else rope


def config_of(config: JsonFile, warnings: list[str], *, tied: bool) -> Config:
    """Hyper-parameters; ``warnings`` collects what has no effect and is ignored.

    Raises FormatError for a key that is missing, ModelError for a value that is implausible, or changes the model.
    """
    where = f"{config.path}: {config.name}"

    def integer(key: str, field: str, default: Any = ...) -> int:
        value = config.get(key, (int, list) if field in PER_LAYER else int, default)
        if isinstance(value, list):
            if not all(type(item) is int for item in value):
                raise FormatError("bad-value", f"{shown(str(value))} is not a list of int", path=config.path,
                                  field=f"{config.name}: {key}")  # fmt: skip
            value = int(uniform(value, integer("num_hidden_layers", "n_layers"), key, where))
        demand_plausible(field, value, key, where)
        return value

    def floating(key: str, value: float) -> float:
        value = max(-1e38, min(value, 1e38))
        value = float(np.float32(value))  # what GGUF holds; transformers' double differs in the 8th digit
        demand_plausible(key, value, key, where)
        return value

    required = {field: integer(key, field) for field, key in KEYS.items()}
    n_heads = required["n_heads"]
    inner = config.typed("rope_theta", rope_of(config).get("rope_theta"), (int, float), None)
    theta = config.get("rope_theta", (int, float), ... if inner is None else inner)
    if inner is not None and floating("rope_theta", inner) != floating("rope_theta", theta):
        raise ModelError(f"rope_theta is {theta:g} by itself, but {inner:g} beside the rope scaling", where=where,
                         remedy="Readers differ in which they take; correct config.json")  # fmt: skip
    read = Config(
        **required,
        n_kv_heads=integer("num_key_value_heads", "n_kv_heads", n_heads),
        head_dim=integer("head_dim", "head_dim", required["hidden_size"] // n_heads),
        rope_theta=floating("rope_theta", theta),
        rms_norm_eps=floating("rms_norm_eps", config.get("rms_norm_eps", (int, float))),
        tied=tied,
    )
    demand_heads(read, where, head_dim_stated=config.values.get("head_dim") is not None)
    demand_plain_rotation(rope_of(config), read.context_length, where, warnings)
    demand_full_attention(*windows_of(config, read.n_layers), read.context_length, where, warnings)
    return read


def windows_of(config: JsonFile, n_layers: int) -> tuple[int | None, list[bool]]:
    """The sliding window in positions, or None, and of each layer whether it slides; defaults are transformers'."""
    kinds = config.get("layer_types", list, None)
    used = config.get("use_sliding_window", bool, False) or kinds is not None
    window = config.get("sliding_window", int, 4096 if "sliding_window" not in config.values else None)
    first = config.get("max_window_layers", int, 28)
    sliding = sliding_layers(kinds, first, n_layers, f"{config.path}: {config.name}")
    return window if used else None, sliding


def drop_tied_copy(folder: HFFolder, tensors: dict[str, TensorInfo], config: JsonFile) -> bool:
    """Whether the output matrix is the embedding, as config.json says it; a copy of it is left out of ``tensors``.

    Raises ModelError if a tied model has an output matrix that is not a copy: transformers would ignore it, silently.
    """
    tied = config.get("tie_word_embeddings", bool, False)
    embedding, output = tensors.get("token_embd.weight"), tensors.get("output.weight")
    if tied and embedding is not None and output is not None:
        alike = (embedding.type.name, embedding.shape) == (output.type.name, output.shape)
        if not (alike and same_bytes(folder, embedding, output)):
            raise ModelError("tie_word_embeddings is true, but lm_head.weight is not the embedding",
                             where=str(folder.path), remedy="One of them is wrong; fetch the folder again")  # fmt: skip
        del tensors["output.weight"]
    return tied


def same_bytes(folder: HFFolder, a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors of one size hold the same bytes."""
    first, second = folder.raw(a.name), folder.raw(b.name)
    same = all(np.array_equal(first[at : at + BYTES_AT_ONCE], second[at : at + BYTES_AT_ONCE])
               for at in range(0, a.nbytes, BYTES_AT_ONCE))  # fmt: skip
    folder.release()
    return same


def vocabulary_of(folder: HFFolder, n_rows: int, warnings: list[str]) -> Vocabulary:
    """The vocabulary, [n_rows] tokens. Raises ModelError and FormatError."""
    if TOKENIZER not in folder.metadata:
        raise ModelError(f"there is no {TOKENIZER}", where=str(folder.path),
                         remedy="Fetch the tokenizer's files of the model, too")  # fmt: skip
    reader = Reader(folder.metadata[TOKENIZER], folder.path / TOKENIZER, warnings)
    tokens, kinds, merges = reader.vocabulary(n_rows)
    return checked_vocabulary(tokens, kinds, merges, pre=PRE, n_rows=n_rows, where=str(folder.path),
                              special=special_ids(folder, {token: i for i, token in enumerate(tokens)}),
                              add_bos=JsonFile(folder, TOKENIZER_CONFIG).get("add_bos_token", bool, False))  # fmt: skip


def special_ids(folder: HFFolder, ids: Mapping[str, int]) -> dict[str, int | None]:
    """Ids by the keys that ``checked_vocabulary`` wants; whatever is not a bos ends a text."""
    config, generation = JsonFile(folder, CONFIG), JsonFile(folder, GENERATION)
    special = {f"{role}_token_id": special_id(folder, role, ids) for role in ("bos", "eos")}
    for file in (generation, config):
        for i, end in enumerate(as_list(file.get("eos_token_id", (int, list), []))):
            if type(end) is not int:
                raise FormatError("bad-value", f"{shown(str(end))} is not a token id", path=folder.path,
                                  field=f"{file.name}: eos_token_id")  # fmt: skip
            special[f"{file.name}: eos_token_id[{i}]"] = end
    return special


def special_id(folder: HFFolder, role: str, ids: Mapping[str, int]) -> int | None:
    """The id of the bos, eos or pad token, or None."""
    value = JsonFile(folder, TOKENIZER_CONFIG).get(f"{role}_token", (str, dict), None)
    token = value.get("content") if isinstance(value, dict) else value
    if isinstance(token, str) and token in ids:
        return ids[token]
    for name in (CONFIG, GENERATION):
        numbers = as_list(JsonFile(folder, name).get(f"{role}_token_id", (int, list), []))
        if numbers and type(numbers[0]) is int:
            return numbers[0]
    return None


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def chat_template(folder: HFFolder, warnings: list[str]) -> str | None:
    """The chat template's source text, or None; of several in tokenizer_config.json the one called "default"."""
    if TEMPLATE in folder.metadata:
        return folder.metadata[TEMPLATE] or None
    value = JsonFile(folder, TOKENIZER_CONFIG).get("chat_template", (str, list), None)
    if isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
        others = sorted(name for name in named if name != "default")
        warnings.append(f"of the chat templates only the default one is used, not {shown(', '.join(others))}")
        value = named.get("default")
        if value is not None and not isinstance(value, str):
            raise FormatError("bad-value", "the default template is not text", path=folder.path,
                              field=f"{TOKENIZER_CONFIG}: chat_template")  # fmt: skip
    return value or None
