"""The oracle: Qwen2 in plain NumPy, written to be read. Start with ``reference/README.md``.

    from assay import reference
    model = reference.load("model.gguf", arith="f64")
    print(reference.generate(model, "def fib(n):", max_tokens=16).text)
"""

from __future__ import annotations

import time
from pathlib import Path

from assay.formats import ModelFile, open_model
from assay.formats.contract.arguments import checked
from assay.reference.arithmetic import ARITHMETICS
from assay.reference.generate import generate, stream_generate
from assay.reference.model import Model

__all__ = ["ARITHMETICS", "Model", "generate", "load", "stream_generate"]


@checked
def load(model: str | Path | ModelFile, *, arith: str = "f32", cache_weights: bool = False,
         nfc: bool = True) -> Model:  # fmt: skip
    """The oracle for a model file (or a path to one), in the arithmetic called ``arith``.

    ``cache_weights`` keeps decoded matrices in memory, four bytes a weight; ``nfc`` = False leaves text
    unnormalised, as llama.cpp does. Raises FormatError and ModelError as ``open_model``, InputError for an
    unknown arithmetic.
    """
    started = time.perf_counter()
    file = model if isinstance(model, ModelFile) else open_model(model)
    engine = Model(file, arith=arith, cache_weights=cache_weights, nfc=nfc)
    engine.open_s = time.perf_counter() - started
    return engine
