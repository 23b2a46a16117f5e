"""Write ``quantized_by_ggml.json``: what ggml's own quantisers make of ``quantizer_inputs.py``.

    python -m tests.formats.quantizers.record_quantized        # wants the xllamacpp wheel, x86-64

For every input: the SHA-256 of its bytes; for every type: that of the quantised bytes; for "bell" and "signed zeros"
also the first block in hexadecimal, to look at when something differs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME
from tests.formats.quantizers.quantizer_inputs import INPUTS
from tests.ggml_library import ggml_quantize

RECORDED = Path(__file__).with_name("quantized_by_ggml.json")
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
SHOWN = ("bell", "signed zeros")


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


if __name__ == "__main__":
    record = {}
    for name, make in INPUTS.items():
        x = make()
        raw = {kind: ggml_quantize(kind, x) for kind in TYPES}
        record[name] = {"values": sha256(x), **{kind: sha256(raw[kind]) for kind in TYPES}}
        if name in SHOWN:
            blocks = {kind: raw[kind].reshape(-1, BY_NAME[kind].block_bytes)[0] for kind in TYPES}
            record[name]["first block"] = {kind: block.tobytes().hex() for kind, block in blocks.items()}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n")
