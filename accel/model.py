"""The fast engine: one model file packed onto the device (twin of ``reference/model.py``).

The prompt is read in chunks of a few fixed lengths, then one token at a time, several steps in one call of the device
(multi-step decode). The key/value cache is donated to each call and updated in place. Each set of shapes is compiled
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay.accel.attention import CACHE_TYPES, SMALLEST_CAPACITY, KVCache, block_width
from assay.accel.chat import chat_prompt
from assay.accel.device import dense_type
from assay.accel.jax_settings import default_device, in_own_settings
from assay.accel.matmul import FEW_TOKENS
from assay.accel.pack import pack, plan
from assay.accel.programs import Programs, give_back_memory
from assay.accel.rope import rope_table
from assay.accel.sampler import SampledToken, Settings, settings_of
from assay.accel.steps import MOST_STEPS, DeviceTap, State, decode, embed, read, read_all
from assay.accel.taps import Taps
from assay.accel.tokenizer import Tokenizer
from assay.formats import InputError, ModelFile, NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Prompt, Sampling, Tap, identity

ARITHMETICS = ("fast", "f32")
"""The first is the default; ``accel/matmul.py`` says what each computes."""
CACHE_TYPE_OF = {"fast": "f16", "f32": "f32"}
"""Unless another is asked for. llama.cpp keeps f16, and so does the oracle's ggml arithmetic."""
CHUNKS = (16, 32, 64, 128, 256, 512)
"""Lengths a program is compiled for; a shorter piece of prompt is padded up to the next."""
LONGEST = {"bfloat16": 512, "float32": 256}
"""Tokens read at once, at most. Longer pieces decode weights less often, but their activations leave the cache: the
1.5B reads 990 tokens with f32 dots on Zen 3 by 512 at 41 tokens/s, by 256 at 46 to 48, in 25 MB less."""
ONE_BY_ONE = 8
"""Up to so many tokens are read as decoding reads them: each costs the weights once more, but a generation needs that
program anyway, and compiling one for 8 tokens takes longer than reading them so often."""


