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
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from assay.formats.contract.arguments import checked
from assay.formats.contract.config import Config
from assay.formats.contract.declaration import BITS, MATRICES, Declaration, block_of, is_coarse
from assay.formats.contract.engine import Tap

Step = Callable[[np.ndarray], np.ndarray]
"""The step of each element's rounding, shaped as the activation."""

Rounding = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""An activation, f64, as its rounding may leave it: a random draw, of the same shape."""

Key = tuple[str, int | None]
"""A stage and its layer."""

Input = tuple[Rounding | None, Rounding | None]
"""What rounds an activation where a matrix multiplies it, and what stands for the rounding of that matrix."""


EXPONENT = np.int64(0x7FF << 52)
"""The bits of a binary64 that hold its exponent."""


def float_step(bits: int) -> Step:
    """Spacing of floats with ``bits`` bits after the leading one: 23 for f32, 10 for f16, 7 for bf16.

    (``np.spacing`` is 0 for small numbers once JAX has the processor flush them.)
    """

    def step(x: np.ndarray) -> np.ndarray:
        return (np.ascontiguousarray(x, np.float64).view(np.int64) & EXPONENT).view(np.float64) * 2.0**-bits

    return step


@cache
def floats(bits: int) -> Rounding:
    """Rounding to floats with ``bits`` bits after the leading one, on a grid that is moved at random."""
    step = float_step(bits)

    def rounded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size, moved = step(x), one_row(x, rng)
        return size * (np.rint(x / np.where(size > 0, size, 1) + moved) - moved)

    return rounded


@cache
def as_weights(bits: int) -> Rounding:
    """What stands for the rounding of a matrix, on what it multiplies: an error in proportion to each element, the same
    at every position."""
    step = float_step(bits)
    return lambda x, rng: x + step(x) * one_row(x, rng)


@cache
def shaken(bits: int, factor: float) -> Rounding:
    """No rounding: every element moved by itself, ``factor`` times as far as rounding to ``bits`` bits would."""
    step = float_step(bits)
    return lambda x, rng: x + factor * step(x) * (rng.random(x.shape, np.float32) - np.float32(0.5))


def one_row(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A number in ±1/2 for each element of a position, the same at all positions."""
    return rng.random((1, *x.shape[1:])) - 0.5


@cache
def in_blocks(size: int) -> Rounding:
    """8-bit activations: ``size`` consecutive elements (0: all of a token) share a step, the largest over 127."""

    def rounded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows = x.reshape(len(x), -1)
        width = size or rows.shape[1]
        blocks = np.pad(rows, ((0, 0), (0, -rows.shape[1] % width))).reshape(len(x), -1, width)
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


class RoundedInputs:
    """What each matrix is multiplied with, as its declared rounding may leave it: a random draw.

    Three matrices share one activation and may each round it in another way (q in Q4_K beside v in F32), which no tap
    can show. Matrices that round it alike see the same numbers, so they share the draw; what stands for the rounding
    of their own weights (an error of the same relative size in every product) each draws for itself.
    """

    def __init__(self, inputs: Mapping[str, Input], seed: int) -> None:
        self.inputs, self.rng = inputs, np.random.default_rng((seed, 2))
        self.of: np.ndarray | None = None
        self.drawn: dict[Rounding, np.ndarray] = {}

    def __call__(self, tensor: str, x: np.ndarray) -> np.ndarray:
        """``x`` [n_tokens, in_features] as ``tensor`` meets it, of the same type."""
        rounding, of_weights = self.inputs.get(tensor, (None, None))
        if x is not self.of:
            self.of, self.drawn = x, {}
        moved = np.asarray(x, np.float64)
        if rounding is not None:
            if rounding not in self.drawn:
                self.drawn[rounding] = rounding(moved, self.rng)
            moved = self.drawn[rounding]
        if of_weights is not None:
            moved = of_weights(moved, self.rng)
        return x if rounding is of_weights is None else moved.astype(x.dtype)


class Reordered:
    """An engine whose sums are moved as another order of adding moves them, and whose results are rounded."""

    def __init__(self, engine: Tapped, sums: Mapping[Key, Sum], seed: int, result: Rounding | None = None) -> None:
        self.engine, self.sums, self.rng, self.result = engine, sums, np.random.default_rng((seed, 1)), result

    def forward(self, ids: Sequence[int], tap: Tap) -> np.ndarray:
        """As the engine's, with every sum and result moved before it is shown to the tap."""

        def move(stage: str, layer: int | None, activation: Any) -> Any:
            total = self.sums.get((stage, layer))
            if total or self.result:
                exact = np.asarray(activation, np.float64)
                moved = exact + total.noise(exact, self.rng) if total else exact
                activation = (self.result(moved, self.rng) if self.result else moved).astype(activation.dtype)
            return tap(stage, layer, activation)

        return self.engine.forward(ids, move)


