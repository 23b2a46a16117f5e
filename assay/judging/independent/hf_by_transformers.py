"""A folder's config.json as transformers reads it, with its own defaults; where it is installed."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from assay.judging.independent.reading import Reading, f32


def installed() -> bool:
    """Whether there is one to ask."""
    return find_spec("transformers") is not None


def read(folder: Path) -> Reading:
    """The hyper-parameters; no code of the folder is run. Importing transformers takes two seconds."""
    from transformers import AutoConfig  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    heads = config.num_attention_heads
    return Reading(f"transformers {version('transformers')}", {
        "n_layers": config.num_hidden_layers, "hidden_size": config.hidden_size, "n_heads": heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "ffn_size": config.intermediate_size, "n_vocab": config.vocab_size,
        "context_length": config.max_position_embeddings, "rope_theta": f32(config.rope_parameters["rope_theta"]),
        "rms_norm_eps": f32(config.rms_norm_eps), "tied": config.tie_word_embeddings,
    }, {})  # fmt: skip
