"""The matrix product with quantised weights. Model code names the roles it wants and sees no block.

Three ways, chosen by the arithmetic and by how many tokens there are:

    fast, few tokens    integer dots (``accel/dots.py``): activations in 8 bits, the weights' own integers; exact to
                        the ggml arithmetic but for the order in which f32 partial sums are added
    fast, many tokens   the layer's weights decoded once, dots with f32 accumulation: of bf16 where the device has
                        instructions for it, else of f32 (``accel/device.py``)
    f32                 the same two shapes in f32: no activation is rounded; the oracle's numbers to rounding

The order of the inputs in a dot is free. Decoded weights therefore keep that of the packed words, [element, group],
and the activations are permuted instead: they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from assay.accel.blocks import dequantize
from assay.accel.device import computing_on, dense_type
from assay.accel.dots import elements, group_dots, sheets
from assay.accel.layout import GROUP, LAYOUTS
from assay.accel.pack import Packed, Stack
from assay.accel.quantize import Quantized, quantize
from assay.formats.blocks.ggml_types import BY_NAME

FEW_TOKENS = 16
"""Up to so many tokens are multiplied one by one: decoding the weights would cost more than it saves (16 tokens of the
1.5B: 400 ms against 550; the later tokens find a layer's matrix in the cache). So a batch is computed as its sequences
would be alone."""
WIDEST_DECODED = {"bfloat16": (4096, 1 << 24), "float32": (1536, 1 << 22)}
"""Outputs that are decoded at once, and elements, at most: more would go through memory on their way to the dot. (Gate
and up of the 1.5B, 17,920 outputs, in GFLOP/s. bf16 on Zen 4, whole and in pieces: 57 and 113 for 16 tokens, 190 and
227 for 128, no difference for 512. f32 on Zen 3, pieces of 4,480 and 1,120: 59 and 95 for 32, 111 and 116 for 128.)"""


Activations = dict[str, Quantized]
"""The activations of some tokens, rounded in each way that is asked for."""


def matmul_roles(x: jax.Array, matrices: dict[tuple[str, ...], Stack], roles: tuple[str, ...],
                 sizes: dict[str, int], layer: jax.Array, arith: str) -> list[jax.Array]:  # fmt: skip
    """W_r·x[t] for each of ``roles``, which multiply the same x; ``sizes[r]`` is out_features of W_r.

    Roles whose matrices were joined at packing are computed together and cut apart.
    """
    stacks = {joined: stack for joined, stack in matrices.items() if joined[0] in roles}
    rounded = round_activations(x, [part for stack in stacks.values() for part in stack.parts], arith)
    products: dict[str, jax.Array] = {}
    for joined, stack in stacks.items():
        branches = [partial(product, x, rounded, part, arith=arith) for part in stack.parts]
        slot = stack.slot[layer]
        y = branches[0](slot) if len(branches) == 1 else lax.switch(stack.kind[layer], branches, slot)
        cuts = np.cumsum([sizes[role] for role in joined])[:-1].tolist()
        products.update(zip(joined, jnp.split(y, cuts, axis=1), strict=True))
    return [products[role] for role in roles]


def matmul_slices(x: jax.Array, packed: Packed, arith: str) -> jax.Array:
    """W·x[t] for a tall matrix packed in slices of rows: f32 [n_tokens, all rows]."""
    n_slots = jax.tree.leaves(packed)[0].shape[0]
    rounded = round_activations(x, [packed], arith)
    parts = lax.map(lambda slot: product(x, rounded, packed, slot, arith), jnp.arange(n_slots))
    return jnp.moveaxis(parts, 0, 1).reshape(x.shape[0], -1)


def lookup(packed: Packed, ids: jax.Array) -> jax.Array:
    """Rows ``ids`` [n_tokens] of a matrix packed in slices (the embedding), padding included: f32 [n_tokens, width]."""
    n_rows = packed.fields["raw"].shape[1] if "raw" in packed.fields else packed.words[0].shape[2]
    slot, row = ids // n_rows, ids % n_rows
    if "raw" in packed.fields:
        return dequantize(packed.type, packed.fields["raw"][slot, row])
    columns = jax.tree.map(lambda a: a[slot, :, row].T, packed)  # [n_groups, n_tokens]: tokens as outputs
    decoded = decode(columns, jnp.float32)
    in_order = np.argsort([e for order, _ in decoded for e in order])
    group = jnp.concatenate([sheet for _, sheet in decoded])[in_order]  # [32, n_groups, n_tokens]
    return jnp.transpose(group, (2, 1, 0)).reshape(ids.shape[0], -1)


def by_integers(x: jax.Array, packed: Packed, arith: str) -> bool:
    """Whether a product with ``packed`` is made of integer dots."""
    return arith == "fast" and len(x) <= FEW_TOKENS and packed.type in LAYOUTS


def round_activations(x: jax.Array, matrices: Sequence[Packed], arith: str) -> Activations:
    """x [n_tokens, in_features] in 8 bits, once for each way that the integer dots with ``matrices`` want."""
    kinds = {LAYOUTS[packed.type].activation for packed in matrices if by_integers(x, packed, arith)}
    return {kind: quantize(widened(x, 256 if kind == "Q8_K" else GROUP), kind) for kind in sorted(kinds)}


def widened(x: jax.Array, multiple: int) -> jax.Array:
    """x [n_tokens, n] with zeros up to a multiple of ``multiple``: for rows of weights that end in padding."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple)))


def product(x: jax.Array, rounded: Activations, packed: Packed, slot: jax.Array, arith: str) -> jax.Array:
    """W·x[t] for the matrix in ``slot``: [n_tokens, in_features] -> f32 [n_tokens, out_features]."""
    x = widened(x, BY_NAME[packed.type].block_elements)
    if "raw" in packed.fields:
        w = dequantize(packed.type, packed.fields["raw"][slot])
        return lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    n_out = packed.words[0].shape[2]
    if by_integers(x, packed, arith):
        a = rounded[LAYOUTS[packed.type].activation]
        return one_by_one(integer_product, a, packed, slot)
    if len(x) <= FEW_TOKENS:
        return one_by_one(float_product, x, packed, slot)
    dtype = dense_type(arith, computing_on())
    width, (most_outputs, most_elements) = n_out, WIDEST_DECODED[dtype.name]
    while width > min(most_outputs, most_elements // x.shape[1]) and width % 2 == 0:
        width //= 2

    def piece(i: int | jax.Array, y: jax.Array) -> jax.Array:
        decoded = decode(outputs(packed, slot, i * width, width), dtype)
        return lax.dynamic_update_slice(y, dense_product(x.astype(dtype), decoded), (0, i * width))

    return lax.fori_loop(0, n_out // width, piece, jnp.zeros((len(x), n_out), jnp.float32))


def one_by_one(multiply: Callable[..., jax.Array], tokens: Any, packed: Packed, slot: jax.Array) -> jax.Array:
    """``multiply(token, matrix)`` for each of ``tokens`` (arrays [n_tokens, ..]): [n_tokens, out_features]."""
    n_out = packed.words[0].shape[2]

    def of_token(token: Any) -> jax.Array:
        # Tied to the token, the slot is not a constant of the loop: else XLA copies the matrix out before the loop.
        token, here = lax.optimization_barrier((token, slot))
        return multiply(token, outputs(packed, here, 0, n_out))

    if jax.tree.leaves(tokens)[0].shape[0] == 1:
        return of_token(jax.tree.map(lambda a: a[0], tokens))[None]
    return lax.map(of_token, tokens)


def outputs(packed: Packed, slot: jax.Array, start: int | jax.Array, n: int) -> Packed:
    """The matrix in ``slot``, only ``n`` outputs from ``start`` on: a view that XLA reads in place."""
    return jax.tree.map(lambda a: lax.dynamic_slice(a, (slot, 0, start), (1, a.shape[1], n))[0], packed)


def integer_product(a: Quantized, w: Packed) -> jax.Array:
    """W·x of one token with 8-bit activations: Σ_g d_x·d·(scale·Σ q·q_x) − (dmin·min)·Σx. Returns [out_features].

    All but the last sum is one fused loop over packed words. That sum, over groups, is a dot with ones: it is faster
    here than ``sum``, and keeps a reduction out of the loop.
    """
    dots = group_dots(LAYOUTS[w.type], w.words, a.q)
    if w.scales:
        dots = [dot * scale.astype(jnp.int32) for dot, scale in zip(dots, w.scales, strict=True)]
    parts = reduce(add, dots).astype(jnp.float32) * (each_group(w, "d") * a.d[:, None])
    return add_groups(parts if "dmin" not in w.fields else parts - minimum(w) * a.sums[:, None])


def float_product(x: jax.Array, w: Packed) -> jax.Array:
    """W·x in f32, group by group: no activation is rounded. x [in_features] -> [out_features]."""
    groups, layout = x.reshape(-1, GROUP), LAYOUTS[w.type]
    dots = [jnp.float32(0)] * layout.n_scales
    for e, q in enumerate(elements(w.type, w.words)):
        dots[e * layout.n_scales // GROUP] += q.astype(jnp.float32) * groups[:, e, None]
    parts = reduce(add, [dot * scale for dot, scale in zip(dots, scales(w), strict=True)])
    return add_groups(parts if "dmin" not in w.fields else parts - minimum(w) * groups.sum(1)[:, None])


def add_groups(parts: jax.Array) -> jax.Array:
    """Σ over groups: [n_groups, out] -> [out]."""
    return lax.dot(jnp.ones((1, len(parts)), jnp.float32), parts, precision=lax.Precision.HIGHEST)[0]


def each_group(w: Packed, name: str) -> jax.Array:
    """``d`` or ``dmin``, which several groups may share, for each group: f32 [n_groups, out]."""
    field, n_groups = w.fields[name], w.words[0].shape[0]
    spread = jnp.broadcast_to(field[:, None], (len(field), n_groups // len(field), field.shape[1]))
    return spread.reshape(n_groups, -1).astype(jnp.float32)


def scales(w: Packed) -> list[jax.Array]:
    """d·scale, f32 [n_groups, out], for each part of a group that has its own."""
    d = each_group(w, "d")
    return [d * scale.astype(jnp.float32) for scale in w.scales] or [d]


def minimum(w: Packed) -> jax.Array:
    """dmin·min of each group, f32 [n_groups, out]; 0 for a type without."""
    if "dmin" not in w.fields:
        return jnp.float32(0)
    dmin = each_group(w, "dmin")
    return dmin * w.fields["min"].astype(jnp.float32) if "min" in w.fields else dmin


def decode(w: Packed, dtype: jnp.dtype | type) -> list[tuple[list[int], jax.Array]]:
    """The matrix as numbers, rounded once to ``dtype``: (elements, [n_elements, n_groups, out]) for each sheet."""
    scale, offset = jnp.stack(scales(w))[:, None], minimum(w)  # [n_scales, 1, n_groups, out]
    out = []
    for order, q in sheets(w.type, w.words):  # elements ascending: equally many for each scale, one after the other
        by_scale = q.astype(jnp.float32).reshape(len(scale), -1, *q.shape[1:])
        out.append((order, (by_scale * scale - offset).astype(dtype).reshape(q.shape)))
    return out


def dense_product(x: jax.Array, w: list[tuple[list[int], jax.Array]]) -> jax.Array:
    """x [n_tokens, in_features] times decoded sheets, accumulated in f32: [n_tokens, out]."""
    y = jnp.float32(0)
    for order, sheet in w:
        _, n_groups, n_out = sheet.shape
        groups = x.reshape(len(x), n_groups, -1)[:, :, np.array(order)]  # [n_tokens, n_groups, n_elements]
        y += lax.dot(groups.swapaxes(1, 2).reshape(len(x), -1), lax.optimization_barrier(sheet).reshape(-1, n_out),
                     precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)  # fmt: skip
    return y
