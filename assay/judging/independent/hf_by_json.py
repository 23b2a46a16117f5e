"""A Hugging Face folder read a second time: its JSON as it stands, its tokens by the ``tokenizers`` library."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from assay.judging.independent.reading import CONTROL, Place, Reading, common_names, end_ids, f32

NORMAL, USER_DEFINED, UNUSED = 1, 4, 5
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"


def read(folder: Path, files: Sequence[Path]) -> Reading:
    """The Qwen2 model in a folder; whatever is raised says that this reader does not understand it."""

    def parsed(name: str) -> dict[str, Any]:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    config, generation, tokenizer = parsed(CONFIG), parsed(GENERATION), parsed(TOKENIZER)
    stored = {name: place for file in files if file.suffix == ".safetensors" for name, place in tensors_in(file)}
    tensors = common_names(stored, config["num_hidden_layers"])
    tied = config.get("tie_word_embeddings") is True
    if tied:
        tensors.pop("output.weight", None)
    facts = hyper_parameters(config) | {"tied": tied}
    tokens, kinds = vocabulary(folder / "tokenizer.json", facts["n_vocab"])
    numbered = {token: i for i, token in enumerate(tokens)}
    ids = {role: special(role, numbered, tokenizer, config, generation) for role in ("bos", "eos")}
    merges = parsed("tokenizer.json")["model"]["merges"]
    template = folder / "chat_template.jinja"
    named = [end for one in (config, generation) for end in as_list(one.get("eos_token_id"))]
    return Reading(f"JSON as it stands, tokenizers {version('tokenizers')}", facts | {
        "tokens": tokens, "kinds": kinds, "bos_id": ids["bos"], "eos_id": ids["eos"],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "add_bos": tokenizer.get("add_bos_token") is True, "end_ids": end_ids([ids["eos"], *named], tokens, kinds),
        "chat_template": (template.read_bytes().decode() if template.exists() else in_config(tokenizer)) or None,
    }, tensors)  # fmt: skip


def hyper_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """config.json in our terms; a list, one number for each layer, is its first."""

    def number(name: str, default: Any = None) -> Any:
        value = config.get(name)
        value = value[0] if isinstance(value, list) else value
        return default if value is None else value

    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope = rope.get("full_attention") or rope
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    return {
        "n_layers": number("num_hidden_layers"), "hidden_size": hidden, "n_heads": heads,
        "n_kv_heads": number("num_key_value_heads", heads), "head_dim": number("head_dim", hidden // heads),
        "ffn_size": number("intermediate_size"), "n_vocab": number("vocab_size"),
        "context_length": number("max_position_embeddings"),
        "rope_theta": f32(number("rope_theta", rope.get("rope_theta"))), "rms_norm_eps": f32(number("rms_norm_eps")),
    }  # fmt: skip


def vocabulary(path: Path, n_rows: int) -> tuple[list[str], list[int]]:
    """(tokens, kinds) [n_rows]; a row that has no token is unused, and named as converters name it."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(path))
    tokens, kinds = [f"[PAD{i}]" for i in range(n_rows)], [UNUSED] * n_rows
    for token, i in library.get_vocab(with_added_tokens=False).items():
        tokens[i], kinds[i] = token, NORMAL
    for i, added in library.get_added_tokens_decoder().items():
        special = added.special or (added.content[:2], added.content[-2:]) == ("<|", "|>")
        tokens[i], kinds[i] = added.content, CONTROL if special else USER_DEFINED
    return tokens, kinds


def special(role: str, ids: dict[str, int], tokenizer: dict[str, Any], *numbered: dict[str, Any]) -> int | None:
    """The bos or eos id: the token that tokenizer_config.json names, else the number in the other files."""
    token = tokenizer.get(f"{role}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token in ids:
        return ids[token]
    stated = (as_list(one.get(f"{role}_token_id"))[:1] for one in numbered)
    return next((first[0] for first in stated if first and type(first[0]) is int), None)


def as_list(value: Any) -> list[Any]:
    """None as nothing, one as a list of it."""
    return [] if value is None else value if isinstance(value, list) else [value]


def in_config(tokenizer: dict[str, Any]) -> str | None:
    """The chat template in tokenizer_config.json; of several the one called "default"."""
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        return next((one["template"] for one in found if one.get("name") == "default"), None)
    return found


def tensors_in(path: Path) -> list[tuple[str, Place]]:
    """The tensors of a safetensors file: u64 length, JSON {name: {dtype, shape, data_offsets}}, data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [(name, Place(one["dtype"], tuple(one["shape"]), str(path), 8 + length + one["data_offsets"][0],
                         one["data_offsets"][1] - one["data_offsets"][0]))
            for name, one in header.items()]  # fmt: skip
