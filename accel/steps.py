"""What runs on the device: Qwen2 itself, choosing the next token, and doing both again and again without the host.

Pure functions of arrays; ``accel/model.py`` compiles them and keeps their arrays. All layers run through one body
(``lax.scan``), so compiling takes seconds whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from assay.accel.attention import attention, write
from assay.accel.matmul import lookup, matmul_roles, matmul_slices
from assay.accel.pack import Params
from assay.accel.rms_norm import rms_norm
from assay.accel.rope import rotate
from assay.accel.sampler import SampledToken, Settings, choose
from assay.formats.contract.config import Config, layer_tensors
from assay.formats.contract.engine import identity

MOST_STEPS = 16
"""Tokens that are decoded at most before the host looks."""

DeviceTap = Callable[[str, jax.Array | int, jax.Array], jax.Array]
"""A tap inside a compiled program; the identity leaves nothing in it."""


def forward(params: Params, config: Config, arith: str, ids: jax.Array, start: jax.Array, turns: jax.Array,
            k_cache: jax.Array, v_cache: jax.Array,
            tap: DeviceTap = identity) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Read ids [n_sequences, n_tokens] at positions ``start`` [n_sequences] .. of each sequence.

    turns [capacity, 2, head_dim/2]: the RoPE table. Caches as in ``KVCache``. Returns the normalised residual stream
    [n_sequences · n_tokens, hidden] and the caches. Taps see the sequences one after the other.
    """
    eps, vectors = config.rms_norm_eps, params.vectors
    sizes = {name.removesuffix(".weight"): shape[0] for name, shape in layer_tensors(config).items()}
    positions = start[:, None] + jnp.arange(ids.shape[1])
    turns = turns[positions.reshape(-1)]

    def layer_step(carry: tuple[jax.Array, ...], layer: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        x, k_cache, v_cache = carry

        def linear(h: jax.Array, *roles: str) -> list[jax.Array]:
            return matmul_roles(h, params.matrices, roles, sizes, layer, arith)

        def add_bias(which: str, y: jax.Array) -> jax.Array:
            return tap(f"{which}_bias", layer, y + vectors[f"attn_{which}.bias"][layer])

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(len(x), -1, config.head_dim)

        def by_sequence(y: jax.Array) -> jax.Array:
            return y.reshape(*ids.shape, *y.shape[1:])

        h = tap("attn_norm", layer, rms_norm(x, vectors["attn_norm.weight"][layer], eps))
        q, k, v = linear(h, "attn_q", "attn_k", "attn_v")
        q, k, v = tap("q_proj", layer, q), tap("k_proj", layer, k), tap("v_proj", layer, v)
        q, k, v = add_bias("q", q), add_bias("k", k), add_bias("v", v)
        q = tap("q_rope", layer, rotate(heads(q), turns))
        k = tap("k_rope", layer, rotate(heads(k), turns))
        k_cache, v_cache = write(k_cache, v_cache, by_sequence(k), by_sequence(heads(v)), layer, start)
        mixed = attention(by_sequence(q), k_cache, v_cache, layer, positions).reshape(len(x), -1)
        mixed = tap("attention", layer, mixed)
        x = tap("attn_residual", layer, x + tap("attn_out", layer, *linear(mixed, "attn_output")))

        h = tap("ffn_norm", layer, rms_norm(x, vectors["ffn_norm.weight"][layer], eps))
        gate, up = linear(h, "ffn_gate", "ffn_up")
        gate, up = tap("ffn_gate", layer, gate), tap("ffn_up", layer, up)
        gated = tap("ffn_swiglu", layer, tap("ffn_silu", layer, jax.nn.silu(gate)) * up)
        x = tap("ffn_residual", layer, x + tap("ffn_out", layer, *linear(gated, "ffn_down")))
        return (x, k_cache, v_cache), None

    x = tap("embedding", -1, embed(config, params, ids.reshape(-1)))
    (x, k_cache, v_cache), _ = lax.scan(layer_step, (x, k_cache, v_cache), jnp.arange(config.n_layers))
    return tap("final_norm", -1, rms_norm(x, params.final_gain, eps)), k_cache, v_cache


class State(NamedTuple):
    """What a step takes and gives back: donated, so updated in place."""

    k_cache: jax.Array
    v_cache: jax.Array
    seen: jax.Array
    """[n_sequences, n_rows] bool: the ids that the repeat penalty is for."""


def read(config: Config, arith: str, n_top: int, n_vocab: int, tap: DeviceTap, params: Params, ids: jax.Array,
         n: jax.Array, start: jax.Array, turns: jax.Array, state: State, settings: Settings,
         counter: jax.Array) -> tuple[SampledToken, jax.Array, State]:  # fmt: skip
    """Read ids [n_sequences, n_tokens], of which the first ``n`` count, and choose each sequence's next token.

    Returns the choices and the logits [n_sequences, n_rows] after the n-th token; the chosen tokens are not ``seen``.
    """
    x, k_cache, v_cache = forward(params, config, arith, ids, start, turns, state.k_cache, state.v_cache, tap)
    last = lax.dynamic_slice_in_dim(x.reshape(*ids.shape, -1), n - 1, 1, axis=1)[:, 0]
    logits = tap("logits", -1, matmul_slices(last, params.output, arith))
    pick = partial(choose, n_top=n_top, n_vocab=n_vocab)
    choice = jax.vmap(pick, in_axes=(0, 0, None, None))(logits, state.seen, settings, counter)
    return choice, logits, State(k_cache, v_cache, state.seen)


Loop = tuple[jax.Array, jax.Array, jax.Array, SampledToken, jax.Array, State]
"""What ``decode`` carries from step to step: the step's number, tokens, which ended, choices, logits, state."""


def decode(config: Config, arith: str, n_top: int, n_vocab: int, tap: DeviceTap, params: Params, tokens: jax.Array,
           start: jax.Array, turns: jax.Array, state: State, settings: Settings, counter: jax.Array,
           n_steps: jax.Array, ended: jax.Array,
           end_ids: jax.Array) -> tuple[SampledToken, jax.Array, jax.Array, State]:  # fmt: skip
    """Up to ``n_steps`` (at most MOST_STEPS) steps of one token a sequence, each reading what the one before it chose.

    tokens, start, ended [n_sequences]. Stops when every sequence has chosen one of ``end_ids`` or was ``ended``.
    Returns the choices [MOST_STEPS, n_sequences], how many of them were made, the last logits, and the state.
    """

    @jax.jit  # so that it is traced once: for the shapes of what it returns, and in the loop
    def step(i: jax.Array, tokens: jax.Array, state: State) -> tuple[SampledToken, jax.Array, State]:
        rows = jnp.arange(len(tokens))
        state = state._replace(seen=state.seen.at[rows, tokens].set(True))
        one = jnp.int32(1)
        return read(config, arith, n_top, n_vocab, tap, params, tokens[:, None], one, start + i, turns, state, settings,
                    counter + i)  # fmt: skip

    def goes_on(loop: Loop) -> jax.Array:
        i, _, ended, *_ = loop
        return (i < n_steps) & ~ended.all()

    def body(loop: Loop) -> Loop:
        i, tokens, ended, choices, _, state = loop
        choice, logits, state = step(i, tokens, state)
        choices = jax.tree.map(lambda all_steps, this: all_steps.at[i].set(this), choices, choice)
        ended = ended | (choice.token[:, None] == end_ids).any(1)
        return i + 1, choice.token, ended, choices, logits, state

    shapes = jax.eval_shape(step, jnp.int32(0), tokens, state)
    choices = jax.tree.map(lambda a: jnp.zeros((MOST_STEPS, *a.shape), a.dtype), shapes[0])
    logits = jnp.zeros(shapes[1].shape, shapes[1].dtype)
    made, _, _, choices, logits, state = lax.while_loop(
        goes_on, body, (jnp.int32(0), tokens, ended, choices, logits, state)
    )
    return choices, made, logits, state


def read_all(config: Config, arith: str, tap: DeviceTap, params: Params, ids: jax.Array, turns: jax.Array,
             k_cache: jax.Array, v_cache: jax.Array) -> jax.Array:  # fmt: skip
    """Read ids [n_tokens] from position 0; logits [n_tokens, n_rows] after each of them."""
    start = jnp.zeros(1, jnp.int32)
    x, _, _ = forward(params, config, arith, ids[None], start, turns, k_cache, v_cache, tap)
    return tap("logits", -1, matmul_slices(x, params.output, arith))


def embed(config: Config, params: Params, ids: jax.Array) -> jax.Array:
    """Rows of the embedding, f32 [n_tokens, hidden_size]."""
    return lookup(params.embedding, ids)[:, : config.hidden_size]
