"""Mutants of what is computed: norms, positions, attention, cache, feed-forward, residual stream, precision."""

from __future__ import annotations

from collections.abc import Callable

from assay.parity.mutants.record import (
    EVERY_LAYER,
    Activation,
    Angles,
    Mutant,
    Seam,
    Site,
    Source,
    Twin,
    Where,
)

ROPE, NORM, ATTENTION, CACHE = "RoPE", "norms", "attention and GQA", "KV cache"
MLP, RESIDUAL, BATCH, CHUNK, DECODE = "MLP", "residual", "batching and padding", "chunked prefill", "decode only"
PRECISION, JIT = "precision claimed but not kept", "jit"
ONE_ROW = (17, 18)
ALL_TOKENS = Where()


def scaled(name: str, family: str, by: float, seam: Callable[[float], Seam], bug: int | None = None,
           site: Site = None) -> Mutant:  # fmt: skip
    """A mutant with sizes: ``seam(by)`` at size 1."""
    return Mutant(name, family, seam(by), site, bug, scalable=lambda size: seam(by * size))


def gain(stage: str, layer: int | None = EVERY_LAYER, channels: tuple[int, int] | None = None,
         where: Where = ALL_TOKENS) -> Callable[[float], Seam]:  # fmt: skip
    """An activation too large by a share, to be given."""
    return lambda by: Activation(stage, layer, gain=1 + by, channels=channels, where=where)


def of(family: str, name: str, seam: Seam, site: Site = None, bug: int | None = None) -> Mutant:
    """A mutant of one size."""
    return Mutant(name, family, seam, site, bug)


