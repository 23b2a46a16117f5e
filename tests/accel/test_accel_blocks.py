"""The device decoders against those of ``formats/blocks``: every bit, eager and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.accel.blocks import DECODERS, dequantize
from assay.formats import ModelError, blocks
from tests.random_blocks import random_blocks


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("type_name", blocks.DECODABLE)
def test_bits_equal_those_of_formats(type_name: str, compiled: bool) -> None:
    raw = random_blocks(type_name, 3 * 64).reshape(3, -1)
    decode = jax.jit(dequantize, static_argnums=0) if compiled else dequantize
    ours = np.asarray(decode(type_name, jnp.asarray(raw)))
    expected = blocks.dequantize(type_name, raw)
    wrong = np.argwhere(ours.view(np.uint32) != expected.view(np.uint32))
    if len(wrong):
        at = tuple(wrong[0])
        pytest.fail(f"{type_name}{at}: {ours[at]!r} {ours.view(np.uint32)[at]:08x} is not "
                    f"{expected[at]!r} {expected.view(np.uint32)[at]:08x}; {len(wrong)} differ")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_every_16_bit_pattern_but_nan_survives(type_name: str, compiled: bool) -> None:
    """Subnormals above all: XLA on CPU flushes them to zero wherever it does arithmetic on them."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    if type_name == "F32":
        raw = (patterns.astype(np.uint32) << 16 | 1).view(np.uint8)
    else:
        raw = patterns.view(np.uint8)
    decode = jax.jit(dequantize, static_argnums=0) if compiled else dequantize
    ours, expected = np.asarray(decode(type_name, jnp.asarray(raw))), blocks.dequantize(type_name, raw)
    number = ~np.isnan(expected)
    wrong = np.flatnonzero(ours.view(np.uint32)[number] != expected.view(np.uint32)[number])
    assert not len(wrong), f"{len(wrong)} differ, the first pattern {patterns[number][wrong[0]]:04x}"
    assert np.isnan(ours[~number]).all()


def test_every_type_has_a_device_decoder() -> None:
    assert set(DECODERS) == set(blocks.DECODABLE)


def test_unknown_type_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="IQ1_S"):
        dequantize("IQ1_S", jnp.zeros((1, 50), jnp.uint8))


@pytest.mark.parametrize(("n_bytes", "dtype"), [(145, jnp.uint8), (144, jnp.int8)])
def test_rows_that_are_not_whole_blocks_are_a_model_error(n_bytes: int, dtype: jnp.dtype) -> None:
    with pytest.raises(ModelError, match="multiple of 144"):
        dequantize("Q4_K", jnp.zeros((1, n_bytes), dtype))
