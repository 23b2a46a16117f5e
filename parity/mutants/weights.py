"""Mutants of what is stored: decoders that misread blocks; weights of which a matrix, row, block or scale is off."""

from __future__ import annotations

import numpy as np

from assay.parity.mutants import blocks
from assay.parity.mutants.record import Bytes, Change, Mutant

DECODING, WEIGHTS, HEAD = "block decoding", "weights", "embedding and head"
EVERYTHING = "blk.*.weight"


def decoder(name: str, change: Change, *types: str, bug: int | None = None, tensors: str = EVERYTHING) -> Mutant:
    """A type that is decoded wrongly, wherever it occurs."""
    return Mutant(name, DECODING, Bytes(tensors, change, types), real_bug=bug)


def off(name: str, tensors: str, by: float, rows: slice = slice(None), parts: slice = slice(None)) -> Mutant:
    """Weights that are too large by a share ``by``."""
    return Mutant(name, WEIGHTS, Bytes(tensors, blocks.scaled(1 + by, rows, parts)),
                  scalable=lambda size: Bytes(tensors, blocks.scaled(1 + by * size, rows, parts)))  # fmt: skip


DECODERS = (
    decoder("Q4_K: nibbles exchanged", blocks.in_blocks(blocks.nibbles_exchanged), "Q4_K"),
    decoder("Q4_K: elements of a run interleaved", blocks.in_blocks(blocks.elements_interleaved), "Q4_K", bug=19),
    decoder("Q4_K: upper bits of scales not read", blocks.in_blocks(blocks.scales_without_upper_bits), "Q4_K"),
    decoder("Q4_K: scales and mins exchanged", blocks.in_blocks(blocks.mins_are_scales), "Q4_K"),
    decoder("Q4_K: the next group's scale", blocks.in_blocks(blocks.scales_moved_on), "Q4_K"),
    decoder("Q4_K: min with the wrong sign", blocks.factors(np.negative, 1), "Q4_K"),
    decoder("Q4_K: min lost", blocks.factors(np.zeros_like, 1), "Q4_K"),
    decoder("Q4_K: the block before", blocks.in_blocks(blocks.next_block), "Q4_K"),
    decoder("Q6_K: nibbles exchanged", blocks.in_blocks(blocks.nibbles_exchanged), "Q6_K"),
    decoder("Q6_K: high bits lost", blocks.in_blocks(blocks.high_bits_lost), "Q6_K"),
    decoder("Q6_K: runs of high bits exchanged", blocks.in_blocks(blocks.high_bits_contiguous), "Q6_K", bug=19),
    decoder("Q6_K: scales without a sign", blocks.in_blocks(blocks.scales_unsigned), "Q6_K"),
    decoder("Q6_K: the next group's scale", blocks.in_blocks(blocks.scales_moved_on), "Q6_K"),
    decoder("Q6_K: d is dmin's place, so of the block before", blocks.in_blocks(blocks.next_block), "Q6_K"),
    decoder("subnormal scales read as zero", blocks.factors(blocks.flushed), "Q4_K", "Q6_K"),
    decoder("scales kept as bf16", blocks.factors(blocks.as_bf16), "Q4_K", "Q6_K"),
)

