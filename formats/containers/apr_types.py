"""The storage types of an APR file, and the two that only APR has.

    code   name             stored as
    0 1 30 F32 F16 BF16     plain numbers, codes and bytes as ggml's
    12 14  Q4_K Q6_K        ggml's blocks of 256, each *row* padded to whole blocks
    3..7   F64 I32 I64 I8 U8  plain numbers; ggml means Q4_1, Q5_0, Q5_1 by 3, 6 and 7
    128    APR_Q4           blocks of 32, see below; 8 in files from before upstream's GH-438 (there Q8_0 is ggml's 8)
    129    APR_Q8           one scale for the whole tensor, see below; 9 in those files

APR_Q4, 18 bytes for 32 elements, the tensor's elements in one run, its last block padded:

    0   f16 scale          w = scale·(q − 8); a scale below the smallest normal f16 counts as 0
    2   16 bytes           element 2k in the low nibble of byte k, 2k + 1 in the high one

That is ggml's Q4_0 but for the order of the nibbles (there elements k and k + 16 share a byte), so a row of whole
blocks is handed on as Q4_0, which every engine knows. APR_Q8, 4 + n bytes for n elements:

    0   f32 scale          w = scale·q
    4   n x int8

Its rows are handed on as F32. Source: aprender, crates/apr-format (tensor_index_impl.rs, streaming_writer.rs).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import StorageType


class AprType(NamedTuple):
    """A storage type that ggml does not have."""

    name: str
    block_elements: int
    block_bytes: int


APR_Q4 = AprType("APR_Q4", 32, 18)
APR_Q8 = AprType("APR_Q8", 1, 1)
"""After four bytes of scale."""
CODES: dict[int, StorageType] = {
    0: BY_NAME["F32"], 1: BY_NAME["F16"], 30: BY_NAME["BF16"], 12: BY_NAME["Q4_K"], 14: BY_NAME["Q6_K"],
    3: BY_NAME["F64"], 4: BY_NAME["I32"], 5: BY_NAME["I64"], 6: BY_NAME["I8"], 7: AprType("U8", 1, 1),
    128: APR_Q4, 129: APR_Q8,
}  # fmt: skip
LEGACY_CODES = {8: APR_Q4, 9: APR_Q8}
CODE_OF = {kind.name: code for code, kind in CODES.items()}
SMALLEST_NORMAL = np.float16(2.0**-14)


def nbytes_of(kind: StorageType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor's data, unpadded, as an APR file stores it."""
    n_elements = prod(shape)
    if kind.name == APR_Q8.name:
        return 4 + n_elements if n_elements else 0
    if kind.name == APR_Q4.name:
        return -(-n_elements // 32) * 18
    row = shape[-1] if shape else 1
    return prod(shape[:-1]) * -(-row // kind.block_elements) * kind.block_bytes


def q4_as_q4_0(blocks: np.ndarray) -> np.ndarray:
    """APR_Q4 blocks, u8 [..., 18], as Q4_0 blocks of the same values, u8 [..., 18]."""
    nibbles = np.stack([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2")
    scale = np.where(np.abs(scale) < SMALLEST_NORMAL, np.float16(0), scale)
    return np.concatenate([scale.view(np.uint8), nibbles[..., :16] | nibbles[..., 16:] << 4], axis=-1)


def q4_values(raw: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Elements ``start:stop`` of a whole APR_Q4 tensor, u8 [nbytes], which may begin inside a block: f32."""
    first = start // 32
    blocks = raw.reshape(-1, 18)[first : -(-stop // 32)]
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    scale = np.where(np.abs(scale) < np.float32(SMALLEST_NORMAL), np.float32(0), scale)
    quants = np.stack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=-1).reshape(-1, 32).astype(np.float32) - 8
    return (scale * quants).reshape(-1)[start - 32 * first : stop - 32 * first]


def q8_values(raw: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Elements ``start:stop`` of a whole APR_Q8 tensor, u8 [nbytes]: f32."""
    with np.errstate(invalid="ignore"):  # a scale that is not a number is for the caller to find
        return raw[:4].view("<f4") * raw[4 + start : 4 + stop].view(np.int8).astype(np.float32)