class Precision(NamedTuple):
    """An arithmetic's name, and the roundings it declares."""

    name: str
    roundings: Mapping[Key, Rounding]
    """By stage and layer: what is rounded where the stage's result is used. Every other activation is, to f32."""
    sums: Mapping[Key, Sum] = {}
    """By stage and layer: what is added up there, in an order that is not declared."""
    inputs: Mapping[str, Input] = {}
    """By tensor: what is rounded where this matrix multiplies it."""
    result: Rounding | None = None
    """What rounds every stage's result; None: nothing that f32 does not round."""
    declaration: Declaration | None = None
    """What all this was made from."""

    @property
    def key(self) -> str:
        """The same text for the same roundings."""
        return f"{self.name} {self.declaration.key if self.declaration else ''}"

    def noisy(self, engine: Any, seed: int) -> Reordered:
        """``engine`` with other sums, inputs and results; the tap that it wants is ``noise``, or one that calls it.

        ``engine`` must have ``rounding`` (as the oracle has) where the inputs of matrices are rounded.
        """
        if self.inputs:
            engine = engine.rounding(RoundedInputs(self.inputs, seed))
        return Reordered(engine, self.sums, seed, self.result)

    def noise(self, seed: int, *, fed: bool = True) -> Tap:
        """A tap that moves every activation at random as far as this precision may.

        ``fed``: the activation comes from elsewhere, so that the rounding of a stage's result has not been done yet.
        """
        rng = np.random.Generator(np.random.SFC64(seed))  # half of the time of a noisy run is drawing
        otherwise = self.result if fed else None

        def tap(stage: str, layer: int | None, activation: Any) -> Any:
            if rounding := self.roundings.get((stage, layer), otherwise):
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


PRODUCT_OF = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "attn_output": "attn_out", "gate": "ffn_gate",
              "up": "ffn_up", "down": "ffn_out", "output": "logits"}  # fmt: skip
"""The stage that shows what each matrix made."""


@checked
def precision(declared: Declaration, config: Config) -> Precision:
    """What is declared, as noise in a model of this ``config``. Raises InputError for lists of other layers."""
    declared.check_layers(config.n_layers)
    inputs, sums = inputs_of(declared, config), sums_of(config)
    # Where what is multiplied is rounded a thousand times coarser than f32, the order of its sum is nothing.
    for key, tensor in products(config).items():
        if tensor in inputs:
            del sums[key]
    if is_coarse(declared.cache):
        sums = {key: one for key, one in sums.items() if key[0] != "attention"}
    if is_coarse(declared.results) or declared.accumulation == "f64":
        sums = {}
    result = floats(BITS[declared.results]) if is_coarse(declared.results) else None
    return Precision(name_of(declared), in_attention(declared, config), sums, inputs, result, declared)


def products(config: Config) -> dict[Key, str]:
    """The tensor that is multiplied at each stage that is a product."""
    made: dict[Key, str] = {("logits", None): "token_embd.weight" if config.tied else "output.weight"}
    for matrix, stage in PRODUCT_OF.items():
        if matrix != "output":
            made |= {(stage, layer): f"blk.{layer}.{MATRICES[matrix]}.weight" for layer in range(config.n_layers)}
    return made


def inputs_of(declared: Declaration, config: Config) -> dict[str, Input]:
    """What is rounded before each matrix, by tensor; a matrix of which nothing coarser than f32 is said is left out."""
    matrix_of = {stage: matrix for matrix, stage in PRODUCT_OF.items()}
    found: dict[str, Input] = {}
    for (stage, layer), tensor in products(config).items():
        kind, weights = (ask(matrix_of[stage], layer) for ask in (declared.activation, declared.weight))
        if is_coarse(kind) or is_coarse(weights):
            found[tensor] = (rounding_of(kind) if is_coarse(kind) else None,
                             as_weights(BITS[weights]) if is_coarse(weights) else None)  # fmt: skip
    return found


def rounding_of(kind: str) -> Rounding:
    """Rounding to a type of ``contract.declaration``."""
    block = block_of(kind)
    return floats(BITS[kind]) if block is None else in_blocks(block)


def in_attention(declared: Declaration, config: Config) -> dict[Key, Rounding]:
    """What is rounded where queries, keys and values meet.

    A score adds head_dim products and no tap shows it, so the key is moved, which the score is proportional to. (Not
    the query: Qwen's biased keys share a large element, all scores of a moved query would move alike, and softmax
    does not see that.) One product may be nearly all of a score; then every partial sum is as large as the score, and
    together they move it by 2^-24 sqrt(head_dim / 3): as much as 2 sqrt(head_dim) times the last bit, at random. Of
    scores in a coarser type only their own two roundings matter (the product, and the softmax of it). Where all
    products are alike, a key whose elements move at random moves the score sqrt(head_dim) times less than they move.
    """
    size, layers = config.head_dim, range(config.n_layers)
    scores = shaken(BITS[declared.scores], (2 * size) ** 0.5) if is_coarse(declared.scores) else (
        shaken(23, 2 * size**0.5))  # fmt: skip
    rounded: dict[Key, Rounding] = {("k_rope", layer): scores for layer in layers}
    if is_coarse(declared.cache):  # and the query that meets the cache is rounded like the keys in it
        kept = floats(BITS[declared.cache])
        stages = ("v_bias", "q_rope") if is_coarse(declared.scores) else ("k_rope", "v_bias", "q_rope")
        rounded |= {(stage, layer): kept for stage in stages for layer in layers}
    if is_coarse(declared.results) and not (is_coarse(declared.cache) or is_coarse(declared.scores)):
        rounded |= {("k_rope", layer): floats(BITS[declared.results]) for layer in layers}
    return rounded


def name_of(declared: Declaration) -> str:
    """A declaration in a few words; ``f32`` or ``f64`` where nothing is coarser than f32."""
    kinds = declared.coarse_products()
    coarsest = next((kind for kind in ("bf16", "f16", "tf32") if kind in kinds), "f32")
    products = "8-bit activations" if any(block_of(kind) is not None for kind in kinds) else f"{coarsest} products"
    results = f"{declared.results} results, " if is_coarse(declared.results) else ""
    plain = not kinds and not results and not is_coarse(declared.cache) and not is_coarse(declared.scores)
    return declared.results if plain else f"{results}{products}, {declared.cache} cache"
