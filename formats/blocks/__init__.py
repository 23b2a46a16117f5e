"""Block formats: the stored bytes of a tensor -> f32 values, or the integers they are made of, and back.

One file a type, its bytes drawn at the top. A float type has ``decode`` and ``encode``; a quantised type has
``unpack`` and ``HALVES_AT``, the byte offsets of its f16 numbers (d, then dmin or m), and ``pack`` if Assay can
write it. Which integers stand best for given values is not decided here but in ``formats/quantizers``. Each call
works on the whole of what it is given: the caller cuts a large tensor into pieces of some rows.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from assay.formats.blocks import (
    bf16,
    f16,
    f32,
    iq4_nl,
    iq4_xs,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
)
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.blocks.packing import half_field
from assay.formats.blocks.quants import Quants, reassemble
from assay.formats.contract.arguments import checked
from assay.formats.errors import ModelError

_FLOAT: dict[str, ModuleType] = {"F32": f32, "F16": f16, "BF16": bf16}
_QUANTISED: dict[str, ModuleType] = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0,
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
    "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs,
}  # fmt: skip

DECODABLE: tuple[str, ...] = (*_FLOAT, *_QUANTISED)
ENCODABLE: tuple[str, ...] = (*_FLOAT, *(name for name, module in _QUANTISED.items() if hasattr(module, "pack")))

__all__ = ["DECODABLE", "ENCODABLE", "Quants", "dequantize", "encode", "finite", "pack", "unpack"]


@checked
def dequantize(type_name: str, raw: np.ndarray) -> np.ndarray:
    """Decode rows of blocks: uint8 ``[..., row_bytes]`` -> a new f32 array ``[..., n_elements]``.

    Exact up to the one rounding of a type with a minimum, and bit-equal to ggml's own decoding.
    A scale that is NaN or infinite gives such values without a warning; `finite` is there to ask first.
    Raises ModelError for a type that cannot be decoded and for rows that are not whole blocks.
    """
    with np.errstate(invalid="ignore"):
        if type_name in _FLOAT:
            _require_whole_blocks(type_name, raw)
            return _FLOAT[type_name].decode(raw)
        values = reassemble(unpack(type_name, raw))
    return values.reshape(*raw.shape[:-1], values.shape[-2] * values.shape[-1])


@checked
def unpack(type_name: str, raw: np.ndarray) -> Quants:
    """Take rows of blocks apart: uint8 ``[..., row_bytes]`` -> Quants of arrays ``[..., n_blocks, ...]``.

    Raises ModelError for a type that is not quantised and for rows that are not whole blocks.
    """
    module = _quantised_module(type_name)
    leading = (*raw.shape[:-1], _require_whole_blocks(type_name, raw))
    quants = module.unpack(raw.reshape(-1, BY_NAME[type_name].block_bytes))
    present = {name: field for name, field in quants._asdict().items() if field is not None}
    return Quants(**{name: field.reshape(*leading, *field.shape[1:]) for name, field in present.items()})


@checked
def pack(type_name: str, quants: Quants) -> np.ndarray:
    """Put blocks together: Quants of arrays ``[..., n_blocks, ...]`` -> uint8 ``[..., row_bytes]``.

    The inverse of `unpack`. d and dmin are rounded to f16; integers must lie in the range that ``unpack`` states.
    Raises ModelError for a type that Assay cannot write.
    """
    module = _quantised_module(type_name)
    if type_name not in ENCODABLE:
        raise ModelError(f"{type_name} is a type that Assay can read but not write", where="block encoder",
                         remedy=f"It writes {', '.join(ENCODABLE)}")
    leading = quants.d.shape
    fields = {name: field for name, field in quants._asdict().items() if field is not None}
    flat = Quants(**{name: field.reshape(-1, *field.shape[len(leading) :]) for name, field in fields.items()})
    return module.pack(flat).reshape(*leading[:-1], leading[-1] * BY_NAME[type_name].block_bytes)


@checked
def encode(type_name: str, values: np.ndarray) -> np.ndarray:
    """Store f32 ``[..., n]`` in a float type: uint8 ``[..., row_bytes]``, rounded to nearest, ties to even.

    What is too large for F16 or BF16 becomes infinite, without a warning. Raises ModelError for any other type.
    """
    if type_name not in _FLOAT:
        raise ModelError(f"{type_name} is not a float type", where="block encoder",
                         remedy=f"Use {', '.join(_FLOAT)}, or quantise the values")
    with np.errstate(over="ignore"):
        return _FLOAT[type_name].encode(values)


@checked
def finite(type_name: str, raw: np.ndarray) -> bool:
    """Whether no value of uint8 ``[..., row_bytes]`` is NaN or infinite.

    Finite d and dmin make finite values (the integers are small), so a quantised type is judged by the two or
    four bytes of its f16 numbers alone. Raises ModelError as `dequantize` does.
    """
    if type_name in _FLOAT:
        return bool(np.isfinite(dequantize(type_name, raw)).all())
    module = _quantised_module(type_name)
    _require_whole_blocks(type_name, raw)
    blocks = raw.reshape(-1, BY_NAME[type_name].block_bytes)
    return all(bool(np.isfinite(half_field(blocks, at)).all()) for at in module.HALVES_AT)


def _quantised_module(type_name: str) -> ModuleType:
    if type_name not in _QUANTISED:
        kind = "float type, which has no quantised blocks" if type_name in _FLOAT else "type that Assay cannot decode"
        names = _QUANTISED if type_name in _FLOAT else DECODABLE
        raise ModelError(f"{type_name} is a {kind}", where="block decoder",
                         remedy=f"Use a model whose tensors are {', '.join(names)}")
    return _QUANTISED[type_name]


def _require_whole_blocks(type_name: str, raw: np.ndarray) -> int:
    block_bytes = BY_NAME[type_name].block_bytes
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % block_bytes:
        raise ModelError(f"rows of {type_name} must be uint8 and a multiple of {block_bytes} bytes, "
                         f"not {raw.dtype} {list(raw.shape)}", where="block decoder",
                         remedy="The tensor's shape and its type disagree; fetch the file again")
    return raw.shape[-1] // block_bytes
