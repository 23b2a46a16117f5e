"""The fast twin: Qwen2 in JAX, jit-compiled, on whatever device JAX finds.

    from assay import accel
    model = accel.load("model.gguf")
    for step in accel.stream_generate(model, "def fib(n):"):
        print(step.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from assay.accel.generate import generate, generate_batch, stream_generate
from assay.accel.model import ARITHMETICS, Model
from assay.formats import ModelFile, open_model
from assay.formats.contract.arguments import checked

__all__ = ["ARITHMETICS", "Model", "generate", "generate_batch", "load", "stream_generate"]


@checked
def load(model: str | Path | ModelFile, *, arith: str = ARITHMETICS[0], cache_type: str | None = None,
         nfc: bool = True, progress: Callable[[int, int], None] | None = None) -> Model:  # fmt: skip
    """The fast engine for a model file (or a path to one); packs its weights onto the device.

    ``cache_type`` is that of keys and values: ``"f32"``, ``"bf16"`` or ``"f16"`` (None: f16 for fast, f32 for f32).
    ``nfc`` = False leaves text unnormalised, as llama.cpp does; ``progress(done, total)`` counts tensors.
    Raises FormatError and ModelError as ``open_model``, InputError for an unknown arithmetic or type.
    """
    started = time.perf_counter()
    file = model if isinstance(model, ModelFile) else open_model(model)
    engine = Model(file, arith=arith, cache_type=cache_type, nfc=nfc, progress=progress)
    engine.open_s = time.perf_counter() - started
    return engine
