"""What an arithmetic declares to round, and that rounding as noise.

The floor is measured: the oracle is run again and again with every activation moved as far as the *declared* rounding
moves it, but at random. Rounding to nearest with step s leaves an error that is, for values that know nothing of the
steps, uniform in ±s/2 (Widrow and Kollár, "Quantization Noise", 2008). For floats, whose steps are small beside every
value, the grid is moved by a random part of a step before rounding, and back after it (subtractive dither). The 8-bit
step of a block is that of its largest value, and small values know it well: below half a step they all become 0, and
what they said together is lost, not blurred. (Behind the first token of the 1.5B, in layer 26, that moves the gate 4.3
times as far as uniform noise does, and the logits by 4 nats.) So blocks are really rounded, with a step drawn from a
tenth around the declared one: large values fall anywhere, small ones vanish.

What is drawn, grid or step, is drawn once for all positions: equal values are rounded equally wherever they stand, and
positions have much in common. A weight's rounding is the same at all of them anyway. Drawn for each position, noise
averages out over positions where a real engine's errors stay: the mean error of a channel was 3 times as large as such
noise said in a right bf16 engine, and is 0.6 to 0.9 times as large as this says.

A sum also rounds each of its partial sums, and f32 does not say in which order: the oracle's BLAS adds in many short
lanes, another engine in one long chain, and both are right. The longest chain adds K terms one by one. Its partial sum
of k terms is about sqrt(k) terms large and is rounded to 2^-24 of itself, evenly (a standard deviation of 1 / sqrt(3)
of that), so together they move the result by 2^-24 sqrt(K / 6) of its size (of the row's, where terms that cancelled
left less). The partial sums of K squares grow like k instead: 2^-24 sqrt(K) / 3, of which a root leaves half.
``Reordered`` moves the oracle's sums as far, at random; ``tests/parity`` holds it against sums really added one
by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from assay.formats.contract.arguments import checked
from assay.formats.contract.config import Config
from assay.formats.contract.engine import Tap

Step = Callable[[np.ndarray], np.ndarray]
"""The step of each element's rounding, shaped as the activation."""

Rounding = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""An activation, f64, as its rounding may leave it: a random draw, of the same shape."""

Key = tuple[str, int | None]
"""A stage and its layer."""


EXPONENT = np.int64(0x7FF << 52)
"""The bits of a binary64 that hold its exponent."""


def float_step(bits: int) -> Step:
    """Spacing of floats with ``bits`` bits after the leading one: 23 for f32, 10 for f16, 7 for bf16.

    (``np.spacing`` is 0 for small numbers once JAX has the processor flush them.)
    """

    def step(x: np.ndarray) -> np.ndarray:
        return (np.ascontiguousarray(x, np.float64).view(np.int64) & EXPONENT).view(np.float64) * 2.0**-bits

    return step


def floats(bits: int) -> Rounding:
    """Rounding to floats with ``bits`` bits after the leading one, on a grid that is moved at random."""
    step = float_step(bits)

    def rounded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size, moved = step(x), one_row(x, rng)
        return size * (np.rint(x / np.where(size > 0, size, 1) + moved) - moved)

    return rounded


def floats_and_weights(bits: int) -> Rounding:
    """The same where the matrix that ``x`` is multiplied with is rounded likewise: an error of a weight is the same at
    every position, in proportion to the element that it meets."""
    step, activations = float_step(bits), floats(bits)

    def rounded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return activations(x, rng) + step(x) * one_row(x, rng)

    return rounded


def shaken(bits: int, factor: float) -> Rounding:
    """No rounding: every element moved by itself, ``factor`` times as far as rounding to ``bits`` bits would."""
    step = float_step(bits)
    return lambda x, rng: x + factor * step(x) * (rng.random(x.shape, np.float32) - np.float32(0.5))


def one_row(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A number in ±1/2 for each element of a position, the same at all positions."""
    return rng.random((1, *x.shape[1:])) - 0.5


def in_blocks(size: int) -> Rounding:
    """ggml's 8-bit activations: ``size`` consecutive elements share a step, the largest of them over 127."""

    def rounded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows = x.reshape(len(x), -1)
        blocks = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).reshape(len(x), -1, size)
        step = np.abs(blocks).max(-1, keepdims=True) / 127
        step *= rng.uniform(0.9, 1.1, (1, *step.shape[1:]))
        moved = np.rint(blocks / np.where(step > 0, step, 1)) * step
        return moved.reshape(len(x), -1)[:, : rows.shape[1]].reshape(x.shape)

    return rounded


