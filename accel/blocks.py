"""Block formats in JAX: raw bytes -> f32, on whatever device the bytes are.

    y = dequantize("Q4_K", raw)        # uint8 [..., row_bytes] -> f32 [..., n_elements]

Each decoder takes ``b``, uint8 ``[..., n_blocks, block_bytes]``, and returns f32 ``[..., n_blocks,
block_elements]``. It is written as the formulas of ggml-quants.c (ggml-org/ggml) are: cut the block into
fields, put the elements in order, multiply. All of it is elementwise, so XLA fuses it into its consumer.

Bit equality with other decoders does not depend on how XLA orders or contracts the arithmetic. A product
``d * scale * q`` has at most 11 + 12 significand bits and ``dmin * min`` at most 11 + 6, so both are exact in
f32; the one subtraction rounds once, whether or not it is fused into a multiply-add.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import bitcast_convert_type

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.errors import ModelError

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dequantize(type_name: str, raw: jax.Array) -> jax.Array:
    """uint8 ``[..., row_bytes]`` -> f32 ``[..., n_elements]``; ``type_name`` is static under `jax.jit`.

    Raises ModelError for a type that cannot be decoded and for rows that are not whole blocks.
    """
    if type_name not in DECODERS:
        raise ModelError(f"{type_name} is a type that Assay cannot decode", where="accel block decoder",
                         remedy=f"Use a model whose tensors are {', '.join(DECODERS)}")  # fmt: skip
    block_bytes, elements = BY_NAME[type_name].block_bytes, BY_NAME[type_name].block_elements
    if raw.dtype != jnp.uint8 or raw.ndim == 0 or raw.shape[-1] % block_bytes:
        raise ModelError(f"rows of {type_name} must be uint8 and a multiple of {block_bytes} bytes, "
                         f"not {raw.dtype} {list(raw.shape)}", where="accel block decoder",
                         remedy="The tensor's shape and its type disagree; fetch the file again")  # fmt: skip
    *rows, row_bytes = raw.shape
    n_blocks = row_bytes // block_bytes
    values = DECODERS[type_name](raw.reshape(*rows, n_blocks, block_bytes))
    return values.reshape(*rows, n_blocks * elements)


# ---- fields ------------------------------

def _f16(b: jax.Array, at: int) -> jax.Array:
    """The f16 at byte ``at``, as f32 ``[..., n_blocks, 1]``."""
    return bitcast_convert_type(b[..., at : at + 2], jnp.float16).astype(jnp.float32)[..., None]


def _i8(x: jax.Array) -> jax.Array:
    return bitcast_convert_type(x, jnp.int8)


def _f32(q: jax.Array) -> jax.Array:
    return q.astype(jnp.float32)


def _runs(x: jax.Array, length: int) -> jax.Array:
    """``[..., n]`` -> ``[..., n / length, length]``."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // length, length)


def _flat(x: jax.Array, axes: int = 2) -> jax.Array:
    """Merge the last ``axes`` axes into one."""
    return x.reshape(*x.shape[:-axes], math.prod(x.shape[-axes:]))


# ---- float types ------------------------------

def _decode_f32(b: jax.Array) -> jax.Array:
    return bitcast_convert_type(b, jnp.float32)[..., None]


def _decode_f16(b: jax.Array) -> jax.Array:
    return _f16(b, 0)


def _decode_bf16(b: jax.Array) -> jax.Array:
    # Moved as bits: XLA on CPU may flush a subnormal to zero when it converts a number.
    bits = bitcast_convert_type(b, jnp.uint16).astype(jnp.uint32) << 16
    return bitcast_convert_type(bits, jnp.float32)[..., None]


# ---- 32 elements a block: byte j holds elements j and 16 + j ------------------------------

def _nibbles(qs: jax.Array) -> jax.Array:
    """``[..., n]`` -> ``[..., 2 n]``: the low nibbles of all bytes, then the high nibbles."""
    return jnp.concatenate([qs & 15, qs >> 4], axis=-1)


def _fifth_bits(qh: jax.Array) -> jax.Array:
    """uint8 ``[..., 4]`` -> uint8 ``[..., 32]``, 0 or 16: bit e of the little-endian u32 is element e's."""
    word = bitcast_convert_type(qh, jnp.uint32)[..., None]
    return ((word >> jnp.arange(32, dtype=jnp.uint32) & 1) << 4).astype(jnp.uint8)


def _levels(index: jax.Array) -> jax.Array:
    return jnp.asarray(IQ4_LEVELS, jnp.float32)[index]


def _decode_q4_0(b: jax.Array) -> jax.Array:
    return _f16(b, 0) * _f32(_i8(_nibbles(b[..., 2:])) - 8)


def _decode_q4_1(b: jax.Array) -> jax.Array:
    return _f16(b, 0) * _f32(_nibbles(b[..., 4:])) + _f16(b, 2)


def _decode_q5_0(b: jax.Array) -> jax.Array:
    return _f16(b, 0) * _f32(_i8(_nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])) - 16)


def _decode_q5_1(b: jax.Array) -> jax.Array:
    return _f16(b, 0) * _f32(_nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])) + _f16(b, 2)


def _decode_q8_0(b: jax.Array) -> jax.Array:
    return _f16(b, 0) * _f32(_i8(b[..., 2:]))


