"""Bytes to arrays: model containers, block formats, and what a Qwen2 model file promises.

    from assay.formats import open_model
    model = open_model("model.gguf")        # GGUF; one way in, whatever the container
    model.config, model.vocabulary, model.chat_template
    model.tensors["blk.0.attn_q.weight"].rows(0, 16)     # f32, decoded on demand
"""

from assay.formats.errors import (
    AssayError,
    FormatError,
    InputError,
    ModelError,
    NumericError,
    SampleError,
    SourceError,
    TemplateError,
)
from assay.formats.model_file import ModelFile, Tensor, open_model

__all__ = [
    "AssayError",
    "FormatError",
    "InputError",
    "ModelError",
    "ModelFile",
    "NumericError",
    "SampleError",
    "SourceError",
    "TemplateError",
    "Tensor",
    "open_model",
]
