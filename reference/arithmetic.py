"""The three arithmetics in which the oracle can compute, by name.

    f64    truth: the weights the file says (decoded to f32, a definition) and everything else in binary64
    f32    the same equations in binary32, as a careful engine without activation quantisation computes
    ggml   what llama.cpp computes: activations rounded to 8-bit blocks before every matrix product, integer
           block dots, keys and values rounded to f16; the rest in binary32

An arithmetic is part of every result. Comparing two of them without saying so is how rounding gets mistaken
for a bug (and a bug for rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from assay.formats.errors import InputError


class Arithmetic(NamedTuple):
    """``dtype`` of every activation; ``block_dots`` and ``f16_cache`` are the two ways ggml departs from it.

    ``rounded(tensor, x)``, if there is one, stands for x wherever the matrix ``tensor`` is multiplied with it.
    """

    name: str
    dtype: np.dtype
    block_dots: bool = False
    f16_cache: bool = False
    rounded: Callable[[str, np.ndarray], np.ndarray] | None = None


ARITHMETICS = {
    "f64": Arithmetic("f64", np.dtype(np.float64)),
    "f32": Arithmetic("f32", np.dtype(np.float32)),
    "ggml": Arithmetic("ggml", np.dtype(np.float32), block_dots=True, f16_cache=True),
}


def arithmetic(name: str) -> Arithmetic:
    """The arithmetic called ``name``; InputError lists the names if there is none."""
    if name not in ARITHMETICS:
        raise InputError(f"the reference has no arithmetic {name!r}", where="--arith",
                         remedy=f"Choose one of {', '.join(ARITHMETICS)}")  # fmt: skip
    return ARITHMETICS[name]
