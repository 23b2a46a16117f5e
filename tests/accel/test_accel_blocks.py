"""The device decoders against those of ``formats/blocks``: every bit, eager and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_blocks import random_blocks

from accel.blocks import DECODERS, dequantize
from formats import ModelError, blocks


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


def test_every_type_has_a_device_decoder() -> None:
    assert set(DECODERS) == set(blocks.DECODABLE)


def test_unknown_type_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="IQ1_S"):
        dequantize("IQ1_S", jnp.zeros((1, 50), jnp.uint8))
