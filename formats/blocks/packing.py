"""How small integers and f16 numbers lie in the bytes of a block.

No ggml type packs neighbouring elements into one byte. A run of bytes holds several runs of elements, one
above the other: the low bits of all its bytes first, then the next bits, so that a vector instruction unpacks
a whole run with one shift. For a run of 4 bytes and 2 bits per element:

    bit     7 6   5 4   3 2   1 0
    byte 0  e12   e8    e4    e0
    byte 1  e13   e9    e5    e1
    byte 2  e14   e10   e6    e2
    byte 3  e15   e11   e7    e3

A run of one byte is the ordinary little-endian bit string. Source: ggml-quants.c, ggml-org/ggml.
"""

from __future__ import annotations

import numpy as np


def planes(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Unpack runs of ``run`` bytes, 8/bits elements a byte.

    ``out[(r * 8/bits + p) * run + j] = (packed[r * run + j] >> (p * bits)) & (2**bits - 1)``

    packed: uint8 ``[n_blocks, n_bytes]``, n_bytes a multiple of ``run``; bits: 1, 2 or 4.
    Returns uint8 ``[n_blocks, n_bytes * 8 / bits]``.
    """
    n_blocks, n_bytes = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    out = packed.reshape(n_blocks, n_bytes // run, 1, run) >> shifts[:, None]
    out &= np.uint8((1 << bits) - 1)
    return out.reshape(n_blocks, n_bytes * len(shifts))


def half(blocks: np.ndarray, offset: int) -> np.ndarray:
    """The little-endian f16 at byte ``offset`` of every block, widened to f32 ``[n_blocks]`` (exact)."""
    return half_field(blocks, offset).astype(np.float32)


def half_field(blocks: np.ndarray, offset: int) -> np.ndarray:
    """The f16 at byte ``offset`` of every block as stored, f16 ``[n_blocks]``, a view of the bytes."""
    return blocks[:, offset : offset + 2].view("<f2")[:, 0]


def pack_planes(values: np.ndarray, bits: int, run: int) -> np.ndarray:
    """The inverse of `planes`: uint8 ``[n_blocks, n]`` -> uint8 ``[n_blocks, n * bits / 8]``.

    ``packed[r * run + j] = OR over p of  (values[(r * 8/bits + p) * run + j] & (2**bits - 1)) << (p * bits)``

    Higher bits of a value are left out, so that a type which keeps them elsewhere need not mask them.
    """
    n_blocks, n = values.shape
    per_byte = 8 // bits
    runs = (values & np.uint8((1 << bits) - 1)).reshape(n_blocks, n // per_byte // run, per_byte, run)
    out = runs[:, :, 0]
    for p in range(1, per_byte):
        out = out | runs[:, :, p] << np.uint8(p * bits)
    return out.reshape(n_blocks, n // per_byte)


def halves(values: np.ndarray) -> np.ndarray:
    """f32 ``[n_blocks]`` -> the little-endian f16 bytes, uint8 ``[n_blocks, 2]``, rounded to nearest, ties to even."""
    return values.astype("<f2")[:, None].view(np.uint8)
