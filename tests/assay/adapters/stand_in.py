"""What ``transformers`` gives its Qwen2 modules, in NumPy: the same names, hooks and order of calls, and no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

from assay.formats import ModelFile
from assay.formats.contract.config import Config


class NumpyArrays:
    """NumPy's arrays, as the adapter wants a library's."""

    def ids(self, ids: Sequence[int]) -> Any:
        return np.array([list(ids)])

    def numpy(self, x: Any) -> np.ndarray:
        return x.copy()

    def like(self, array: np.ndarray, x: Any) -> Any:
        return array.astype(x.dtype)

    def assign(self, x: Any, other: Any) -> None:
        x[...] = other

    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Module:
    """``torch.nn.Module``, as far as hooks need one."""

    def register_forward_hook(self, hook: Callable[[Any, Any, Any], Any]) -> Any:
        return self._register("_after", hook)

    def register_forward_pre_hook(self, hook: Callable[[Any, Any], Any]) -> Any:
        return self._register("_before", hook)

    def _register(self, kind: str, hook: Any) -> Any:
        hooks = self.__dict__.setdefault(kind, [])
        hooks.append(hook)
        return SimpleNamespace(remove=lambda: hooks.remove(hook))

    def __call__(self, *args: Any, **options: Any) -> Any:
        for hook in list(self.__dict__.get("_before", [])):
            assert hook(self, args) is None
        out = self.forward(*args, **options)
        for hook in list(self.__dict__.get("_after", [])):
            changed = hook(self, args, out)
            out = out if changed is None else changed
        return out

    def forward(self, *args: Any, **options: Any) -> Any:
        """What the module computes."""

    def hooks(self) -> Iterator[Any]:
        """Those of it and of all modules in it."""
        for name, one in vars(self).items():
            if name in ("_after", "_before"):
                yield from one
            for part in one if isinstance(one, list) else [one]:
                if isinstance(part, Module):
                    yield from part.hooks()


class Linear(Module):
    def __init__(self, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.bias


class Embedding(Linear):
    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.weight[x]


class Norm(Module):
    def __init__(self, weight: np.ndarray, eps: float) -> None:
        self.weight, self.eps = weight, np.float32(eps)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps) * self.weight


class Silu(Module):
    def forward(self, x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))


def apply_rotary_pos_emb(q: np.ndarray, k: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[Any, Any]:
    def turned(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], -1) * sin

    return turned(q), turned(k)


class Attention(Module):
    def __init__(self, config: Config, linear: Callable[..., Linear]) -> None:
        self.config = config
        self.q_proj, self.k_proj, self.v_proj = (linear(f"attn_{one}", bias=True) for one in "qkv")
        self.o_proj = linear("attn_output")

    def forward(self, x: np.ndarray, turns: tuple[np.ndarray, np.ndarray]) -> Any:
        def heads(y: np.ndarray) -> np.ndarray:
            return y.reshape(*y.shape[:2], -1, self.config.head_dim).swapaxes(1, 2)

        q, k, v = (heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *turns)
        k, v = (np.repeat(y, self.config.n_heads // self.config.n_kv_heads, axis=1) for y in (k, v))
        scores = q @ k.swapaxes(-1, -2) * np.float32(self.config.head_dim**-0.5)
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        return self.o_proj(np.ascontiguousarray(mixed.swapaxes(1, 2)).reshape(*x.shape[:2], -1)), None


class MLP(Module):
    def __init__(self, linear: Callable[..., Linear]) -> None:
        self.gate_proj, self.up_proj, self.down_proj = (linear(f"ffn_{one}") for one in ("gate", "up", "down"))
        self.act_fn = Silu()

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Layer(Module):
    def __init__(self, file: ModelFile, layer: int) -> None:
        def linear(name: str, bias: bool = False) -> Linear:
            place = f"blk.{layer}.{name}"
            return Linear(values(file, f"{place}.weight"), values(file, f"{place}.bias") if bias else 0.0)

        eps = file.config.rms_norm_eps
        self.input_layernorm = Norm(values(file, f"blk.{layer}.attn_norm.weight"), eps)
        self.post_attention_layernorm = Norm(values(file, f"blk.{layer}.ffn_norm.weight"), eps)
        self.self_attn, self.mlp = Attention(file.config, linear), MLP(linear)

    def forward(self, x: np.ndarray, turns: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        residual = x
        x, _ = self.self_attn(self.input_layernorm(x), turns=turns)
        x = residual + x
        residual = x
        return residual + self.mlp(self.post_attention_layernorm(x))


class Base(Module):
    def __init__(self, file: ModelFile) -> None:
        self.embed_tokens = Embedding(values(file, "token_embd.weight"))
        self.layers = [Layer(file, layer) for layer in range(file.config.n_layers)]
        self.norm = Norm(values(file, "output_norm.weight"), file.config.rms_norm_eps)
        self.config = file.config

    def forward(self, ids: np.ndarray) -> np.ndarray:
        half = self.config.head_dim // 2
        angles = np.arange(ids.shape[1])[:, None] * self.config.rope_theta ** (-np.arange(half) / half)
        turns = tuple(np.tile(f(angles), 2).astype(np.float32) for f in (np.cos, np.sin))
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, turns)
        return self.norm(x)


class CausalLM(Module):
    """``Qwen2ForCausalLM``; its cache is the ids that were read."""

    def __init__(self, file: ModelFile) -> None:
        self.model = Base(file)
        name = "token_embd.weight" if file.config.tied else "output.weight"
        self.lm_head = Linear(values(file, name))
        self.dtype, self.device, self.training = np.dtype(np.float32), "cpu", False
        self.config = SimpleNamespace(_attn_implementation="eager")

    def forward(self, input_ids: np.ndarray, use_cache: bool, past_key_values: Any = None) -> Any:
        read = input_ids if past_key_values is None else np.concatenate([past_key_values, input_ids], 1)
        return SimpleNamespace(logits=self.lm_head(self.model(read)), past_key_values=read if use_cache else None)


def values(file: ModelFile, name: str) -> np.ndarray:
    """A tensor in f32."""
    return np.asarray(file.tensors[name].decode(), np.float32)
