"""IQ4_NL: 32 elements in 18 bytes, value = d * TABLE[index].

    byte    0      2                                        18
            +------+----------------------------------------+
            | d    | qs[0] qs[1] ...                 qs[15] |
            | f16  | low nibble: element j, high: 16 + j    |
            +------+----------------------------------------+

The sixteen levels lie closer together around zero, where most weights are ("NL": not linear).
Source: block_iq4_nl and kvalues_iq4nl in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from assay.formats.blocks.packing import half, planes
from assay.formats.blocks.quants import Quants, one_group

HALVES_AT = (0,)
TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def unpack(blocks: np.ndarray) -> Quants:
    """uint8 ``[n_blocks, 18]`` -> q from the table, -127..113, no group scales, no min."""
    q = np.take(TABLE, planes(blocks[:, 2:18], bits=4, run=16))
    return Quants(q, one_group(len(blocks)), half(blocks, 0))
