"""Qwen2 as one compiled program (twin of ``reference/model.py``).

All layers run through one body (``lax.scan``), so compiling takes seconds whatever the depth. The prompt is read
in chunks of a few fixed lengths and one token at a time after that; the key/value cache is donated to each
call and updated in place. Each (length, capacity) pair is compiled once, ahead of its first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from accel.attention import KVCache, attention, write
from accel.chat import render
from accel.matmul import lookup, matmul_roles, matmul_slices
from accel.pack import Params, pack
from accel.rms_norm import rms_norm
from accel.rope import rope_table, rotate
from accel.sampler import Choice, Settings, choose
from accel.tokenizer import Tokenizer
from formats import InputError, ModelFile, NumericError
from formats.anatomy import Config, layer_tensors
from formats.protocol import Prompt, Tap

ARITHMETICS = ("fast", "f32")
"""The first is the default; ``accel/matmul.py`` says what each computes."""
CHUNKS = (1, 16, 32, 64, 128, 256, 512)
"""Lengths a program is compiled for; a shorter piece of prompt is padded up to the next."""

DeviceTap = Callable[[str, jax.Array | int, jax.Array], jax.Array]


def untapped(stage: str, layer: jax.Array | int, activation: jax.Array) -> jax.Array:
    """The tap that does nothing, and leaves nothing in the compiled program."""
    return activation


def forward(params: Params, config: Config, arith: str, ids: jax.Array, start: jax.Array, turns: jax.Array,
            k_cache: jax.Array, v_cache: jax.Array,
            tap: DeviceTap = untapped) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
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

    x = tap("embedding", -1, lookup(params.embedding, ids.reshape(-1)))
    (x, k_cache, v_cache), _ = lax.scan(layer_step, (x, k_cache, v_cache), jnp.arange(config.n_layers))
    return tap("final_norm", -1, rms_norm(x, params.final_gain, eps)), k_cache, v_cache


def read_last(config: Config, arith: str, params: Params, ids: jax.Array, n: jax.Array, start: jax.Array,
              turns: jax.Array, k_cache: jax.Array,
              v_cache: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Read ids, of which the first ``n`` count; logits [n_vocab] after the n-th, and the caches."""
    x, k_cache, v_cache = forward(params, config, arith, ids[None], start[None], turns, k_cache, v_cache)
    last = lax.dynamic_slice_in_dim(x, n - 1, 1)
    return matmul_slices(last, params.output, arith)[0], k_cache, v_cache


def read_all(config: Config, arith: str, tap: DeviceTap, params: Params, ids: jax.Array, turns: jax.Array,
             k_cache: jax.Array, v_cache: jax.Array) -> jax.Array:  # fmt: skip
    """Read ids from position 0; logits [n_tokens, n_vocab] after each of them."""
    x, _, _ = forward(params, config, arith, ids[None], jnp.zeros(1, jnp.int32), turns, k_cache, v_cache, tap)
    return tap("logits", -1, matmul_slices(x, params.output, arith))


