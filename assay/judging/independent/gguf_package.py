"""GGUF read by the ``gguf`` package, llama.cpp's own for Python.

It believes what a file says: a count of 2^40 is a loop of 2^40 rounds. So it is never a file's first reader. Ours has
accepted the file, and bounded its counts; and the package is not asked where an array would cost it gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from assay.judging.independent.reading import Place, Reading, Unread, end_ids

MOST_ITEMS = 1 << 20
"""Of all arrays together. The package takes about 1.1 KB and 20 us for each; a Qwen2.5 file has 455,000."""
ROTATION = "rope_freqs.weight"


def read(paths: Sequence[Path], n_items: int) -> Reading:
    """The Qwen2 model in the files of a GGUF, whose arrays have ``n_items`` elements. Raises Unread."""
    if n_items > MOST_ITEMS:
        raise Unread(f"its arrays have {n_items:,} elements; the gguf package is asked for at most {MOST_ITEMS:,}")
    from gguf.gguf_reader import GGUFReader  # here: it takes a tenth of a second to import

    parts = [GGUFReader(path) for path in paths]
    head = next((part for part in parts if "qwen2.block_count" in part.fields), parts[0])
    tensors = {
        one.name: Place(one.tensor_type.name, tuple(int(n) for n in reversed(one.shape)), str(path),
                        int(one.data_offset), int(one.n_bytes))
        for path, part in zip(paths, parts, strict=True) for one in part.tensors if one.name != ROTATION
    }  # fmt: skip
    return Reading(f"gguf {version('gguf')}", facts_of(head, tensors), tensors)


def facts_of(file: Any, tensors: dict[str, Place]) -> dict[str, Any]:
    """What the keys say."""

    def key(name: str, default: Any = None) -> Any:
        field = file.get_field(name)
        return default if field is None else field.contents()

    def number(name: str, default: Any = None) -> Any:
        value = key(f"qwen2.{name}", default)
        return value[0] if isinstance(value, list) else value

    tokens, kinds = key("tokenizer.ggml.tokens"), key("tokenizer.ggml.token_type")
    ids = {role: key(f"tokenizer.ggml.{role}_token_id", -1) for role in ("bos", "eos", "eot", "eom")}
    ids = {role: None if value == -1 else value for role, value in ids.items()}
    heads, hidden = number("attention.head_count"), number("embedding_length")
    return {
        "n_layers": number("block_count"), "hidden_size": hidden, "n_heads": heads,
        "n_kv_heads": number("attention.head_count_kv", heads),
        "head_dim": number("attention.key_length", hidden // heads),
        "ffn_size": number("feed_forward_length"),
        "n_vocab": number("vocab_size", tensors["token_embd.weight"].shape[0]),
        "context_length": number("context_length"), "rope_theta": number("rope.freq_base"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"), "tied": "output.weight" not in tensors,
        "tokens": tokens, "kinds": kinds, "merges": key("tokenizer.ggml.merges"), "pre": key("tokenizer.ggml.pre"),
        "bos_id": ids["bos"], "eos_id": ids["eos"], "add_bos": bool(key("tokenizer.ggml.add_bos_token", False)),
        "end_ids": end_ids([ids["eos"], ids["eot"], ids["eom"]], tokens, kinds),
        "chat_template": key("tokenizer.chat_template") or None,
    }  # fmt: skip