def _decode_iq4_nl(b: jax.Array) -> jax.Array:
    return _f16(b, 0) * _levels(_nibbles(b[..., 2:]))


# ---- 256 elements a block, scales for groups of 16 or 32 ------------------------------

def _two_bits(qs: jax.Array) -> jax.Array:
    """``[..., 64]`` -> ``[..., 256]``: of each 32 bytes, bits 0-1 of all, then bits 2-3, 4-5, 6-7."""
    half = _runs(qs, 32)
    return _flat(jnp.stack([half >> s & 3 for s in (0, 2, 4, 6)], axis=-2), 3)


def _one_bit(mask: jax.Array) -> jax.Array:
    """``[..., 32]`` -> ``[..., 256]``, each 0 or 1: bit g of byte j belongs to element 32 g + j."""
    return jnp.concatenate([mask >> g & 1 for g in range(8)], axis=-1)


def _grouped(q: jax.Array, scale: jax.Array) -> jax.Array:
    """q ``[..., 256]`` times its group's scale, f32 ``[..., n_groups]`` -> f32 ``[..., 256]``."""
    return _flat(_runs(_f32(q), q.shape[-1] // scale.shape[-1]) * scale[..., None])


def _spread(per_group: jax.Array) -> jax.Array:
    """``[..., n_groups]`` -> ``[..., 256]``: each group's number, once for each of its elements."""
    return jnp.repeat(per_group, 256 // per_group.shape[-1], axis=-1)


def _six_bit_pairs(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The 12 bytes of Q4_K and Q5_K, uint8 ``[..., 12]`` -> scales and mins, f32 ``[..., 8]`` (0 to 63).

    Group j < 4: ``s[j] & 63`` and ``s[j + 4] & 63``. Group j >= 4: the low and the high nibble of
    ``s[j + 4]``, topped by the two free bits of ``s[j - 4]`` (scale) and of ``s[j]`` (min).
    """
    a, m, e = s[..., 0:4], s[..., 4:8], s[..., 8:12]
    scale = jnp.concatenate([a & 63, e & 15 | (a >> 6) << 4], axis=-1)
    minimum = jnp.concatenate([m & 63, e >> 4 | (m >> 6) << 4], axis=-1)
    return _f32(scale), _f32(minimum)


def _decode_q2_k(b: jax.Array) -> jax.Array:
    scale, minimum = _f32(b[..., :16] & 15), _f32(b[..., :16] >> 4)
    return _grouped(_two_bits(b[..., 16:80]), _f16(b, 80) * scale) - _spread(_f16(b, 82) * minimum)


def _decode_q3_k(b: jax.Array) -> jax.Array:
    low, top = _nibbles(b[..., 96:104]), b[..., 104:108]
    scale = low | jnp.concatenate([(top >> s & 3) << 4 for s in (0, 2, 4, 6)], axis=-1)
    # A clear mask bit takes 4 away, a set one nothing.
    q = _i8(_two_bits(b[..., 32:96])) - _i8((1 - _one_bit(b[..., :32])) << 2)
    return _grouped(q, _f16(b, 108) * _f32(_i8(scale) - 32))


def _decode_q4_k(b: jax.Array) -> jax.Array:
    scale, minimum = _six_bit_pairs(b[..., 4:16])
    q = _flat(_nibbles(_runs(b[..., 16:144], 32)))
    return _grouped(q, _f16(b, 0) * scale) - _spread(_f16(b, 2) * minimum)


def _decode_q5_k(b: jax.Array) -> jax.Array:
    scale, minimum = _six_bit_pairs(b[..., 4:16])
    q = _flat(_nibbles(_runs(b[..., 48:176], 32))) | _one_bit(b[..., 16:48]) << 4
    return _grouped(q, _f16(b, 0) * scale) - _spread(_f16(b, 2) * minimum)


def _decode_q6_k(b: jax.Array) -> jax.Array:
    q = _flat(_nibbles(_runs(b[..., :128], 64))) | _two_bits(b[..., 128:192]) << 4
    return _grouped(_i8(q) - 32, _f16(b, 208) * _f32(_i8(b[..., 192:208])))


def _decode_iq4_xs(b: jax.Array) -> jax.Array:
    group = jnp.arange(8)
    low = b[..., 4 + group // 2] >> (4 * (group % 2)).astype(jnp.uint8) & 15
    high = b[..., 2 + group // 4] >> (2 * (group % 4)).astype(jnp.uint8) & 3
    levels = _levels(_flat(_nibbles(_runs(b[..., 8:136], 16))))
    return _grouped(levels, _f16(b, 0) * _f32(_i8(low | high << 4) - 32))


DECODERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "F32": _decode_f32, "F16": _decode_f16, "BF16": _decode_bf16,
    "Q4_0": _decode_q4_0, "Q4_1": _decode_q4_1, "Q5_0": _decode_q5_0, "Q5_1": _decode_q5_1,
    "Q8_0": _decode_q8_0, "Q2_K": _decode_q2_k, "Q3_K": _decode_q3_k, "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k, "Q6_K": _decode_q6_k, "IQ4_NL": _decode_iq4_nl, "IQ4_XS": _decode_iq4_xs,
}  # fmt: skip
