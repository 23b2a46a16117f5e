"""Qwen2: a stack of layers, each adding to the residual stream first what attention, then what the
feed-forward network makes of it.

Read :func:`forward` from top to bottom: that is the whole model. Every intermediate value has a name
(``assay.formats.contract.config.STAGES``) and passes through ``tap``, which may look at it or replace it.

Source: Qwen Team, "Qwen2 Technical Report", 2024 (a Llama-style decoder with biases on q, k and v).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from assay.formats import ModelFile, NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Prompt, Tap, identity
from assay.reference.arithmetic import Arithmetic, arithmetic
from assay.reference.attention import KVCache, attention
from assay.reference.chat import chat_prompt
from assay.reference.linear import linear
from assay.reference.rms_norm import rms_norm
from assay.reference.rope import rotate, rotation_angles
from assay.reference.swiglu import silu
from assay.reference.tokenizer import Tokenizer
from assay.reference.weights import Weights


def forward(ids: Sequence[int], weights: Weights, arith: Arithmetic, cache: KVCache, tap: Tap) -> np.ndarray:
    """Read ``ids`` after the tokens already in ``cache``: the normalised residual stream of each.

    Returns [n_tokens, hidden_size], ready for :func:`logits`. Extends the cache.
    """
    config = weights.model.config
    positions = np.arange(len(cache.ids), len(cache.ids) + len(ids))
    angles = rotation_angles(positions, config.head_dim, config.rope_theta)

    x = tap("embedding", None, weights.embedding(np.asarray(ids), arith.dtype))
    for layer in range(config.n_layers):
        x = attention_block(x, layer, angles, weights, arith, cache, tap)
        x = feed_forward_block(x, layer, weights, arith, tap)
    cache.ids.extend(ids)
    gain = weights.vector("output_norm.weight", arith.dtype)
    return tap("final_norm", None, rms_norm(x, gain, config.rms_norm_eps))


def attention_block(x: np.ndarray, layer: int, angles: np.ndarray, weights: Weights, arith: Arithmetic,
                    cache: KVCache, tap: Tap) -> np.ndarray:  # fmt: skip
    """x + W_o·attention(rope(W_q·h + b_q), rope(W_k·h + b_k), W_v·h + b_v), h = rms_norm(x).

    x [n_tokens, hidden_size] -> same shape.
    """
    config, name = weights.model.config, f"blk.{layer}.".__add__
    gain = weights.vector(name("attn_norm.weight"), arith.dtype)
    h = tap("attn_norm", layer, rms_norm(x, gain, config.rms_norm_eps))

    def project(which: str) -> np.ndarray:
        return tap(f"{which}_proj", layer, linear(h, weights, name(f"attn_{which}.weight"), arith))

    def add_bias(which: str, y: np.ndarray) -> np.ndarray:
        return tap(f"{which}_bias", layer, y + weights.vector(name(f"attn_{which}.bias"), arith.dtype))

    def heads(y: np.ndarray) -> np.ndarray:
        return y.reshape(len(y), -1, config.head_dim)

    q, k, v = project("q"), project("k"), project("v")
    q, k, v = add_bias("q", q), add_bias("k", k), add_bias("v", v)
    q = tap("q_rope", layer, rotate(heads(q), angles))
    k = tap("k_rope", layer, rotate(heads(k), angles))
    v = heads(v)
    if arith.f16_cache:  # llama.cpp stores keys and values in f16, and meets them with an f16 query
        q, k, v = (a.astype(np.float16).astype(arith.dtype) for a in (q, k, v))
    mixed = tap("attention", layer, attention(q, *cache.append(layer, k, v)).reshape(len(x), -1))
    out = tap("attn_out", layer, linear(mixed, weights, name("attn_output.weight"), arith))
    return tap("attn_residual", layer, x + out)


def feed_forward_block(x: np.ndarray, layer: int, weights: Weights, arith: Arithmetic, tap: Tap) -> np.ndarray:
    """x + W_down·(silu(W_gate·h) ⊙ W_up·h), h = rms_norm(x). x [n_tokens, hidden_size] -> same shape."""
    name = f"blk.{layer}.".__add__
    gain = weights.vector(name("ffn_norm.weight"), arith.dtype)
    h = tap("ffn_norm", layer, rms_norm(x, gain, weights.model.config.rms_norm_eps))
    gate = tap("ffn_gate", layer, linear(h, weights, name("ffn_gate.weight"), arith))
    up = tap("ffn_up", layer, linear(h, weights, name("ffn_up.weight"), arith))
    gated = tap("ffn_swiglu", layer, tap("ffn_silu", layer, silu(gate)) * up)
    out = tap("ffn_out", layer, linear(gated, weights, name("ffn_down.weight"), arith))
    return tap("ffn_residual", layer, x + out)


def logits(x: np.ndarray, weights: Weights, arith: Arithmetic, tap: Tap) -> np.ndarray:
    """A score for every token of the vocabulary: x [n_tokens, hidden_size] -> [n_tokens, n_vocab].

    A tied model has no output matrix of its own; the embedding matrix serves, each row scoring its token.
    """
    name = "token_embd.weight" if weights.model.config.tied else "output.weight"
    scores = tap("logits", None, linear(x, weights, name, arith))
    if not np.isfinite(scores).all():
        raise NumericError("a logit is NaN or infinite", where="stage logits",
                           remedy="Trace the stages to find where it first appears")  # fmt: skip
    return scores


class Model:
    """The oracle as an engine (``assay.formats.contract.engine.Engine``): one model file in one arithmetic."""

    @checked
    def __init__(self, file: ModelFile, *, arith: str = "f32", cache_weights: bool = False,
                 nfc: bool = True) -> None:  # fmt: skip
        self.file = file
        self.arith = arithmetic(arith)
        self.weights = Weights(file, cache=cache_weights)
        self.tokenizer = Tokenizer(file.vocabulary, nfc=nfc)
        self.open_s = 0.0

    @checked
    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
                    add_generation_prompt: bool | None = None,
                    continue_final_message: bool = False) -> Prompt:  # fmt: skip
        """The prompt for a conversation, by the file's own template; arguments and errors as of ``chat.render``."""
        return chat_prompt(self.file, messages, tools=tools, add_generation_prompt=add_generation_prompt,
                           continue_final_message=continue_final_message)  # fmt: skip

    def new_cache(self) -> KVCache:
        """An empty cache."""
        return KVCache(self.file.config.n_layers)

    @checked
    def forward(self, ids: Sequence[int], tap: Tap | None = None, cache: KVCache | None = None) -> np.ndarray:
        """Logits [n_tokens, n_vocab] of every position of a sequence, which starts after what ``cache`` holds."""
        return self._read(ids, self.new_cache() if cache is None else cache, tap or identity)

    @checked
    def prefill(self, ids: Sequence[int], cache: KVCache | None = None,
                tap: Tap | None = None) -> tuple[np.ndarray, KVCache]:  # fmt: skip
        """Append ``ids`` to the cache; logits [n_vocab] after the last of them, and the cache."""
        cache = self.new_cache() if cache is None else cache
        return self._read(ids, cache, tap or identity, last_only=True)[0], cache

    @checked
    def decode(self, token: int, cache: KVCache, tap: Tap | None = None) -> tuple[np.ndarray, KVCache]:
        """Append one token; logits [n_vocab] after it, and the cache."""
        return self.prefill([token], cache, tap)

    @checked
    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """The rows of the embedding that ``ids`` name [n_tokens, hidden_size]."""
        self.file.check_known(ids)
        return self.weights.embedding(np.asarray(ids), self.arith.dtype)

    @checked
    def rounding(self, rounded: Callable[[str, np.ndarray], np.ndarray]) -> Model:
        """This model with ``rounded(tensor, x)`` for x [n_tokens, in_features] wherever a matrix is multiplied."""
        other = copy(self)
        other.arith = self.arith._replace(rounded=rounded)
        return other

    def fingerprint(self) -> dict[str, Any]:
        """What could make two runs of this engine differ."""
        return {
            "engine": "reference",
            "arith": self.arith.name,
            "dtype": self.arith.dtype.name,
            "device": platform.machine(),
            "numpy": np.__version__,
        }

    def _read(self, ids: Sequence[int], cache: KVCache, tap: Tap, *, last_only: bool = False) -> np.ndarray:
        self.file.check_ids(ids, n_past=len(cache.ids))
        with np.errstate(over="ignore", invalid="ignore"):  # an infinity on the way ends in a NumericError
            x = forward(ids, self.weights, self.arith, cache, tap)
            return logits(x[-1:] if last_only else x, self.weights, self.arith, tap)
