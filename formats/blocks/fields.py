"""Which bytes of a block are which field, for a dump that names them. The decoders do not use this table.

A packed field is described by ``planes = (bits, run)``: within each run of ``run`` bytes all low ``bits`` come first,
then the next ones (formats/blocks/packing.py draws it). The bytes themselves are drawn in formats/blocks/TYPE.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class BlockField(NamedTuple):
    """``length`` bytes from ``offset`` of a block; ``kind`` is f16, i8, packed, scales or u16."""

    name: str
    offset: int
    length: int
    kind: str
    planes: tuple[int, int] | None = None


def _fields(*rows: tuple[str, int, str, tuple[int, int] | None]) -> tuple[BlockField, ...]:
    at, fields = 0, []
    for name, length, kind, planes in rows:
        fields.append(BlockField(name, at, length, kind, planes))
        at += length
    return tuple(fields)


_D, _MIN, _DMIN = ("d", 2, "f16", None), ("m", 2, "f16", None), ("dmin", 2, "f16", None)
_QS16, _QH4 = ("qs", 16, "packed", (4, 16)), ("qh", 4, "packed", (1, 1))
_K_SCALES = ("scales", 12, "scales", None)

FIELDS: dict[str, tuple[BlockField, ...]] = {
    "Q4_0": _fields(_D, _QS16),
    "Q4_1": _fields(_D, _MIN, _QS16),
    "Q5_0": _fields(_D, _QH4, _QS16),
    "Q5_1": _fields(_D, _MIN, _QH4, _QS16),
    "Q8_0": _fields(_D, ("qs", 32, "i8", None)),
    "Q2_K": _fields(("scales", 16, "scales", None), ("qs", 64, "packed", (2, 32)), _D, _DMIN),
    "Q3_K": _fields(("hmask", 32, "packed", (1, 32)), ("qs", 64, "packed", (2, 32)), _K_SCALES, _D),
    "Q4_K": _fields(_D, _DMIN, _K_SCALES, ("qs", 128, "packed", (4, 32))),
    "Q5_K": _fields(_D, _DMIN, _K_SCALES, ("qh", 32, "packed", (1, 32)), ("qs", 128, "packed", (4, 32))),
    "Q6_K": _fields(("ql", 128, "packed", (4, 64)), ("qh", 64, "packed", (2, 32)), ("scales", 16, "i8", None), _D),
    "IQ4_NL": _fields(_D, _QS16),
    "IQ4_XS": _fields(_D, ("scales_h", 2, "u16", None), ("scales_l", 4, "scales", None),
                      ("qs", 128, "packed", (4, 16))),
}  # fmt: skip


def meaning(field: BlockField, raw: bytes, start: int, stop: int) -> str:
    """What the bytes ``start:stop`` of a field's ``raw`` bytes say, in a few words."""
    if field.kind == "f16":
        return f"{np.frombuffer(raw, '<f2')[0]:.6g}"
    if field.kind == "i8":
        return " ".join(str(value) for value in np.frombuffer(raw[start:stop], np.int8))
    if field.kind == "u16":
        return f"{int.from_bytes(raw, 'little'):#06x}"
    if field.planes is None:
        return "packed, decoded below"
    return _elements(*field.planes, start, stop)


def _elements(bits: int, run: int, start: int, stop: int) -> str:
    """Which elements the bytes ``start:stop`` of a packed field hold, from the low bits to the high ones."""
    per_byte = 8 // bits
    if run == 1:
        return f"1 bit each: e{start * per_byte}..{stop * per_byte - 1}"
    at, n = start // run * per_byte * run + start % run, stop - start
    firsts = [at + plane * run for plane in range(per_byte)]
    if per_byte == 2:
        return f"low e{firsts[0]}..{firsts[0] + n - 1}, high e{firsts[1]}..{firsts[1] + n - 1}"
    unit = "1 bit" if bits == 1 else f"{bits} bits"
    return f"{unit} each: e{firsts[0]}.. e{firsts[1]}.. to e{firsts[-1]}..{firsts[-1] + n - 1}"
