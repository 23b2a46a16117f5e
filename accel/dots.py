"""Integers out of planes: the exact dot product of a group, and the single elements.

Why this is fast. Every function here is elementwise over [n_groups, n_outputs], so XLA fuses all planes of a
matrix into one loop that LLVM vectorises along the outputs, 32 sixteen-bit lanes at a time, each activation
broadcast. There is no horizontal add and no reduction inside. A plane is read once, from memory to register.

Why it is exact. All of it is integer arithmetic. A 16-bit accumulator may wrap on the way (that is modular
arithmetic, which loses nothing) as long as the final value fits: 16 nibbles times 127 is at most 30,480.

Telescoping saves the masks: for a byte b = 16·hi + lo, ``lo·x + hi·y = b·x + (b >> 4)·(y − 16·x)``; likewise
for the two-bit fields of a byte, with 4 in place of 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from accel.layout import LAYOUTS

Planes = Sequence[jax.Array]
"""Byte planes of one matrix: arrays [n_groups, n_outputs], uint8 (int8 for Q8_0)."""


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


def nibble_dot(low: Planes, x: jax.Array) -> jax.Array:
    """Σ_j lo_j·x_j + hi_j·x_{n+j} over n byte planes, eight planes to an accumulator."""
    n, total = len(low), jnp.int32(0)
    for start in range(0, n, 8):
        sums = jnp.int16(0)
        for j in range(start, start + 8):
            b, first, second = low[j].astype(jnp.int16), x[:, j, None], x[:, n + j, None]
            sums += b * first + (b >> 4) * (second - 16 * first)
        total += sums.astype(jnp.int32)
    return total


def bit_dot(high: Planes, x: jax.Array) -> jax.Array:
    """Σ bit_e·x_e over 32 single bits, element 8i + k in bit k of plane i: at most 32 · 127."""
    sums = jnp.int16(0)
    for i, plane in enumerate(high):
        b = plane.astype(jnp.int16)
        for k in range(8):
            sums += jnp.where(b & (1 << k) != 0, x[:, 8 * i + k, None], jnp.int16(0))
    return sums.astype(jnp.int32)


def pair_dot(high: Planes, x: jax.Array) -> jax.Array:
    """Σ two_e·x_e over 16 two-bit numbers, element 4i + k in bits 2k of plane i: at most 16 · 3 · 127."""
    sums = jnp.int16(0)
    for i, plane in enumerate(high):
        b, before = plane.astype(jnp.int16), jnp.int16(0)
        for k in range(4):
            here = x[:, 4 * i + k, None]
            sums += (b >> 2 * k) * (here - 4 * before)
            before = here
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
    quants = [p.astype(jnp.int32) & 15 for p in low] + [p.astype(jnp.int32) >> 4 for p in low]
    bits, per_byte = {"": (0, 1), "bits": (1, 8), "pairs": (2, 4)}[layout.high]
    if bits:
        for e in range(layout.group):
            field = high[e // per_byte].astype(jnp.int32) >> bits * (e % per_byte) & (2**bits - 1)
            quants[e] = quants[e] + 16 * field
    return [q - layout.zero for q in quants]