class Model:
    """The fast engine (``assay.formats.contract.engine.Engine``): one model file packed onto the device."""

    @checked
    def __init__(self, file: ModelFile, *, arith: str = ARITHMETICS[0], cache_type: str | None = None, nfc: bool = True,
                 progress: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
        if cache_type is None:
            cache_type = CACHE_TYPE_OF.get(arith, "f32")
        for what, value, known, where in (("arithmetic", arith, ARITHMETICS, "--arith"),
                                          ("cache type", cache_type, tuple(CACHE_TYPES), "--cache-type")):  # fmt: skip
            if value not in known:
                raise InputError(f"the accelerated engine has no {what} {value!r}", where=where,
                                 remedy=f"Choose one of {', '.join(known)}")  # fmt: skip
        self.device = default_device()
        """Where all of it is: decided here, whatever the default is later."""
        self.file, self.arith, self.cache_type = file, arith, cache_type
        self.open_s = 0.0
        self.programs, self.taps = Programs(self.device), Taps(self.device)
        self._rope_tables: dict[int, jax.Array] = {}
        self._end_ids = np.array(sorted(file.vocabulary.end_ids), np.int32)
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
            tokenizer = pool.submit(Tokenizer, file.vocabulary, nfc=nfc)
            self.params = self._packed(progress)
            self.tokenizer = tokenizer.result()
        give_back_memory()

    @checked
    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
                    add_generation_prompt: bool | None = None,
                    continue_final_message: bool = False) -> Prompt:  # fmt: skip
        """The prompt for a conversation, by the file's own template; arguments and errors as of ``chat.render``."""
        return chat_prompt(self.file, messages, tools=tools, add_generation_prompt=add_generation_prompt,
                           continue_final_message=continue_final_message)  # fmt: skip

    @in_own_settings
    def _packed(self, progress: Callable[[int, int], None] | None) -> Any:
        """The weights on the device; the usual program compiles while they are packed."""
        self.params: Any = plan(self.file)
        self._prepare()
        return pack(self.file, progress)

    @in_own_settings
    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        config = self.file.config
        return KVCache(config.n_layers, config.n_kv_heads, config.head_dim, self.cache_type)

    @in_own_settings
    def new_seen(self, ids: Sequence[int]) -> jax.Array:
        """The ids of a prompt as the sampler wants to know them: bool [1, n_rows]."""
        seen = np.zeros((1, self.file.config.n_vocab), bool)
        seen[0, list(ids)] = True
        return jnp.asarray(seen)

    @checked
    @in_own_settings
    def prefill(self, ids: Sequence[int], cache: KVCache | None = None,
                tap: Tap | None = None) -> tuple[np.ndarray, KVCache]:  # fmt: skip
        """Append ``ids`` to the cache; logits [n_vocab] after the last of them, and the cache.

        With a ``tap`` the programs are those of a generation with calls back to the host in them.
        """
        cache = self.new_cache() if cache is None else cache
        _, logits, _ = self.read(ids, cache, self.new_seen([]), settings_of(Sampling()), tap=tap)
        return finite_logits(logits)[0], cache

    @checked
    def decode(self, token: int, cache: KVCache, tap: Tap | None = None) -> tuple[np.ndarray, KVCache]:
        """Append one token; logits [n_vocab] after it, and the cache. ``tap`` as in :meth:`prefill`."""
        return self.prefill([token], cache, tap)

    @checked
    @in_own_settings
    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """The rows of the embedding that ``ids`` name, f32 [n_tokens, hidden_size], as every program looks them up."""
        self.file.check_known(ids)
        padded = pad(ids, 1 << max(4, (len(ids) - 1).bit_length()))
        rows = self.programs.run(("embed", len(padded)), partial(embed, self.file.config), self.params, padded)
        return np.asarray(rows)[: len(ids)]

    @checked
    @in_own_settings
    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits [n_tokens, n_vocab] of every position of a sequence that starts at position 0.

        With a ``tap`` the compiled program calls back to the host at every stage of every layer, and goes on
        with what the tap returns. Raises InputError where JAX's transfer guard forbids that.
        """
        self.file.check_ids(ids)
        cache = self.new_cache()
        padded = pad(ids, 1 << max(4, (len(ids) - 1).bit_length()))
        cache.reserve(len(padded))
        key = (*self._named("all", tap), len(padded), cache.capacity)
        turns = self._turns(cache.capacity)
        function = partial(read_all, self.file.config, self.arith, self._device_tap(tap))
        with self.taps.shown_to(tap, len(ids)):
            logits = self.programs.run(key, function, self.params, padded, turns, cache.k, cache.v)
            return finite_logits(logits)[: len(ids)]

    @in_own_settings
    def read(self, ids: Sequence[int], cache: KVCache, seen: jax.Array, settings: Settings, n_top: int = 0,
             tap: Tap | None = None) -> tuple[SampledToken, jax.Array, jax.Array]:  # fmt: skip
        """Append ``ids`` to the only sequence of the cache, chunk by chunk, and choose the first token after them.

        Returns the choice, in NumPy scalars, and on the device the logits [1, n_rows] and ``seen``, which was donated.
        """
        self.file.check_ids(ids, n_past=len(cache.ids))
        cache.reserve(len(cache.ids) + len(ids))  # at once: each size of cache has programs of its own
        choices: Any = None
        logits: Any = None
        longest = LONGEST[dense_type(self.arith, self.device).name]
        for at in range(0, len(ids), longest):
            piece = list(ids[at : at + longest])
            if len(piece) <= ONE_BY_ONE:
                for token in piece:
                    steps, logits, seen = self.decode_steps(
                        [token], cache, seen, settings, 0, 1, np.zeros(1, bool), n_top, tap
                    )
                    choices = steps[0]
                    cache.ids.append(token)
            else:
                choices, logits, seen = self._read_chunk(piece, cache, seen, settings, n_top, tap)
                cache.ids.extend(piece)
        return jax.tree.map(lambda a: a[0], choices), logits, seen

    def _read_chunk(self, ids: list[int], cache: KVCache, seen: jax.Array, settings: Settings, n_top: int,
                    tap: Tap | None) -> tuple[SampledToken, jax.Array, jax.Array]:  # fmt: skip
        padded = pad(ids, next(length for length in CHUNKS if length >= len(ids)))[None]
        start = np.array([len(cache.ids)], np.int32)
        cache.reserve(len(cache.ids) + padded.shape[1])
        key = (*self._named("read", tap), padded.shape, cache.capacity, n_top, settings.greedy)
        with self.taps.shown_to(tap, len(ids)):
            choices, logits, state = self.programs.run(
                key, self._step(read, n_top, tap), self.params, padded, np.int32(len(ids)), start,
                self._turns(cache.capacity), State(cache.k, cache.v, seen), settings, np.int32(0), donate=(5,),
            )  # fmt: skip
            cache.k, cache.v, seen = state
            return jax.device_get(choices), logits, seen

    def _step(self, step: Callable[..., Any], n_top: int, tap: Tap | None = None) -> Callable[..., Any]:
        """A step of ``accel/steps.py`` for this model; the same step calls back where there is a ``tap``."""
        return partial(step, self.file.config, self.arith, n_top, len(self.file.vocabulary), self._device_tap(tap))

    def _device_tap(self, tap: Tap | None) -> DeviceTap:
        """What a program calls at every stage: nothing, unless there is a ``tap``."""
        return self.taps.device_tap if tap else identity

    def _named(self, name: str, tap: Tap | None) -> tuple[str, ...]:
        """What a program is known by: one with taps in it is another."""
        return (name, "tapped") if tap else (name,)

    @in_own_settings
    def decode_steps(self, tokens: Sequence[int], cache: KVCache, seen: jax.Array, settings: Settings, counter: int,
                     n_steps: int, ended: np.ndarray, n_top: int = 0,
                     tap: Tap | None = None) -> tuple[list[SampledToken], jax.Array, jax.Array]:  # fmt: skip
        """Read one token for each sequence of the cache, then what each of them chose, ``n_steps`` times in all.

        Returns the choices that were made, as NumPy arrays [n_sequences] for each step, and on the device the last
        logits [n_sequences, n_rows] and ``seen``. The caller enters into ``cache.sequences`` what it accepts. A ``tap``
        is shown a row for each sequence, step after step.
        """
        start = np.array([len(ids) for ids in cache.sequences], np.int32)
        cache.reserve(int(start.max()) + n_steps)
        key = (*self._named("decode", tap), len(tokens), cache.capacity, n_top, settings.greedy)
        with self.taps.shown_to(tap, len(tokens)):
            choices, made, logits, state = self.programs.run(
                key, self._step(decode, n_top, tap), self.params, np.array(tokens, np.int32), start,
                self._turns(cache.capacity), State(cache.k, cache.v, seen), settings, np.int32(counter),
                np.int32(n_steps), ended, self._end_ids, donate=(4,),
            )  # fmt: skip
            cache.k, cache.v, seen = state
            choices, made = jax.device_get((choices, made))
        return [jax.tree.map(lambda a, i=i: a[i], choices) for i in range(int(made))], logits, seen

    @in_own_settings
    def join(self, caches: Sequence[KVCache], seen: Sequence[jax.Array]) -> tuple[KVCache, jax.Array]:
        """One cache with the sequences of all, side by side, and what was ``seen`` of each; the others are used up."""
        caches[0].join(caches[1:])
        return caches[0], jnp.concatenate(seen)

    @in_own_settings
    def recover(self, cache: KVCache) -> None:
        """``KVCache.recover``: start empty where an interrupted step took the arrays."""
        cache.recover()

    def fingerprint(self) -> dict[str, Any]:
        """What could make two runs of this engine differ."""
        device = self.device
        return {
            "engine": "accel",
            "arith": self.arith,
            "dtype": "float32",
            "dense": dense_type(self.arith, self.device).name,
            "int8_up_to": FEW_TOKENS if self.arith == "fast" else 0,
            "cache": self.cache_type,
            "boundaries": self._boundaries(),
            "device": f"{device.platform}:{device.device_kind}",
            "jax": jax.__version__,
            "jaxlib": version("jaxlib"),
        }

    def _boundaries(self) -> dict[str, Any]:
        """The lengths, in tokens, at which what is computed goes another way."""
        context = self.file.config.context_length
        longest = LONGEST[dense_type(self.arith, self.device).name]
        capacities = [SMALLEST_CAPACITY]
        while capacities[-1] < context:
            capacities.append(2 * capacities[-1])
        return {
            "one_by_one": ONE_BY_ONE,
            "few": FEW_TOKENS,
            "chunk": [length for length in CHUNKS if length <= longest],
            "attention_block": sorted({block_width(capacity) for capacity in capacities}),
            "cache": capacities,
            "steps": MOST_STEPS,
        }

    def _prepare(self) -> None:
        """Begin to compile what every generation needs: greedy decoding of one sequence in the smallest cache."""
        struct, cache, config = jax.ShapeDtypeStruct, self.new_cache(), self.file.config
        settings = settings_of(Sampling())
        state = jax.tree.map(lambda a: struct(a.shape, a.dtype), State(cache.k, cache.v, self.new_seen([])))
        number, one = struct((), jnp.int32), struct((1,), jnp.int32)
        turns = struct((cache.capacity, 2, config.head_dim // 2), jnp.float32)
        self.programs.prepare(
            ("decode", 1, cache.capacity, 0, settings.greedy), self._step(decode, 0), self.params, one, one, turns,
            state, settings, number, number, struct((1,), jnp.bool_), struct(self._end_ids.shape, jnp.int32),
            donate=(4,),
        )  # fmt: skip

    def _turns(self, capacity: int) -> jax.Array:
        """The RoPE table as long as the cache: an index past its end would be moved, silently."""
        if capacity not in self._rope_tables:
            config = self.file.config
            self._rope_tables[capacity] = rope_table(capacity, config.head_dim, config.rope_theta)
        return self._rope_tables[capacity]


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
    """The error for logits that are not numbers."""
    return NumericError("a logit is NaN or infinite", where="stage logits",
                        remedy="Trace the stages to find where it first appears")  # fmt: skip
