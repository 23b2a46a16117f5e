"""Integers out of planes: the exact dot product of a group, and the single elements.

Why this is fast. Every function here is elementwise over [n_groups, n_outputs], so XLA fuses all planes of a
matrix into one loop that LLVM vectorises along the outputs, 32 sixteen-bit lanes at a time, each activation
broadcast. There is no horizontal add and no reduction inside. A plane is read once, from memory to register.

Why it is exact. All of it is integer arithmetic. A 16-bit accumulator may wrap on the way (that is modular
arithmetic, which loses nothing) as long as the final value fits: 16 nibbles times 127 is at most 30,480.

Telescoping saves the masks: for a word w with b-bit fields f_k = (w >> b·k) mod 2^b,

    Σ_k f_k·x_k  =  Σ_k (w >> b·k)·(x_k − 2^b·x_{k−1})

because every shifted word but the wanted field is taken off again one step later.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from accel.layout import LAYOUTS

Planes = Sequence[jax.Array]
"""Planes of one matrix: arrays [n_groups, n_outputs], uint16 (uint8 for Q8_0)."""


def group_dot(type_name: str, low: Planes, high: Planes, x: jax.Array) -> jax.Array:
    """Σ_e (q_e − zero)·x_e over each group, exact: int32 [n_groups, n_outputs].

    x int16 [n_groups, group], each value an 8-bit integer.
    """
    layout = LAYOUTS[type_name]
    if type_name == "Q8_0":
        return byte_dot(low, x)
    total = nibble_dot(low, x)
    if layout.high == "bits":
        total += 16 * bit_dot(high, x)
    if layout.high == "pairs":
        total += 16 * pair_dot(high, x)
    if layout.zero:
        total -= layout.zero * x.astype(jnp.int32).sum(1, keepdims=True)
    return total


def nibble_order(n_words: int) -> list[list[int]]:
    """The elements in each word's four nibbles: bytes 2i and 2i + 1 of the group, low nibbles in its first half."""
    half = 2 * n_words
    return [[2 * i, half + 2 * i, 2 * i + 1, half + 2 * i + 1] for i in range(n_words)]


def nibble_dot(low: Planes, x: jax.Array) -> jax.Array:
    """Σ nibble_e·x_e, int32; four words (16 nibbles) to an accumulator."""
    order, total = nibble_order(len(low)), jnp.int32(0)
    for start in range(0, len(low), 4):
        total += field_dot(low[start : start + 4], 4, order[start : start + 4], x)
    return total


def pair_dot(high: Planes, x: jax.Array) -> jax.Array:
    """Σ two_e·x_e over 16 two-bit numbers, element 8i + k in bits 2k of word i: at most 16 · 3 · 127."""
    return field_dot(high, 2, [[8 * i + k for k in range(8)] for i in range(len(high))], x)


def field_dot(words: Planes, bits: int, order: list[list[int]], x: jax.Array) -> jax.Array:
    """Σ f_e·x_e over fields of ``bits`` bits; ``order[i][k]`` is the element in field k of word i. int32.

    Raises nothing and checks nothing: the caller sees to it that the sum fits 16 bits.
    """
    x = lax.bitcast_convert_type(x, jnp.uint16)
    sums = jnp.uint16(0)
    for word, elements_of_word in zip(words, order, strict=True):
        before = jnp.uint16(0)
        for k, e in enumerate(elements_of_word):
            here = x[:, e, None]
            sums += (word >> bits * k) * (here - (1 << bits) * before)
            before = here
    return lax.bitcast_convert_type(sums, jnp.int16).astype(jnp.int32)


def bit_dot(high: Planes, x: jax.Array) -> jax.Array:
    """Σ bit_e·x_e over 32 single bits, element 16i + k in bit k of word i: at most 32 · 127.

    Single bits are cheaper to test than to multiply: a mask and a masked addition each.
    """
    sums = jnp.int16(0)
    for i, word in enumerate(high):
        for k in range(16):
            sums += jnp.where(word & (1 << k) != 0, x[:, 16 * i + k, None], jnp.int16(0))
    return sums.astype(jnp.int32)


def byte_dot(low: Planes, x: jax.Array) -> jax.Array:
    """Σ q_e·x_e over signed bytes: two products (2 · 127 · 127 = 32,258) fit 16 bits, so they are added in pairs.

    ggml's quantisers never write −128, but a file may: |q| = 128 times 127, twice, is 32,512 and fits as well.
    """
    total = jnp.int32(0)
    for j in range(0, len(low), 2):
        a, b = (p.view(jnp.int8).astype(jnp.int16) for p in (low[j], low[j + 1]))
        total += (a * x[:, j, None] + b * x[:, j + 1, None]).astype(jnp.int32)
    return total


def elements(type_name: str, low: Planes, high: Planes) -> list[jax.Array]:
    """q_e − zero for each element of a group, in order: int32 [n_groups, n_outputs] each."""
    layout = LAYOUTS[type_name]
    if type_name == "Q8_0":
        return [plane.view(jnp.int8).astype(jnp.int32) for plane in low]
    quants = [jnp.int32(0)] * layout.group
    for word, elements_of_word in zip(low, nibble_order(len(low)), strict=True):
        for k, e in enumerate(elements_of_word):
            quants[e] = word.astype(jnp.int32) >> 4 * k & 15
    bits = {"": 0, "bits": 1, "pairs": 2}[layout.high]
    if bits:
        per_word = 16 // bits
        for e in range(layout.group):
            field = high[e // per_word].astype(jnp.int32) >> bits * (e % per_word) & (2**bits - 1)
            quants[e] = quants[e] + 16 * field
    return [q - layout.zero for q in quants]


def sheets(type_name: str, low: Planes, high: Planes) -> list[tuple[list[int], jax.Array]]:
    """All elements at once, for decoding a whole matrix: (elements, q − zero int32 [n, n_groups, n_outputs]) by sheet.

    A sheet is one nibble of every word: k = 0: 0, 2, 4 ..; 1: half + 0, 2 ..; 2: 1, 3 ..; 3: half + 1, 3 ... The planes
    are first laid together, a plain copy; then a sheet is one fused loop. (Stacking decoded elements instead puts
    a branch for each of 32 sources into the loop: four times slower.)
    """
    layout, together = LAYOUTS[type_name], lax.optimization_barrier(jnp.stack(low))
    if type_name == "Q8_0":
        return [(list(range(layout.group)), together.view(jnp.int8).astype(jnp.int32))]
    half, bits = layout.group // 2, {"": 0, "bits": 1, "pairs": 2}[layout.high]
    out = []
    for k in range(4):
        first = half * (k % 2) + k // 2
        quants = together.astype(jnp.int32) >> 4 * k & 15
        if bits:  # the elements of a sheet have their high bits in one word, every other field of it
            shifts = bits * jnp.arange(k // 2, half, 2)[:, None, None]
            quants += 16 * (high[k % 2].astype(jnp.int32) >> shifts & (1 << bits) - 1)
        out.append((list(range(first, first + half, 2)), quants - layout.zero))
    return out