ONE = slice(0, 1)
MATRICES = (
    off("ffn_up of layer 1 too large by a tenth", "blk.1.ffn_up.weight", 0.1),
    off("ffn_down of layer 2 too large by a tenth", "blk.2.ffn_down.weight", 0.1),
    off("attn_q of layer 0 too large by a tenth", "blk.0.attn_q.weight", 0.1),
    off("attn_k of layer 2 too large by a tenth", "blk.2.attn_k.weight", 0.1),
    off("attn_v of layer 3 too large by a tenth", "blk.3.attn_v.weight", 0.1),
    off("attn_output of layer 1 too large by a tenth", "blk.1.attn_output.weight", 0.1),
    off("all matrices too large by a hundredth", "blk.*.weight", 0.01),
    off("a row of ffn_gate too large by a half", "blk.0.ffn_gate.weight", 0.5, slice(17, 18)),
    off("a row of attn_k too large by a half", "blk.1.attn_k.weight", 0.5, slice(5, 6)),
    off("a row of ffn_down too large by a half", "blk.3.ffn_down.weight", 0.5, slice(99, 100)),
    off("a block of ffn_up doubled", "blk.2.ffn_up.weight", 1.0, slice(40, 41), ONE),
    off("a block of attn_output doubled", "blk.0.attn_output.weight", 1.0, slice(7, 8), ONE),
    Mutant("a row of attn_q with its sign turned", WEIGHTS,
           Bytes("blk.2.attn_q.weight", blocks.scaled(-1, slice(33, 34)))),
    Mutant("a row of ffn_up lost", WEIGHTS, Bytes("blk.3.ffn_up.weight", blocks.scaled(0, slice(100, 101)))),
    Mutant("a block of attn_v lost", WEIGHTS, Bytes("blk.1.attn_v.weight", blocks.scaled(0, slice(3, 4), ONE))),
    Mutant("a bit of one weight of ffn_up turned", WEIGHTS,
           Bytes("blk.1.ffn_up.weight", blocks.in_blocks(blocks.one_number, slice(9, 10), ONE))),
    Mutant("a bit of one weight of attn_q turned", WEIGHTS,
           Bytes("blk.0.attn_q.weight", blocks.in_blocks(blocks.one_number, slice(9, 10), ONE))),
    Mutant("rows of ffn_gate moved on by one", WEIGHTS, Bytes("blk.1.ffn_gate.weight", blocks.rows_moved_on)),
    Mutant("two rows of attn_k exchanged", WEIGHTS, Bytes("blk.2.attn_k.weight", blocks.rows_exchanged(1, 34))),
    Mutant("attn_output with columns of another layout", WEIGHTS, real_bug=12,
           seam=Bytes("blk.*.attn_output.weight", blocks.in_blocks(blocks.elements_interleaved))),
    Mutant("rows of all matrices moved on by one", WEIGHTS, Bytes("blk.*.weight", blocks.rows_moved_on), real_bug=28),
    Mutant("a gain of a norm lost", "norms", Bytes("blk.2.ffn_norm.weight", blocks.factors(np.ones_like))),
    Mutant("gains of a norm kept as bf16", "norms", Bytes("blk.*.attn_norm.weight", blocks.factors(blocks.as_bf16))),
)  # fmt: skip


def head(name: str, change: Change, used_as: str = "head", bug: int | None = None) -> Mutant:
    """A fault of the embedding, or of the head, which in a small model are one matrix."""
    return Mutant(name, HEAD, Bytes("token_embd.weight", change, used_as=used_as), real_bug=bug)


EMBEDDINGS = (
    head("embedding: each token the row before its own", blocks.rows_moved_on, "lookup"),
    head("embedding: one row of a common token off by a tenth", blocks.scaled(1.1, slice(198, 199)), "lookup"),
    head("embedding: one row of a rare token doubled", blocks.scaled(2, slice(1999, 2000)), "lookup"),
    head("embedding: the last sixteenth lost", blocks.scaled(0, slice(1920, None)), "lookup"),
    head("head: rows moved on by one", blocks.rows_moved_on),
    head("head: a sixteenth of the rows exchanged with the next", lambda raw, _: np.concatenate(
        [raw[128:256], raw[:128], raw[256:]])),
    head("head: one row doubled", blocks.scaled(2, slice(198, 199))),
    head("head: one row of a rare token doubled", blocks.scaled(2, slice(1999, 2000))),
    Mutant("head: all logits too large by three hundredths", HEAD,
           Bytes("token_embd.weight", blocks.scaled(1.03), used_as="head"),
           scalable=lambda size: Bytes("token_embd.weight", blocks.scaled(1 + 0.03 * size), used_as="head")),
    head("head: computed with the matrix in another order", blocks.in_blocks(blocks.nibbles_exchanged), bug=6),
    head("tie broken: another matrix is the head", lambda raw, _: raw[::-1].copy()),
)  # fmt: skip

ALL = (*DECODERS, *MATRICES, *EMBEDDINGS)
