"""The integer dot products of llama.cpp: quantised weights meet quantised activations.

Every quantised weight type is ``w = (d·scale_g)·q − (dmin·min_g)`` with integers q, scale_g, min_g (group g of a
block) and floats d, dmin (one each a block). If the activations are ``x = dx·qx`` with 8-bit integers too, then

    Σ w·x  =  d·dx · Σ_g scale_g·(Σ q·qx)  −  dmin·dx · Σ_g min_g·(Σ qx)

where everything behind d·dx is an integer, computed exactly. Only the sum over blocks rounds. This is fast on
a CPU with 8-bit multiply-add instructions, and it is *not* the same function as the one in f32: the price is
the rounding of x, some 0.5 % of its largest neighbour. (Here nothing is fast; here it is only exact.)

Source: the ``vec_dot`` functions of ggml-quants.c (ggml-org/ggml); which activation type each weight type
meets is their ``vec_dot_type``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.formats import Tensor, blocks

ACTIVATION_TYPE = {
    **dict.fromkeys(["Q4_0", "Q5_0", "Q8_0", "IQ4_NL"], "Q8_0"),
    **dict.fromkeys(["Q4_1", "Q5_1"], "Q8_1"),
    **dict.fromkeys(["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"], "Q8_K"),
    "F32": "F32", "F16": "F16", "BF16": "BF16",
}  # fmt: skip


class Activations(NamedTuple):
    """Quantised activations: x ≈ d·q for each block; ``min_input`` is what a weight's min multiplies."""

    q: np.ndarray  # [n_tokens, n_blocks, elements] integers, held in f32, which is exact up to 2^24
    d: np.ndarray  # [n_tokens, n_blocks] f32
    group_sums: np.ndarray  # [n_tokens, n_blocks, n_groups] Σ q over 16 (Q8_K) or all 32 elements, f64
    sum_scale: np.ndarray  # [n_tokens, n_blocks] f32: group_sums · sum_scale = Σ x


def round_to_even(x: np.ndarray) -> np.ndarray:
    """Nearest integer, ties to even: what the vector instructions of x86 and ARM do."""
    return np.rint(x)


def quantize_q8_k(x: np.ndarray) -> Activations:
    """Q8_K: blocks of 256; the element of largest magnitude becomes -127, d = -max/127 kept in f32.

    x f32 [n_tokens, in_features]; in_features a multiple of 256.
    """
    x = x.reshape(len(x), -1, 256)
    largest = np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1)  # signed
    inverse = np.divide(np.float32(-127), largest, out=np.zeros_like(largest), where=largest != 0)
    q = np.minimum(127, round_to_even(inverse * x))
    d = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse != 0)[..., 0]
    return Activations(q, d, q.reshape(*q.shape[:2], 16, 16).sum(-1, dtype=np.float64), d)


def quantize_q8_0(x: np.ndarray) -> Activations:
    """Q8_0: blocks of 32; q = round(x/d), d = max|x|/127, then d is rounded to f16 for storage."""
    x = x.reshape(len(x), -1, 32)
    d = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    q = round_to_even(x * inverse)
    d = d[..., 0].astype(np.float16).astype(np.float32)
    return Activations(q, d, q.sum(-1, keepdims=True, dtype=np.float64), d)


def quantize_q8_1(x: np.ndarray) -> Activations:
    """Q8_1: Q8_0, with the sum of each block stored ready-made as f16(d·Σq), d before its own rounding."""
    q, d, sums, _ = quantize_q8_0(x)
    exact_d = np.abs(x.reshape(q.shape)).max(-1, keepdims=True) / np.float32(127)
    stored = (exact_d * sums.astype(np.float32)).astype(np.float16).astype(np.float64)
    return Activations(q, d, stored, np.ones_like(d))


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 (ties to even) of finite f32 values, as f32: the upper 16 bits, rounded."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


QUANTIZE = {
    "Q8_K": quantize_q8_k,
    "Q8_0": quantize_q8_0,
    "Q8_1": quantize_q8_1,
    "F32": lambda x: x,
    "F16": lambda x: x.astype(np.float16).astype(np.float32),
    "BF16": round_to_bf16,
}


def quantize_activations(x: np.ndarray, weight_type: str) -> Activations | np.ndarray:
    """x f32 [n_tokens, in_features] as llama.cpp would round it before it meets ``weight_type``."""
    return QUANTIZE[ACTIVATION_TYPE[weight_type]](x)


def block_dot(x: Activations | np.ndarray, tensor: Tensor, rows: slice) -> np.ndarray:
    """W[rows]·x for activations from :func:`quantize_activations`: f32 [n_tokens, n_rows]."""
    if isinstance(x, np.ndarray):
        return x @ tensor.rows(rows.start, rows.stop).T
    w = blocks.unpack(tensor.type.name, tensor.raw(rows))
    n_groups = w.scale.shape[-1]

    def by_group(q: np.ndarray) -> np.ndarray:  # -> [n_blocks, n_groups, n, group]
        return q.reshape(*q.shape[:2], n_groups, -1).transpose(1, 2, 0, 3).astype(np.float32)

    # At most 32 · 127 · 128 < 2^24: each group's sum is an exact integer in f32.
    dots = by_group(x.q) @ by_group(w.q).swapaxes(-1, -2)  # [n_blocks, n_groups, n_tokens, n_rows]
    scales = w.scale.transpose(1, 2, 0)[:, :, None, :].astype(np.float64)
    integers = (dots * scales).sum(1).astype(np.float32)  # [n_blocks, n_tokens, n_rows]
    y = (integers * (x.d.T[:, :, None] * w.d.T[:, None, :])).sum(0)
    if w.min is not None and w.dmin is not None:
        sums = x.group_sums.reshape(*x.d.shape, n_groups, -1).sum(-1).transpose(1, 0, 2)
        mins = (sums @ w.min.transpose(1, 2, 0).astype(np.float64)).astype(np.float32)
        y -= (mins * (x.sum_scale.T[:, :, None] * w.dmin.T[:, None, :])).sum(0)
    return y