class Model:
    """The fast engine (``formats.protocol.Engine``): one model file packed onto the device."""

    def __init__(self, file: ModelFile, *, arith: str = ARITHMETICS[0], nfc: bool = True,
                 progress: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
        if arith not in ARITHMETICS:
            raise InputError(f"the accelerated engine has no arithmetic {arith!r}", where="--arith",
                             remedy=f"Choose one of {', '.join(ARITHMETICS)}")  # fmt: skip
        self.file, self.arith = file, arith
        self.tokenizer = Tokenizer(file.vocabulary, nfc=nfc)
        self.params = pack(file, progress)
        self.open_s = self.compile_s = 0.0
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._rope_tables: dict[int, jax.Array] = {}
        self._read_last = jax.jit(partial(read_last, file.config, arith), donate_argnums=(5, 6))
        self._read_all = jax.jit(partial(read_all, file.config, arith, untapped))
        self._read_tapped = jax.jit(partial(read_all, file.config, arith, self._device_tap))
        self._choose = jax.jit(partial(choose, n_vocab=len(file.vocabulary)), static_argnums=4)
        self._tap: Tap | None = None
        self._n_shown = 0

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], *,
                    tools: Sequence[Mapping[str, Any]] | None = None) -> Prompt:  # fmt: skip
        """The prompt for a conversation, by the file's own template; errors as ``chat.render``."""
        vocabulary = self.file.vocabulary
        return render(messages, self.file.chat_template or "", tools=tools,
                      control_tokens=vocabulary.control_tokens,
                      bos_token=vocabulary.text_of(vocabulary.bos_id),
                      eos_token=vocabulary.text_of(vocabulary.eos_id))  # fmt: skip

    def new_cache(self) -> KVCache:
        """An empty cache."""
        config = self.file.config
        return KVCache(config.n_layers, config.n_kv_heads, config.head_dim)

    def prefill(self, ids: Sequence[int], cache: KVCache | None = None) -> tuple[np.ndarray, KVCache]:
        """Append ``ids`` to the cache; logits [n_vocab] after the last of them, and the cache."""
        cache = self.new_cache() if cache is None else cache
        return finite_logits(self.read(ids, cache)), cache

    def decode(self, token: int, cache: KVCache) -> tuple[np.ndarray, KVCache]:
        """Append one token; logits [n_vocab] after it, and the cache."""
        return self.prefill([token], cache)

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits [n_tokens, n_vocab] of every position of a sequence that starts at position 0.

        With a ``tap`` the compiled program calls back to the host at every stage of every layer, and goes on
        with what the tap returns.
        """
        self.file.check_ids(ids)
        cache = self.new_cache()
        padded = pad(ids, 1 << max(4, (len(ids) - 1).bit_length()))
        cache.reserve(len(padded))
        self._tap, self._n_shown = tap, len(ids)
        name, function = ("tapped", self._read_tapped) if tap else ("all", self._read_all)
        key = (name, len(padded), cache.capacity)
        logits = self._run(key, function, self.params, padded, self._turns(cache), cache.k, cache.v)
        return finite_logits(logits)[: len(ids)]

    def read(self, ids: Sequence[int], cache: KVCache) -> jax.Array:
        """Append ``ids`` to the cache, chunk by chunk; logits [n_vocab] after the last, on the device."""
        self.file.check_ids(ids, n_past=len(cache.ids))
        logits = jnp.empty(0)
        for at in range(0, len(ids), CHUNKS[-1]):
            piece = ids[at : at + CHUNKS[-1]]
            padded = pad(piece, next(length for length in CHUNKS if length >= len(piece)))
            start = len(cache.ids)
            cache.reserve(start + len(padded))
            key = ("last", len(padded), cache.capacity)
            logits, cache.k, cache.v = self._run(
                key, self._read_last, self.params, padded, np.int32(len(piece)), np.int32(start),
                self._turns(cache), cache.k, cache.v,
            )  # fmt: skip
            cache.ids.extend(piece)
        return logits

    def choose(self, logits: jax.Array, seen: jax.Array, settings: Settings, counter: int, n_top: int) -> Choice:
        """Choose a token from logits on the device, among the tokens that the vocabulary names."""
        key = ("choose", n_top, settings.greedy)
        return self._run(key, self._choose, logits, seen, settings, np.int32(counter), n_top, n_static=1)

    def fingerprint(self) -> dict[str, Any]:
        """What could make two runs of this engine differ."""
        device = jax.devices()[0]
        return {
            "engine": "accel",
            "arith": self.arith,
            "dtype": "float32",
            "device": f"{device.platform}:{device.device_kind}",
            "jax": jax.__version__,
            "jaxlib": version("jaxlib"),
        }

    def _run(self, key: tuple[Any, ...], function: Any, *arguments: Any, n_static: int = 0) -> Any:
        """Call ``function``, compiled once for ``key``; the time to compile is booked apart from the call's."""
        if key not in self._programs:
            started = time.perf_counter()
            self._programs[key] = function.lower(*arguments).compile(compiler_options())
            self.compile_s += time.perf_counter() - started
        return self._programs[key](*arguments[: len(arguments) - n_static])

    def _turns(self, cache: KVCache) -> jax.Array:
        """The RoPE table as long as the cache: a slice past its end would be moved, silently."""
        if cache.capacity not in self._rope_tables:
            config = self.file.config
            self._rope_tables[cache.capacity] = rope_table(cache.capacity, config.head_dim, config.rope_theta)
        return self._rope_tables[cache.capacity]

    def _device_tap(self, stage: str, layer: jax.Array | int, activation: jax.Array) -> jax.Array:
        """A tap for inside a compiled program: hands the activation to the host's tap and takes one back."""
        like = jax.ShapeDtypeStruct(activation.shape, activation.dtype)
        return io_callback(partial(self._show, stage), like, layer, activation, ordered=True)

    def _show(self, stage: str, layer: np.ndarray, activation: np.ndarray) -> np.ndarray:
        """Show the host's tap the rows that are tokens, not padding."""
        assert self._tap is not None
        whole = np.array(activation)
        index = int(layer)
        whole[: self._n_shown] = self._tap(stage, None if index < 0 else index, whole[: self._n_shown].copy())
        return whole


def compiler_options() -> dict[str, Any]:
    """Options for this device. XLA's CPU backend prefers 256-bit vectors even where the processor has 512; the integer
    dots gain 20 to 50 % from the wider ones (measured on Zen 4), and narrower processors ignore the wish."""
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}


def pad(ids: Sequence[int], length: int) -> np.ndarray:
    """ids followed by zeros, int32 [length]; what padding computes lies behind every real token, unseen."""
    padded = np.zeros(length, np.int32)
    padded[: len(ids)] = ids
    return padded


def finite_logits(logits: jax.Array) -> np.ndarray:
    """Logits on the host; NumericError if one of them is NaN or infinite."""
    on_host = np.asarray(logits)
    if not np.isfinite(on_host).all():
        raise not_finite()
    return on_host


def not_finite() -> NumericError:
    """The error for logits that are no numbers."""
    return NumericError("a logit is NaN or infinite", where="stage logits",
                        remedy="Trace the stages to find where it first appears")  # fmt: skip