class Sum(NamedTuple):
    """How many terms a stage adds up for each of its elements (None: one for each token); ``squares``: for each of its
    rows, the squares of it."""

    terms: int | None
    squares: bool = False

    def noise(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What another order of adding may change in ``x`` [n_tokens, ...], as a random draw."""
        rows = x.reshape(len(x), -1)
        terms = len(x) if self.terms is None else self.terms
        if self.squares:
            moved = rows * rng.standard_normal((len(rows), 1)) * terms**0.5 / 6
        else:
            size = np.sqrt(np.square(rows).mean(1, keepdims=True))
            moved = np.maximum(size, np.abs(rows)) * rng.standard_normal(rows.shape) * (terms / 6) ** 0.5
        return moved.reshape(x.shape) * 2.0**-24


class Tapped(Protocol):
    """An engine, as far as stages need one."""

    def forward(self, ids: Sequence[int], tap: Tap) -> np.ndarray: ...


class Reordered:
    """An engine whose sums are moved as another order of adding moves them."""

    def __init__(self, engine: Tapped, sums: Mapping[Key, Sum], seed: int) -> None:
        self.engine, self.sums, self.rng = engine, sums, np.random.default_rng((seed, 1))

    def forward(self, ids: Sequence[int], tap: Tap) -> np.ndarray:
        """As the engine's, with every sum moved before it is shown to the tap."""

        def move(stage: str, layer: int | None, activation: Any) -> Any:
            if total := self.sums.get((stage, layer)):
                exact = np.asarray(activation, np.float64)
                activation = (exact + total.noise(exact, self.rng)).astype(activation.dtype)
            return tap(stage, layer, activation)

        return self.engine.forward(ids, move)


class Precision(NamedTuple):
    """An arithmetic's name, and the roundings it declares."""

    name: str
    roundings: Mapping[Key, Rounding]
    """By stage and layer: what is rounded where the stage's result is used. Every other activation is, to f32."""
    sums: Mapping[Key, Sum] = {}
    """By stage and layer: what is added up there, in an order that is not declared."""

    def noisy(self, engine: Tapped, seed: int) -> Reordered:
        """``engine`` with other sums; the tap that it wants is ``noise``, or one that calls it."""
        return Reordered(engine, self.sums, seed)

    def noise(self, seed: int) -> Tap:
        """A tap that moves every activation at random as far as this precision may."""
        rng = np.random.Generator(np.random.SFC64(seed))  # half of the time of a noisy run is drawing

        def tap(stage: str, layer: int | None, activation: Any) -> Any:
            if rounding := self.roundings.get((stage, layer)):
                activation = rounding(np.asarray(activation, np.float64), rng).astype(activation.dtype)
            return activation  # to f32 the oracle rounds by itself

        return tap


T = TypeVar("T")


def each_run(run: Callable[[int], T], seeds: Iterable[int]) -> list[T]:
    """What ``run`` makes of each seed, two at a time: half of a noisy run is drawing, which takes one processor."""
    with ThreadPoolExecutor(2, thread_name_prefix="noise") as pool:
        return list(pool.map(run, seeds))


def sums_of(config: Config) -> dict[Key, Sum]:
    """Every sum of a model."""
    hidden, heads = config.hidden_size, config.n_heads * config.head_dim
    terms = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "attention": None, "attn_out": heads,
             "ffn_gate": hidden, "ffn_up": hidden, "ffn_out": config.ffn_size}  # fmt: skip
    sums: dict[Key, Sum] = {("final_norm", None): Sum(hidden, squares=True), ("logits", None): Sum(hidden)}
    for layer in range(config.n_layers):
        sums |= {(stage, layer): Sum(hidden, squares=True) for stage in ("attn_norm", "ffn_norm")}
        sums |= {(stage, layer): Sum(n) for stage, n in terms.items()}
    return sums


CACHE_BITS = {"f32": 23, "f16": 10, "bf16": 7}
"""Bits after the leading one in which keys and values are kept."""


@checked
def precision(fingerprint: Mapping[str, Any], n_at_once: int, blocks: Mapping[Key, int],
              config: Config) -> Precision | None:  # fmt: skip
    """What the engine of this fingerprint declares to round when it reads ``n_at_once`` tokens at a time.

    ``blocks``: for each activation that is multiplied with a matrix, how many of its elements share a scale where it
    is rounded to 8 bits: 256 before K-quants, 32 before the other quantised types, 0 before floats (never rounded).
    None if the engine does not say how it computes: then there is no floor, and no verdict.
    """
    arith, dense = fingerprint.get("arith"), fingerprint.get("dense", "float32")
    cache = str(fingerprint.get("cache", "f16" if arith == "ggml" else "f32"))
    if arith not in ("f64", "f32", "ggml", "fast") or cache not in CACHE_BITS:
        return None
    layers, sums = range(config.n_layers), sums_of(config)
    # A score adds head_dim products and no tap shows it, so the key is moved, which the score is proportional to. (Not
    # the query: Qwen's biased keys share a large element, all scores of a moved query would move alike, and softmax
    # does not see that.) One product may be nearly all of a score; then every partial sum is as large as the score, and
    # together they move it by 2^-24 sqrt(head_dim / 3): as much as 2 sqrt(head_dim) times the last bit, at random.
    rounded: dict[Key, Rounding] = {("k_rope", layer): shaken(23, 2 * config.head_dim**0.5) for layer in layers}
    if cache != "f32":  # and the query that meets the cache is rounded like the keys in it
        kept = floats(CACHE_BITS[cache])
        rounded |= {(stage, layer): kept for stage in ("k_rope", "v_bias", "q_rope") for layer in layers}
    # Where all that is multiplied is rounded a thousand times coarser than f32, the order of those sums is nothing.
    norms = {key: one for key, one in sums.items() if one.squares}
    if arith == "ggml" or (arith == "fast" and n_at_once <= fingerprint.get("int8_up_to", 0)):
        eight = {key: in_blocks(size) for key, size in blocks.items() if size}
        sums = norms if len(eight) == len(blocks) else sums
        return Precision(f"8-bit activations, {cache} cache", rounded | eight, sums)
    if arith == "fast" and dense == "bfloat16":  # activations and weights: two roundings of one size in every product
        both = floats_and_weights(7)
        return Precision(f"bf16 products, {cache} cache", rounded | dict.fromkeys(blocks, both), norms)
    plain = cache == "f32" and arith != "fast"
    return Precision(str(arith) if plain else f"f32 products, {cache} cache", rounded, sums)
