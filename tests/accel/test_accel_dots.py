"""Weights on the device: packed words hold the file's own integers, and the products made of them are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.accel.dots import group_dots
from assay.accel.layout import GROUP, LAYOUTS
from assay.accel.matmul import decode, dense_product, float_product, integer_product, lookup
from assay.accel.pack import Packed, fill, shapes
from assay.accel.quantize import quantize
from assay.formats import blocks
from assay.formats.blocks.ggml_types import BY_NAME
from assay.reference import block_dot
from tests.random_blocks import random_blocks

N_OUT, N_BLOCKS = 24, 3


def matrix(type_name: str, *, tame: bool = True) -> tuple[np.ndarray, Packed]:
    """Random rows of blocks, and the same matrix packed in slot 1 of three; ``tame``: |d| at most 1."""
    raw = random_blocks(type_name, N_OUT * N_BLOCKS)
    if tame:
        for at in {"Q2_K": (80,), "Q6_K": (208,)}.get(type_name, (0, 2) if has_two(type_name) else (0,)):
            raw[:, at : at + 2] = (raw[:, at : at + 1] / 256).astype(np.float16).view(np.uint8)
    raw = raw.reshape(N_OUT, -1)
    packed = fill(shapes(type_name, 3, *raw.shape), [lambda: [raw[::-1]], lambda: [raw[:7], raw[7:]], lambda: [raw]])
    return raw, jax.tree.map(lambda a: a[1], packed)


def has_two(type_name: str) -> bool:
    """Whether a second f16 follows the first."""
    return type_name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")


def activations(n: int) -> np.ndarray:
    """f32 [n], a few of them far larger than the rest, as in a real model."""
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    x[:: n // 5] *= 30
    return x


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_decoded_planes_are_the_weights_bit_for_bit(type_name: str) -> None:
    raw, packed = matrix(type_name, tame=False)
    weights = np.empty((N_OUT, blocks.dequantize(type_name, raw).shape[1] // GROUP, GROUP), np.float32)
    for order, sheet in jax.jit(lambda w: decode(w, jnp.float32))(packed):
        weights[:, :, np.array(order)] = np.asarray(sheet).transpose(2, 1, 0)
    weights = weights.reshape(N_OUT, -1)
    assert np.array_equal(weights.view(np.uint32), blocks.dequantize(type_name, raw).view(np.uint32))


def parts_of_groups(type_name: str, raw: np.ndarray) -> np.ndarray:
    """The integers less their zero, int64 [n_outputs, n_groups, n_scales, elements of a scale]."""
    q = blocks.unpack(type_name, raw).q.astype(np.int64)
    return q.reshape(len(raw), -1, LAYOUTS[type_name].n_scales, GROUP // LAYOUTS[type_name].n_scales)


@pytest.mark.parametrize("extreme", [False, True], ids=["random", "largest"])
@pytest.mark.parametrize("type_name", LAYOUTS)
def test_group_dots_are_exact_integers(type_name: str, extreme: bool) -> None:
    """At ±127 throughout, the sixteen-bit accumulators are as full as they can get."""
    raw, packed = matrix(type_name)
    q = parts_of_groups(type_name, raw)
    rng = np.random.default_rng(3)
    x = rng.integers(-127, 128, (q.shape[1], GROUP))
    if extreme:
        x = np.where(rng.random(x.shape) < 0.5, 127, -127)
        x[0], x[1] = 127, -127
    dots = jax.jit(lambda w, x: group_dots(LAYOUTS[type_name], w.words, x))(packed, jnp.asarray(x, jnp.int16))
    wanted = np.einsum("ngse,gse->sgn", q, x.reshape(q.shape[1:]))
    assert np.array_equal(np.stack(dots), wanted)


@pytest.mark.parametrize("full", [0xFF, 0x80, 0x7F, 0x00])
@pytest.mark.parametrize("type_name", LAYOUTS)
def test_no_accumulator_overflows_on_the_largest_weights(type_name: str, full: int) -> None:
    raw = np.full((1, 2 * BY_NAME[type_name].block_bytes), full, np.uint8)
    q = parts_of_groups(type_name, raw)
    packed = jax.tree.map(lambda a: a[0], fill(shapes(type_name, 1, *raw.shape), [lambda: [raw]]))
    for sign in (127, -127):
        x = np.full((q.shape[1], GROUP), sign)
        dots = group_dots(LAYOUTS[type_name], packed.words, jnp.asarray(x, jnp.int16))
        assert np.array_equal(np.stack(dots), np.einsum("ngse,gse->sgn", q, x.reshape(q.shape[1:])))


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_integer_product_is_the_oracles_ggml_arithmetic(type_name: str) -> None:
    """Both sum the same exact integers, scaled; only the order of n_groups f32 additions (of weights and of minima)
    differs, so the difference is at most 2 · n_groups · u times the sum of the terms' magnitudes."""
    raw, packed = matrix(type_name)
    x = activations(blocks.dequantize(type_name, raw).shape[1])
    row = jax.tree.map(lambda a: a[0], quantize(jnp.asarray(x[None]), LAYOUTS[type_name].activation))
    ours = np.asarray(jax.jit(integer_product)(row, packed))
    quantized = block_dot.quantize_activations(x[None], type_name)

    class Stored:
        """What ``block_dot`` needs of a tensor."""

        type = BY_NAME[type_name]

        @staticmethod
        def raw(rows: slice) -> np.ndarray:
            return raw[rows]

    theirs = block_dot.block_dot(quantized, Stored, slice(None))[0]  # pyright: ignore[reportArgumentType]
    w = blocks.unpack(type_name, raw)
    group = w.q.shape[-1] // w.scale.shape[-1]
    magnitude = np.abs(w.d[..., None] * w.scale).repeat(group, -1) * np.abs(w.q.astype(np.int64))
    magnitude = magnitude.reshape(N_OUT, -1)
    if w.min is not None and w.dmin is not None:
        magnitude = magnitude + np.abs(w.dmin[..., None] * w.min).repeat(group, -1).reshape(N_OUT, -1)
    n_groups = len(x) // (GROUP // LAYOUTS[type_name].n_scales)
    bound = 2 * n_groups * 2.0**-24 * (magnitude * (np.abs(x) * 1.01 + 1e-6)).sum(1)
    assert (np.abs(ours - theirs) <= bound).all()


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_float_product_is_the_decoded_product(type_name: str) -> None:
    """At most (in_features + 3) roundings of terms whose magnitudes are bounded by |d·scale·q| and |dmin·min|."""
    raw, packed = matrix(type_name)
    w = blocks.dequantize(type_name, raw).astype(np.float64)
    x = activations(w.shape[1])
    parts = blocks.unpack(type_name, raw)
    magnitude = np.abs(parts.d).max() * np.abs(parts.scale.astype(np.int64)).max() * 32
    if parts.min is not None and parts.dmin is not None:
        magnitude += np.abs(parts.dmin).max() * np.abs(parts.min.astype(np.int64)).max()
    bound = (len(x) + 3) * 2.0**-24 * max(magnitude, np.abs(w).max()) * np.abs(x).sum()
    assert np.abs(np.asarray(jax.jit(float_product)(jnp.asarray(x), packed)) - w @ x).max() <= bound


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_dense_product_permutes_activations_as_weights(type_name: str) -> None:
    raw, packed = matrix(type_name)
    w = blocks.dequantize(type_name, raw)
    x = np.eye(w.shape[1], dtype=np.float32)  # every single weight shows
    y = jax.jit(lambda x, w: dense_product(x, decode(w, jnp.float32)))(jnp.asarray(x), packed)
    assert np.array_equal(np.asarray(y).T, w)


@pytest.mark.parametrize("type_name", [*LAYOUTS, "Q2_K"])
def test_lookup_finds_rows_across_slices(type_name: str) -> None:
    raw = random_blocks(type_name, N_OUT * N_BLOCKS).reshape(N_OUT, -1)
    packed = fill(shapes(type_name, 3, 8, raw.shape[1]), [lambda i=i: [raw[i : i + 8]] for i in (0, 8, 16)])
    ids = np.array([0, 23, 7, 8, 15, 16, 8])
    rows = np.asarray(jax.jit(lookup)(packed, jnp.asarray(ids)))
    assert np.array_equal(rows.view(np.uint32), blocks.dequantize(type_name, raw[ids]).view(np.uint32))
