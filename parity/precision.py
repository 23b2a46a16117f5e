"""What an arithmetic declares to round, and that rounding as noise.

The floor is measured: the oracle is run again and again with every activation moved as far as the *declared* rounding
moves it, but at random. Rounding to nearest with step s leaves an error that is, for values that know nothing of the
steps, uniform in ±s/2 (Widrow and Kollár, "Quantization Noise", 2008); that is what is added.

A product also rounds each of its partial sums. Moving its inputs in their last bits makes all of those fall another
way, so every run is one more draw of them too, by the oracle's own f32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from formats.protocol import Tap

Rounding = Callable[[np.ndarray], np.ndarray]
"""The step of each element's rounding, shaped as the activation."""

Key = tuple[str, int | None]
"""A stage and its layer."""


def float_step(bits: int) -> Rounding:
    """Spacing of floats with ``bits`` bits after the leading one: 23 for f32, 10 for f16, 7 for bf16.

    (``np.spacing`` is 0 for small numbers once JAX has the processor flush them.)
    """

    def step(x: np.ndarray) -> np.ndarray:
        return np.ldexp(1.0, np.frexp(x)[1] - 1 - bits)

    return step


def block_step(size: int) -> Rounding:
    """Step of ggml's 8-bit activations: the largest of each ``size`` consecutive elements, over 127."""

    def step(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1)
        padded = np.pad(np.abs(rows), ((0, 0), (0, -rows.shape[1] % size)))
        largest = padded.reshape(len(x), -1, size).max(-1) / 127
        return np.repeat(largest, size, axis=1)[:, : rows.shape[1]].reshape(x.shape)

    return step


class Precision(NamedTuple):
    """An arithmetic's name, and the roundings it declares."""

    name: str
    roundings: Mapping[Key, Rounding]
    """By stage and layer; every other activation is rounded to f32."""

    def noise(self, seed: int) -> Tap:
        """A tap that moves every activation at random as far as this precision may."""
        rng = np.random.default_rng(seed)

        def tap(stage: str, layer: int | None, activation: Any) -> Any:
            x = np.asarray(activation, np.float64)
            step = self.roundings.get((stage, layer), last_bit)(x)
            return (x + step * rng.uniform(-0.5, 0.5, x.shape)).astype(activation.dtype)

        return tap


last_bit = float_step(23)


def precision(fingerprint: Mapping[str, Any], n_at_once: int, blocks: Mapping[Key, int]) -> Precision | None:
    """What the engine of this fingerprint declares to round when it reads ``n_at_once`` tokens at a time.

    ``blocks``: for each activation that is multiplied with a matrix, how many of its elements share a scale where it
    is rounded to 8 bits: 256 before K-quants, 32 before the other quantised types, 0 before floats (never rounded).
    None if the engine does not say how it computes: then there is no floor, and no verdict.
    """
    arith, dense = fingerprint.get("arith"), fingerprint.get("dense", "float32")
    if arith in ("f64", "f32"):
        return Precision(arith, {})
    halves = ("k_rope", "v_bias", "q_rope") if arith == "ggml" else ("k_rope", "v_bias")
    layers = {layer for _, layer in blocks if layer is not None}
    f16_cache: dict[Key, Rounding] = {(stage, layer): float_step(10) for stage in halves for layer in layers}
    if arith == "ggml" or (arith == "fast" and n_at_once <= fingerprint.get("int8_up_to", 0)):
        rounded = {key: block_step(size) for key, size in blocks.items() if size}
        return Precision("8-bit activations, f16 cache", f16_cache | rounded)
    if arith == "fast" and dense == "bfloat16":
        return Precision("bf16 products, f16 cache", f16_cache | dict.fromkeys(blocks, float_step(7)))
    if arith == "fast":
        return Precision("f32 products, f16 cache", f16_cache)
    return None
