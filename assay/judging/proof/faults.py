"""A mutant's numbers as arrays, and what they do to an engine's functions.

Every seam of an engine is there once, in the clean engine too, and is steered by numbers; the numbers of no fault
change nothing. So a compiled engine compiles its programs once for all mutants, and clean and spoiled are one program.

``xp`` is the array library that the engine computes with: the same code serves both, as both have the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.formats.contract.config import STAGES, Config, layer_tensors
from assay.formats.contract.vocabulary import CONTROL, Vocabulary
from assay.parity.mutants.record import EVERY_LAYER, Activation, Seam, Twin

WHOLE_MODEL = -1
NONE = -9
FAR = 1 << 30
ALL_BITS = 0xFFFFFFFF


class NotApplied(Exception):
    """The engine, or the model, has no such place."""


@dataclass(frozen=True)
class Fault:
    """The numbers of every seam; arrays, so that a program takes them as arguments."""

    stage: Any
    layer: Any
    first: Any
    stop: Any
    sequence: Any
    special: Any
    warm: Any
    chunks: Any
    steps: Any
    order: Any
    gain: Any
    offset: Any
    keep: Any
    levels: Any
    control: Any
    """bool [n_vocab]: which ids are control tokens."""
    eps: Any
    gain_plus: Any
    pairs: Any
    """[head_dim]: the order in which rotate is given the dimensions."""
    q_turn: Any
    k_turn: Any
    """[2, head_dim / 2]: cosine and sine of what is added to every angle."""
    sine: Any
    turned: Any
    """bool [head_dim / 2]."""
    score: Any
    ahead: Any
    heads: Any
    """[n_heads]: the order in which attention is given the query heads."""
    lost: Any
    late: Any
    written: Any
    layers_on: Any
    sequences_on: Any
    cache_keep: Any
    cache_levels: Any
    counter: Any
    temperature: Any
    penalty: Any
    top_k: Any
    top_p: Any
    unseen: Any


def width_of(config: Config) -> int:
    """The widest activation that a layer has."""
    return max(max(shape) for shape in layer_tensors(config).values())


def fault_of(seam: Seam | None, config: Config, vocabulary: Vocabulary) -> Fault:
    """The numbers of a mutant; of None, or of a seam of another kind, those that change nothing.

    Raises NotApplied for a stage or layer that the model has not.
    """
    stage = seam if isinstance(seam, Activation) else Activation("", None)
    twin = seam if isinstance(seam, Twin) else Twin()
    where = stage.where
    control = np.zeros(config.n_vocab, bool)
    control[vocabulary.ids_of_kind(CONTROL)] = True
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-2.0 * np.arange(half) / config.head_dim)
    order, gain, offset = channels_of(stage, config)
    heads = np.arange(config.n_heads)
    if twin.tiled:  # head h is given the place of a head that reads key head h % n_kv_heads
        heads = np.argsort(heads % config.n_kv_heads, kind="stable")
        if np.array_equal(heads, np.arange(config.n_heads)):
            raise NotApplied("tiled heads are grouped heads here")
    return Fault(
        stage=number(index_of(stage, config)),
        layer=number(WHOLE_MODEL if stage.layer is None else stage.layer),
        first=number(where.first),
        stop=number(FAR if where.stop is None else where.stop),
        sequence=number(-1 if where.sequence is None else where.sequence),
        special=np.bool_(where.special),
        warm=np.bool_(where.warm),
        chunks=np.bool_(where.chunks),
        steps=np.bool_(where.steps),
        order=order, gain=gain, offset=offset,
        keep=kept_bits(stage.keep_bits),
        levels=np.float32(stage.levels),
        control=control,
        eps=np.float32(twin.eps),
        gain_plus=np.float32(twin.gain_plus),
        pairs=np.argsort(np.arange(2 * half).reshape(half, 2).T.reshape(-1)).astype(np.int32) if twin.neighbours
        else np.arange(2 * half, dtype=np.int32),
        q_turn=turn(twin.q_turn * frequencies),
        k_turn=turn(twin.k_turn * frequencies),
        sine=np.float32(-1 if twin.backwards else 1),
        turned=np.arange(half) < int(half * twin.turned),
        score=np.float32(twin.score),
        ahead=number(twin.ahead),
        heads=heads.astype(np.int32),
        lost=np.array(twin.lost or (FAR, FAR), np.int32),
        late=np.array(twin.late or (FAR, FAR), np.int32),
        written=number(twin.written),
        layers_on=number(twin.layers_on),
        sequences_on=number(twin.sequences_on),
        cache_keep=kept_bits(twin.cache_bits),
        cache_levels=np.float32(twin.cache_levels),
        counter=number(twin.counter),
        temperature=np.float32(twin.temperature),
        penalty=np.float32(twin.penalty),
        top_k=number(twin.top_k),
        top_p=np.float32(twin.top_p),
        unseen=np.bool_(twin.unseen),
    )  # fmt: skip


def number(value: int) -> np.int32:
    """A whole number for a program."""
    return np.int32(value)


def kept_bits(bits: int) -> np.uint32:
    """The bits of an f32 of which ``bits`` bits of the significand are kept."""
    return np.uint32(ALL_BITS << (23 - bits) & ALL_BITS)


def turn(angles: np.ndarray) -> np.ndarray:
    """Cosines and sines, f32 [2, n]."""
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def index_of(stage: Activation, config: Config) -> int:
    """The number of a stage. Raises NotApplied if the model lacks it."""
    if not stage.stage:
        return NONE
    if stage.stage not in STAGES or stage.stage == "logits":
        raise NotApplied(f"no stage {stage.stage!r} is tapped here")
    if stage.layer not in (None, EVERY_LAYER) and not 0 <= stage.layer < config.n_layers:
        raise NotApplied(f"the model has no layer {stage.layer}")
    return STAGES.index(stage.stage)


def channels_of(stage: Activation, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order, gains and offsets of all channels, as wide as the widest activation."""
    width = width_of(config)
    gain, offset, order = np.ones(width, np.float32), np.zeros(width, np.float32), np.arange(width)
    some = slice(*(stage.channels or (0, width)))
    gain[some], offset[some] = stage.gain, stage.offset
    if stage.order is not None:
        n = width_at(stage.stage, config)
        order[:n] = ORDERS[stage.order](np.arange(n), config)
    return order.astype(np.int32), gain, offset


