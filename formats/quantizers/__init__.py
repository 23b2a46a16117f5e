"""Quantisers: f32 values -> the stored bytes of a type, the same bytes that ggml's own quantiser makes of them.

    raw = quantize("Q4_K", values)        # f32 [..., n] -> uint8 [..., row_bytes]

Which integers and scales stand for the values is decided here, how they lie in bytes in ``formats/blocks``. Rows are
worked on in chunks that fit a processor's cache, on several threads (NumPy lets go of the interpreter as it computes);
neither changes a byte of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from assay.formats import blocks
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.blocks.quants import Quants
from assay.formats.contract.arguments import checked
from assay.formats.errors import InputError, NumericError
from assay.formats.quantizers.one_scale import q4_0, q4_1, q5_0, q5_1, q8_0
from assay.formats.quantizers.scale_and_min import q4_k, q5_k
from assay.formats.quantizers.signed_scale import q6_k
from assay.formats.system.cpus import processors

__all__ = ["CHUNK_ELEMENTS", "QUANTIZABLE", "processors", "quantize"]

_SEARCHES: dict[str, Callable[[np.ndarray], Quants]] = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
_FLOAT = ("F32", "F16", "BF16")
QUANTIZABLE: tuple[str, ...] = (*_FLOAT, *_SEARCHES)
CHUNK_ELEMENTS = 1 << 18
"""Elements worked on at once, 1 MiB an array: a handful fit the last cache, and Python takes little of the time."""


@checked
def quantize(type_name: str, values: np.ndarray, *, where: str = "values", first_row: int = 0,
             threads: int | None = None) -> np.ndarray:  # fmt: skip
    """Store rows of values in a type: f32 ``[..., n]`` -> uint8 ``[..., row_bytes]``.

    ``where`` names the values in errors, ``first_row`` is the number of their first row there; ``threads`` defaults to
    as many as there are processors.
    Raises InputError for a type that Assay cannot write, and for rows that are not whole blocks; NumericError, naming
    the first bad element, if a value is NaN or infinite, or so large that f16 cannot hold it or its block's scale.
    """
    kind = BY_NAME.get(type_name)
    if kind is None or type_name not in QUANTIZABLE:
        raise InputError(f"values cannot be quantised to {type_name}", where=where,
                         remedy=f"Use {', '.join(QUANTIZABLE)}")  # fmt: skip
    if values.dtype != np.float32 or values.ndim == 0 or values.shape[-1] % kind.block_elements:
        raise InputError(f"rows of {type_name} are made of f32, in multiples of {kind.block_elements}, "
                         f"not of {values.dtype} {list(values.shape)}", where=where,
                         remedy="Choose a type with smaller blocks, such as Q8_0 or F16")  # fmt: skip
    flat = np.ascontiguousarray(values).reshape(-1, kind.block_elements)
    out = np.empty((len(flat), kind.block_bytes), np.uint8)
    step = CHUNK_ELEMENTS // kind.block_elements

    def work(start: int) -> None:
        chunk = slice(start, start + step)
        _demand_finite(flat[chunk], lambda at: place(start * kind.block_elements + at))
        out[chunk] = _stored(type_name, flat[chunk])
        _demand_finite_scales(type_name, flat[chunk], out[chunk], lambda at: place(start * kind.block_elements + at))

    def place(element: int) -> str:
        index = [int(i) for i in np.unravel_index(element, values.shape)]
        return f"{where}{[index[0] + first_row, *index[1:]] if values.ndim > 1 else index}"

    starts = range(0, len(flat), step)
    if threads == 1 or len(starts) < 2:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(threads or processors()) as pool:
            list(pool.map(work, starts))
    return out.reshape(*values.shape[:-1], values.shape[-1] // kind.block_elements * kind.block_bytes)


def _stored(type_name: str, x: np.ndarray) -> np.ndarray:
    """f32 ``[n_blocks, block_elements]`` -> uint8 ``[n_blocks, block_bytes]``."""
    if type_name in _FLOAT:
        return blocks.encode(type_name, x)
    with np.errstate(all="ignore"):  # of 0/0 and x/0 in groups whose result is not used, and of what is refused later
        return blocks.pack(type_name, _SEARCHES[type_name](x)).reshape(len(x), -1)


def _demand_finite(x: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise NumericError if an element is NaN or infinite; ``place`` tells where the n-th element of x belongs."""
    finite = np.isfinite(x)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise NumericError(f"{x.reshape(-1)[at]} cannot be quantised", where=place(at),
                           remedy="The values are damaged; check where they come from")  # fmt: skip


def _demand_finite_scales(type_name: str, x: np.ndarray, raw: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise NumericError if a block's scale, or a value in F16 or BF16, became infinite."""
    if type_name == "F32" or blocks.finite(type_name, raw):
        return
    bad = next(i for i, block in enumerate(raw) if not blocks.finite(type_name, block))
    largest = int(np.abs(x[bad]).argmax())
    raise NumericError(f"{x[bad, largest]} is too large for {type_name}", where=place(bad * x.shape[1] + largest),
                       remedy="Store the tensor as F32")  # fmt: skip
