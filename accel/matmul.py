"""The matrix product with quantised weights. Model code names the roles it wants and sees no block.

Three ways, chosen by the arithmetic and by how many tokens there are:

    fast, one token     integer dots (``accel/dots.py``): activations in 8 bits, the weights' own integers; exact to
                        the ggml arithmetic but for the order in which f32 partial sums are added
    fast, many tokens   the layer's weights decoded to bf16 once, bf16 dots with f32 accumulation
    f32                 the same two shapes in f32: no activation is rounded; the oracle's numbers to rounding

The order of the inputs in a dot is free. Decoded weights therefore keep the order of the planes, [element, group],
and the activations are permuted instead: they are few.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from accel.blocks import dequantize
from accel.dots import elements, group_dot, sheets
from accel.layout import LAYOUTS
from accel.pack import Packed, Stack
from accel.quantize import quantize

FEW_TOKENS = 4
"""Up to so many tokens are multiplied one by one: decoding the weights would cost more than it saves."""


def matmul(x: jax.Array, stack: Stack, layer: jax.Array, arith: str) -> jax.Array:
    """W·x[t] for the matrix of ``layer``: x f32 [n_tokens, in_features] -> f32 [n_tokens, out_features]."""

    def of_part(part: Packed):
        return lambda slot: product(x, part, slot, arith)

    branches = [of_part(part) for part in stack.parts]
    slot = stack.slot[layer]
    return branches[0](slot) if len(branches) == 1 else lax.switch(stack.kind[layer], branches, slot)


def matmul_roles(x: jax.Array, matrices: dict[tuple[str, ...], Stack], roles: tuple[str, ...],
                 sizes: dict[str, int], layer: jax.Array, arith: str) -> list[jax.Array]:  # fmt: skip
    """W_r·x[t] for each of ``roles``, which multiply the same x; ``sizes[r]`` is out_features of W_r.

    Roles whose matrices were joined at packing are computed together and cut apart.
    """
    products: dict[str, jax.Array] = {}
    for joined, stack in matrices.items():
        if joined[0] in roles:
            y = matmul(x, stack, layer, arith)
            cuts = np.cumsum([sizes[role] for role in joined])[:-1].tolist()
            products.update(zip(joined, jnp.split(y, cuts, axis=1), strict=True))
    return [products[role] for role in roles]


def matmul_slices(x: jax.Array, packed: Packed, arith: str) -> jax.Array:
    """W·x[t] for a tall matrix packed in slices of rows: f32 [n_tokens, all rows]."""
    n_slots = jax.tree.leaves(packed)[0].shape[0]
    parts = lax.map(lambda slot: product(x, packed, slot, arith), jnp.arange(n_slots))
    return jnp.moveaxis(parts, 0, 1).reshape(x.shape[0], -1)


def lookup(packed: Packed, ids: jax.Array) -> jax.Array:
    """Rows ``ids`` [n_tokens] of a matrix packed in slices (the embedding): f32 [n_tokens, in_features]."""
    n_rows = packed.fields["raw"].shape[1] if "raw" in packed.fields else packed.low[0].shape[2]
    slot, row = ids // n_rows, ids % n_rows
    if "raw" in packed.fields:
        return dequantize(packed.type, packed.fields["raw"][slot, row])
    columns = jax.tree.map(lambda a: a[slot, :, row].T, packed)  # planes [n_groups, n_tokens]: tokens as outputs
    decoded = decode(columns, jnp.float32)
    in_order = np.argsort([e for order, _ in decoded for e in order])
    group = jnp.concatenate([sheet for _, sheet in decoded])[in_order]  # [group, n_groups, n_tokens]
    return jnp.transpose(group, (2, 1, 0)).reshape(ids.shape[0], -1)


def product(x: jax.Array, packed: Packed, slot: jax.Array, arith: str) -> jax.Array:
    """W·x[t] for the matrix in ``slot``: [n_tokens, in_features] -> f32 [n_tokens, out_features]."""
    one = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, slot, keepdims=False), packed)
    if "raw" in one.fields:
        w = dequantize(one.type, one.fields["raw"])
        return lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    if x.shape[0] <= FEW_TOKENS:
        multiply = integer_product if arith == "fast" else float_product
        return jnp.stack([multiply(row, one) for row in x])
    dtype = jnp.dtype(jnp.bfloat16 if arith == "fast" else jnp.float32)
    return dense_product(x.astype(dtype), decode(one, dtype))


def integer_product(x: jax.Array, w: Packed) -> jax.Array:
    """W·x with 8-bit activations: Σ_g d_x·(d·scale)·Σ(q·q_x) − (dmin·min)·Σx. x [in_features] -> [out_features]."""
    layout = LAYOUTS[w.type]
    a = quantize(x, layout.activation, layout.group)
    dots = group_dot(w.type, w.low, w.high, a.q).astype(jnp.float32)
    return sum_groups(dots, a.d, a.sums, w)


def float_product(x: jax.Array, w: Packed) -> jax.Array:
    """W·x in f32, group by group: no activation is rounded. x [in_features] -> [out_features]."""
    groups = x.reshape(-1, LAYOUTS[w.type].group)
    dots = jnp.float32(0)
    for e, q in enumerate(elements(w.type, w.low, w.high)):
        dots += q.astype(jnp.float32) * groups[:, e, None]
    return sum_groups(dots, jnp.ones(len(groups), jnp.float32), groups.sum(1), w)


def sum_groups(dots: jax.Array, d: jax.Array, sums: jax.Array, w: Packed) -> jax.Array:
    """Scale each group's dot [n_groups, out], take off its minimum, and add up the groups: [out].

    The scaling belongs to the fused loop over planes. The sum over groups is a dot with ones, which is faster
    here than ``sum`` and keeps a reduction out of that loop.
    """
    scale, minimum = scales(w)
    parts = dots * (scale * d[:, None])
    if minimum is not None:
        parts -= minimum * sums[:, None]
    return lax.dot(jnp.ones((1, len(parts)), jnp.float32), parts, precision=lax.Precision.HIGHEST)[0]


def scales(w: Packed) -> tuple[jax.Array, jax.Array | None]:
    """d·scale and dmin·min of each group, f32 [n_groups, out]; None for a type without a minimum."""
    n_groups = w.low[0].shape[0]

    def each_group(d: jax.Array) -> jax.Array:
        spread = jnp.broadcast_to(d[:, None], (len(d), n_groups // len(d), d.shape[1]))
        return spread.reshape(n_groups, -1).astype(jnp.float32)

    scale = each_group(w.fields["d"])
    if "scale" in w.fields:
        scale = scale * w.fields["scale"].astype(jnp.float32)
    if "dmin" not in w.fields:
        return scale, None
    minimum = each_group(w.fields["dmin"])
    return scale, minimum * w.fields["min"].astype(jnp.float32) if "min" in w.fields else minimum


def decode(w: Packed, dtype: jnp.dtype | type) -> list[tuple[list[int], jax.Array]]:
    """The matrix as numbers, rounded once to ``dtype``: (elements, [n_elements, n_groups, out]) for each sheet."""
    scale, minimum = scales(w)
    offset = jnp.float32(0) if minimum is None else minimum
    integers = sheets(w.type, w.low, w.high)
    return [(order, (q.astype(jnp.float32) * scale - offset).astype(dtype)) for order, q in integers]


def dense_product(x: jax.Array, w: list[tuple[list[int], jax.Array]]) -> jax.Array:
    """x [n_tokens, in_features] times decoded sheets, accumulated in f32: [n_tokens, out]."""
    y = jnp.float32(0)
    for order, sheet in w:
        _, n_groups, n_out = sheet.shape
        groups = x.reshape(len(x), n_groups, -1)[:, :, np.array(order)]  # [n_tokens, n_groups, n_elements]
        y += lax.dot(groups.swapaxes(1, 2).reshape(len(x), -1), lax.optimization_barrier(sheet).reshape(-1, n_out),
                     precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)  # fmt: skip
    return y
