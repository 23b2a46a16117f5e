"""A tensor's bytes and values where a second reader says that they lie, decoded by the ``gguf`` package."""

from __future__ import annotations

from math import prod

import numpy as np

from assay.judging.independent.apr_by_spec import q4, q8
from assay.judging.independent.reading import Place

WHOLE = {"APR_Q4": q4, "APR_Q8": q8}
"""Types whose blocks do not keep to rows."""


def bytes_of(place: Place, start: int, stop: int) -> np.ndarray:
    """Rows ``start:stop`` as they are stored, u8 [n bytes]; none of what lies beyond the end of the file."""
    row = place.nbytes // prod(place.shape[:-1])
    return stored(place, start * row, (stop - start) * row)


def stored(place: Place, at: int, n: int) -> np.ndarray:
    """``n`` bytes of a tensor from ``at`` on, u8 [n]."""
    with open(place.path, "rb") as file:
        return np.fromfile(file, np.uint8, n, offset=place.offset + at)


def values_of(place: Place, start: int, stop: int) -> np.ndarray:
    """Rows ``start:stop`` decoded, f32 [n_rows, shape[-1]]."""
    if place.type in WHOLE:
        whole = WHOLE[place.type](stored(place, 0, place.nbytes), prod(place.shape))
        return whole.reshape(-1, place.shape[-1])[start:stop]
    import gguf
    from gguf import quants

    raw = bytes_of(place, start, stop).reshape(stop - start, -1)
    return quants.dequantize(raw, gguf.GGMLQuantizationType[place.type])[:, : place.shape[-1]]