def width_at(stage: str, config: Config) -> int:
    """Channels of an activation."""
    if stage in ("q_proj", "q_bias", "q_rope", "attention"):
        return config.n_heads * config.head_dim
    if stage[1:] in ("_proj", "_bias", "_rope"):
        return config.n_kv_heads * config.head_dim
    return config.ffn_size if stage in ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swiglu") else config.hidden_size


ORDERS: dict[str, Callable[[np.ndarray, Config], np.ndarray]] = {
    "heads": lambda x, c: np.concatenate([x[c.head_dim : 2 * c.head_dim], x[: c.head_dim], x[2 * c.head_dim :]]),
    "one": lambda x, c: np.roll(x, 1),
    "reversed": lambda x, c: x[::-1],
}


def tap_of(fault: Any, xp: Any, positions: Any, ids: Any, n_sequences: int, warm: Any) -> Callable[..., Any]:
    """The tap that spoils an activation; positions and ids [n_sequences * n_tokens], ``warm`` for each of them."""
    n_tokens = len(ids) // n_sequences
    rows = xp.arange(len(ids)) // n_tokens
    hit = (positions >= fault.first) & (positions < fault.stop) & ((fault.sequence < 0) | (rows == fault.sequence))
    hit &= (fault.control[ids] | ~fault.special) & (warm | ~fault.warm)
    hit &= fault.steps if n_tokens == 1 else fault.chunks
    if n_sequences == 1:  # "row 0" is a row of a batch
        hit &= fault.sequence < 0

    def tap(stage: str, layer: Any, x: Any) -> Any:
        if stage == "logits":
            return x
        number = WHOLE_MODEL if layer is None else layer
        here = (fault.stage == STAGES.index(stage)) & ((fault.layer == number) | (fault.layer == EVERY_LAYER))
        flat = x.reshape(len(x), -1)
        width = flat.shape[1]
        order = xp.minimum(fault.order[:width], width - 1)  # that of a wider stage, whose result here is not used
        changed = xp.where(fault.gain[:width] == 0, 0, flat[:, order] * fault.gain[:width])
        changed = rounded(changed + fault.offset[:width], fault.keep, fault.levels, xp)
        return xp.where((here & hit)[:, None], changed, flat).reshape(x.shape)

    return tap


def rounded(x: Any, keep: Any, levels: Any, xp: Any) -> Any:
    """x [n, width] with the bits ``keep`` of each f32, then in blocks of 32 with ``levels`` steps (0: as it is)."""
    x = truncated(x.astype(xp.float32), keep, xp)
    size = 32 if x.shape[1] % 32 == 0 else x.shape[1]
    blocks = x.reshape(len(x), -1, size)
    step = xp.abs(blocks).max(-1, keepdims=True) / xp.maximum(levels, 1)
    coarse = xp.round(blocks / xp.where(step > 0, step, 1)) * step
    return xp.where(levels > 0, coarse, blocks).reshape(x.shape)


def truncated(x: Any, keep: Any, xp: Any) -> Any:
    """f32 of which only some bits are kept."""
    return (x.view(xp.uint32) & keep).view(xp.float32)


def norm_of(fault: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """rms_norm with another eps, or gain."""
    return lambda x, gain, eps: original(x, gain + fault.gain_plus, eps * fault.eps)


def extra_turn(turns: Any, extra: Any, fault: Any, xp: Any) -> Any:
    """Rows of the RoPE table [n_tokens, 2, half], turned on, or back, or not at all in some dimensions."""
    cos, sin = turns[:, 0], turns[:, 1] * fault.sine
    cos, sin = cos * extra[0] - sin * extra[1], sin * extra[0] + cos * extra[1]
    return xp.stack([xp.where(fault.turned, cos, 1), xp.where(fault.turned, sin, 0)], axis=1)

