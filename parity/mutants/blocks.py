"""Changes of encoded blocks: how a decoder goes wrong, written as the bytes that the right decoder would need for it.

Layouts: ``formats/blocks``. Each change takes rows of blocks, uint8 [n_rows, row_bytes], and returns others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME
from assay.parity.mutants.record import Change

HALVES = {"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,)}  # fmt: skip
"""Where in a block its f16 factors stand: d, and dmin where there is one."""
NIBBLES = {"Q4_0": slice(2, 18), "Q5_0": slice(6, 22), "Q4_K": slice(16, 144), "Q6_K": slice(0, 128)}


def in_blocks(edit: Callable[[np.ndarray, str], None], rows: slice = slice(None),
              blocks: slice = slice(None)) -> Change:  # fmt: skip
    """``edit`` applied in place to some rows' blocks, uint8 [n_rows, n_blocks, block_bytes]."""

    def change(raw: np.ndarray, type_name: str) -> np.ndarray:
        out = raw.copy()
        each = out.reshape(len(out), -1, BY_NAME[type_name].block_bytes)
        part = each[rows, blocks].copy()
        edit(part, type_name)
        each[rows, blocks] = part
        return out

    return change


def factors(multiply: Callable[[np.ndarray], np.ndarray], which: int | None = None, rows: slice = slice(None),
            blocks: slice = slice(None)) -> Change:  # fmt: skip
    """The f16 factors of blocks (``which`` of them: 0 is d, 1 is dmin), or the values of a type without blocks."""

    def edit(part: np.ndarray, type_name: str) -> None:
        if type_name == "F32":
            part[...] = multiply(part.view(np.float32)).astype(np.float32).view(np.uint8)
            return
        places = HALVES[type_name]
        for at in places if which is None else places[which : which + 1]:
            half = np.ascontiguousarray(part[..., at : at + 2]).view(np.float16)
            part[..., at : at + 2] = multiply(half.astype(np.float32)).astype(np.float16).view(np.uint8)

    return in_blocks(edit, rows, blocks)


def scaled(by: float, rows: slice = slice(None), blocks: slice = slice(None)) -> Change:
    """Weights times ``by``."""
    return factors(lambda x: x * np.float32(by), None, rows, blocks)


def as_bf16(x: np.ndarray) -> np.ndarray:
    """f32 with the lower half of its bits cut off."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal f16 as zero."""
    return np.where(np.abs(x) < 2.0**-14, 0, x)


def nibbles_exchanged(part: np.ndarray, type_name: str) -> None:
    """High nibbles read as low ones."""
    packed = part[..., NIBBLES[type_name]]
    packed[...] = packed >> 4 | packed << 4


def elements_interleaved(part: np.ndarray, type_name: str) -> None:
    """Bytes of each run of 32 read two by two: another order of the elements."""
    packed = part[..., NIBBLES[type_name]]
    runs = packed.reshape(*packed.shape[:-1], -1, min(32, packed.shape[-1]))
    order = np.arange(runs.shape[-1]).reshape(2, -1).T.reshape(-1)
    packed[...] = runs[..., order].reshape(packed.shape)


def scales_without_upper_bits(part: np.ndarray, type_name: str) -> None:
    """Q4_K: bits 4 and 5 of the last four scales and mins are not read."""
    part[..., 4:12] &= 63


def mins_are_scales(part: np.ndarray, type_name: str) -> None:
    """Q4_K: the first four scales and mins in each other's place."""
    scales, mins = part[..., 4:8].copy(), part[..., 8:12].copy()
    part[..., 4:8], part[..., 8:12] = mins, scales


def scales_moved_on(part: np.ndarray, type_name: str) -> None:
    """The scale of the next group: of Q4_K's first four, of Q6_K's sixteen."""
    at = slice(4, 8) if type_name == "Q4_K" else slice(192, 208)
    part[..., at] = np.roll(part[..., at], 1, axis=-1)


def high_bits_lost(part: np.ndarray, type_name: str) -> None:
    """The fifth (Q5_0), or the two highest bits (Q6_K) of each number are not read."""
    part[..., slice(2, 6) if type_name == "Q5_0" else slice(128, 192)] = 0


def high_bits_contiguous(part: np.ndarray, type_name: str) -> None:
    """Q6_K: the two runs of high bits in each other's place."""
    part[..., 128:192] = np.roll(part[..., 128:192], 32, axis=-1)


def scales_unsigned(part: np.ndarray, type_name: str) -> None:
    """Q6_K: the sign of a scale is not read."""
    part[..., 192:208] &= 127


def one_number(part: np.ndarray, type_name: str) -> None:
    """The highest bit of one stored number is turned."""
    part[0, 0, {"Q4_K": 20, "Q6_K": 5, "F32": 2}.get(type_name, 8)] ^= 8


def next_block(part: np.ndarray, type_name: str) -> None:
    """Each block from the place of the one before it."""
    part[...] = np.roll(part, 1, axis=1) if part.shape[1] > 1 else np.roll(part, 1, axis=0)


def rows_moved_on(raw: np.ndarray, type_name: str) -> np.ndarray:
    """Each row from the place of the one before it."""
    return np.roll(raw, 1, axis=0)


def rows_exchanged(a: int, b: int) -> Change:
    """Two rows in each other's place."""

    def change(raw: np.ndarray, type_name: str) -> np.ndarray:
        out = raw.copy()
        out[[a, b]] = raw[[b, a]]
        return out

    return change
