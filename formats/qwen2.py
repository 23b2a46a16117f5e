"""What a container says about the Qwen2 model in it, in the terms of this project and no longer in its own.

Each format has a module that reads this record out of its metadata (``formats/gguf_qwen2.py``, ...). What they share is
here: the doubts that apply to any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from formats.anatomy import Config
from formats.container import TensorInfo
from formats.vocabulary import Vocabulary

ARCHITECTURE = "qwen2"


@dataclass(frozen=True)
class Qwen2:
    """A Qwen2 model as its file states it, its tensors not yet held against the config."""

    name: str
    config: Config
    vocabulary: Vocabulary
    chat_template: str | None
    tensors: Mapping[str, TensorInfo]
    """By the names of ``formats.anatomy.tensor_shapes``; a tensor that has none there keeps the file's name."""