NORMS = (
    scaled("eps ten times too large", NORM, 9, lambda by: Twin(eps=1 + by), 8, ("attn_norm", 0)),
    of(NORM, "eps a thousand times too large", Twin(eps=1000), ("attn_norm", 0)),
    of(NORM, "eps left out", Twin(eps=0), ("attn_norm", 0)),
    of(NORM, "the gain is one too large", Twin(gain_plus=1), ("attn_norm", 0)),
    scaled("divided by n - 1", NORM, -1 / 512, gain("attn_norm")),
    of(NORM, "the final norm left at its gain's sign", Activation("final_norm", None, gain=-1)),
    of(NORM, "a norm of another place: its channels moved on", Activation("ffn_norm", order="one"), bug=18),
    scaled("a norm of layer 2 too large by a thousandth", NORM, 1e-3, gain("ffn_norm", 2)),
    scaled("a norm wrong at control tokens only", NORM, -0.569, gain("attn_norm", where=Where(special=True)), 8),
)
POSITIONS = (
    of(ROPE, "neighbours are paired", Twin(neighbours=True), ("q_rope", 0), 10),
    of(ROPE, "theta a hundred times too large", Angles(theta=100), ("q_rope", 0), 11),
    of(ROPE, "theta halved", Angles(theta=0.5), ("q_rope", 0), 9),
    of(ROPE, "turned the other way round", Twin(backwards=True), ("q_rope", 0)),
    of(ROPE, "not at all", Twin(turned=0), ("q_rope", 0), 10),
    of(ROPE, "half of the dimensions", Twin(turned=0.5), ("q_rope", 0)),
    of(ROPE, "all dimensions but the last pair", Twin(turned=0.97), ("q_rope", 0)),
    scaled("queries one position further on", ROPE, 1, lambda by: Twin(q_turn=by), None, ("q_rope", 0)),
    scaled("keys one position further on", ROPE, 1, lambda by: Twin(k_turn=by), None, ("k_rope", 0)),
    of(ROPE, "both one position further on", Twin(q_turn=1, k_turn=1), ("q_rope", 0)),
    of(ROPE, "angles in f32", Angles(single=True), ("q_rope", 0)),
    of(ROPE, "positions from 64 on begin again", Angles(repeats_after=64), ("q_rope", 0)),
    of(ROPE, "positions from 256 on begin again", Angles(repeats_after=256), ("q_rope", 0)),
    of(ROPE, "positions from 128 on stand still", Angles(stands_at=128), ("q_rope", 0)),
    of(ROPE, "values are turned, too: keys of layer 3 not", Activation("k_rope", 3, order="one")),
)
HEADS = (
    scaled("scores too large by a factor of sqrt 2", ATTENTION, 0.41421356, lambda by: Twin(score=1 + by), None,
           ("attention", 0)),
    of(ATTENTION, "scores not divided", Twin(score=8), ("attention", 0)),
    of(ATTENTION, "one position ahead is seen", Twin(ahead=1), ("attention", 0)),
    of(ATTENTION, "the own position is not seen", Twin(ahead=-1), ("attention", 0)),
    of(ATTENTION, "heads are tiled over the key heads", Twin(tiled=True), ("attention", 0)),
    of(ATTENTION, "the first position is not read", Twin(lost=(0, 1)), ("attention", 0)),
    of(ATTENTION, "positions 32 to 48 are not read", Twin(lost=(32, 48)), ("attention", 0)),
    of(ATTENTION, "positions from 256 on are not read", Twin(lost=(256, 1 << 20)), ("attention", 0)),
    of(ATTENTION, "two heads exchanged in layer 1", Activation("attention", 1, order="heads")),
    scaled("one head of layer 2 too large by a tenth", ATTENTION, 0.1, gain("attention", 2, (64, 128))),
    scaled("one channel of one head doubled", ATTENTION, 1.0, gain("attention", 3, (70, 71))),
    of(ATTENTION, "no rescaling between blocks", Source(
        "attention.attention", "mixed * fade + multiply", "mixed + multiply", compiled=True), ("attention", 0)),
    of(ATTENTION, "the sum is not rescaled between blocks", Source(
        "attention.attention", "total = total * fade + weights", "total = total + weights", compiled=True),
       ("attention", 0)),
    of(ATTENTION, "the query bias lost", Activation("q_bias", offset=0, gain=0), None, 7),
)  # fmt: skip
CACHED = (
    of(CACHE, "written one position too far", Twin(written=1), ("attention", 0)),
    of(CACHE, "slots past 32 read one too far", Twin(late=(32, 0)), ("attention", 0)),
    of(CACHE, "slots past 256 read one too far", Twin(late=(256, 0)), ("attention", 0)),
    of(CACHE, "written into the next layer's", Twin(layers_on=1), ("attention", 0)),
    of(CACHE, "values of a batch one sequence on", Twin(sequences_on=1), ("attention", 0), 20),
    of(CACHE, "kept in 8 bits", Twin(cache_levels=127), ("attention", 0)),
    of(CACHE, "kept in 4 bits", Twin(cache_levels=7), ("attention", 0)),
    of(CACHE, "kept in bf16", Twin(cache_bits=7), ("attention", 0)),
    of(CACHE, "kept with 5 bits", Twin(cache_bits=4), ("attention", 0)),
    of(CACHE, "keys from a cache in use on moved on by one", Activation("k_rope", order="one", where=Where(warm=True))),
    of(CACHE, "joined in reverse order", Source(
        "attention.KVCache.join", "[cache.v for cache in caches]", "[cache.v for cache in caches[::-1]]")),
    of(CACHE, "nothing is forgotten when a prompt is edited", Source(
        "attention.KVCache.truncate", "del self.ids[n_tokens:]", "del self.ids[n_tokens + 1:]"), None, 21),
    of(CACHE, "growing shifts the values", Source(
        "attention.KVCache.reserve", "[(0, 0)] * 3 + [more, (0, 0)]", "[(0, 0)] * 3 + [more[::-1], (0, 0)]")),
    of(CACHE, "a reused prefix is one too long", Source(
        "generate.read_prompt", "cache.truncate(known)", "cache.truncate(known - 1 if known else 0)")),
)  # fmt: skip
FEED_FORWARD = (
    of(MLP, "gate and up exchanged, as far as silu sees it", Activation("ffn_silu", order="reversed")),
    scaled("gelu's tail: silu too large by two hundredths", MLP, 0.02, gain("ffn_silu")),
    of(MLP, "silu left out of one layer's sign", Activation("ffn_silu", 1, gain=-1)),
    scaled("one channel of swiglu doubled", MLP, 1.0, gain("ffn_swiglu", 1, ONE_ROW)),
    of(MLP, "the first half of up only", Activation("ffn_up", 2, gain=0, channels=(384, 1 << 20))),
    scaled("down's output too large by a thousandth", MLP, 1e-3, gain("ffn_out")),
    of(MLP, "an infinity", Activation("ffn_out", 0, offset=float("inf"), channels=(9, 10)), None, 15),
    of(MLP, "a channel of down's output lost", Activation("ffn_out", 3, gain=0, channels=(50, 51))),
)
STREAM = (
    of(RESIDUAL, "the residual doubled in one layer", Activation("attn_residual", 3, gain=2)),
    of(RESIDUAL, "the residual lost after attention", Activation("attn_out", 1, gain=0)),
    of(RESIDUAL, "the feed-forward of the last layer left out", Activation("ffn_out", 3, gain=0)),
    scaled("the residual too large by a thousandth", RESIDUAL, 1e-3, gain("ffn_residual", 1)),
    of(RESIDUAL, "one channel lost", Activation("ffn_residual", 2, gain=0, channels=(200, 201))),
    of(RESIDUAL, "the stream kept in bf16", Activation("ffn_residual", keep_bits=7)),
)
PLACES = (
    scaled("position 5 only", DECODE, 0.5, gain("ffn_up", 1, where=Where(first=5, stop=6))),
    scaled("position 60 only", DECODE, 0.5, gain("ffn_up", 1, where=Where(first=60, stop=61))),
    scaled("positions from 256 on", CHUNK, 0.5, gain("ffn_up", 1, where=Where(first=256))),
    scaled("control tokens only", CHUNK, 0.5, gain("ffn_gate", 0, where=Where(special=True))),
    scaled("row 3 of a batch only", BATCH, 0.5, gain("ffn_up", 1, where=Where(sequence=3))),
    scaled("row 1 of a batch only", BATCH, 0.5, gain("attention", 1, where=Where(sequence=1))),
    of(BATCH, "row 2 of a batch: two heads exchanged", Activation("attention", 0, order="heads", where=Where(
        sequence=2))),
    of(BATCH, "row 1 of a batch in 8 bits coarser", Activation("ffn_norm", levels=15, where=Where(sequence=1))),
    scaled("from a cache in use only", CACHE, 0.5, gain("v_proj", 2, where=Where(warm=True))),
    scaled("chunks after the first only", CHUNK, 0.5, gain("v_proj", 1, where=Where(warm=True, steps=False))),
    of(CHUNK, "keys of chunks after the first in reverse", Activation("k_rope", 0, order="reversed", where=Where(
        warm=True, steps=False)), None, 20),
    of(CHUNK, "chunks after the first begin at 0", Source(
        "model.Model._read_chunk", "start = np.array([len(cache.ids)], np.int32)", "start = np.array([0], np.int32)")),
    of(CHUNK, "a chunk's last token is the one before", Source(
        "model.Model._read_chunk", "np.int32(len(ids))", "np.int32(len(ids) - 1)")),
    of(CHUNK, "padding is read as tokens", Source(
        "model.Model._read_chunk", "np.int32(len(ids))", "np.int32(padded.shape[1])")),
    scaled("one token at a time only: a gain", DECODE, 0.1, gain("ffn_out", 2, where=Where(chunks=False)), 2),
    of(DECODE, "one token at a time only: two heads exchanged", Activation("attention", 1, order="heads", where=Where(
        chunks=False))),
    of(DECODE, "one token at a time only: the keys' bias lost", Activation("k_bias", 2, gain=0, where=Where(
        chunks=False)), None, 7),
    of(DECODE, "one token at a time only: the residual kept in bf16", Activation(
        "attn_residual", keep_bits=7, where=Where(chunks=False))),
)  # fmt: skip
CLAIMED = (
    of(PRECISION, "8-bit activations before gate and up", Activation("ffn_norm", levels=127), None, 30),
    of(PRECISION, "8-bit activations before q, k and v", Activation("attn_norm", levels=127), None, 30),
    of(PRECISION, "7-bit activations before down", Activation("ffn_swiglu", levels=63)),
    of(PRECISION, "6-bit activations before the output projection", Activation("attention", levels=31)),
    of(PRECISION, "4-bit activations before gate and up of one layer", Activation("ffn_norm", 2, levels=7)),
    of(PRECISION, "7-bit activations before the head", Activation("final_norm", None, levels=63)),
    of(PRECISION, "activations in bf16 everywhere in one layer", Activation("attn_residual", 1, keep_bits=7)),
    of(PRECISION, "queries in bf16", Activation("q_rope", keep_bits=7)),
    of(PRECISION, "the norm's result with 9 bits", Activation("ffn_norm", keep_bits=8)),
    of(PRECISION, "swiglu in f16", Activation("ffn_swiglu", keep_bits=10)),
    of(JIT, "a stage in another type: values in fp8", Activation("v_bias", keep_bits=3)),
    of(JIT, "a stage in another type: the gate with 3 bits", Activation("ffn_gate", keep_bits=3)),
    of(JIT, "a stale constant: the first step's draw for a whole burst", Source(
        "steps.decode", "counter + i", "counter", compiled=True)),
    of(JIT, "a stale constant: the first step's position for a whole burst", Source(
        "steps.decode", "start + i", "start", compiled=True), None, 9),
)

ALL = (*NORMS, *POSITIONS, *HEADS, *CACHED, *FEED_FORWARD, *STREAM, *PLACES, *CLAIMED)
