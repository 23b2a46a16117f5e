"""Random blocks of any storage type: every byte random and non-zero, every scale finite, extremes included."""

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where each type keeps its f16 numbers, written down here a second time on purpose."""

EXTREMES = np.array([65504, -65504, 6e-8, -6e-8, 6.1e-5, 5.9e-5, 0.0, -0.0, 1.0, -1.0], np.float16)
"""Largest, smallest subnormal, smallest normal, largest subnormal, zeros, ones."""


def random_blocks(type_name: str, n_blocks: int) -> np.ndarray:
    """uint8 [n_blocks, block_bytes], the same on every call."""
    kind = BY_NAME[type_name]
    rng = np.random.default_rng(kind.id)
    raw = rng.integers(1, 256, (n_blocks, kind.block_bytes), dtype=np.uint8)
    for at in HALVES.get(type_name, ()):
        halves = np.exp(rng.uniform(-12, 8, n_blocks)).astype(np.float16) * rng.choice([-1, 1], n_blocks)
        places = rng.permutation(n_blocks)[: len(EXTREMES)]
        halves[places] = EXTREMES[: len(places)]
        raw[:, at : at + 2] = halves.astype(np.float16)[:, None].view(np.uint8)
    if type_name in ("F32", "F16", "BF16"):
        floats = rng.standard_normal((n_blocks, 1)).astype(np.float32)
        floats[: len(EXTREMES), 0] = EXTREMES[:n_blocks]
        if type_name == "BF16":
            raw = floats.view(np.uint8)[:, 2:]
        else:
            raw = floats.astype({"F32": np.float32, "F16": np.float16}[type_name]).view(np.uint8)
    return np.ascontiguousarray(raw)
