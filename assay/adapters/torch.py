"""A ``transformers`` Qwen2 model before the judge: of any dtype, with quantised layers, with kernels of the user's own.

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    print(assay.judge(TransformersEngine(model), folder))

Every stage is shown by hooks on the modules that compute it, which are there while a tapped ``forward`` runs and are
taken off again. What is hooked is found by the names that ``transformers`` gives these modules. A module without one of
them (a fused MLP, say) shows what it has; the others are not shown, and a fault there counts to the next stage that is.

    embed_tokens  out: embedding             o_proj                    in: attention
    input_layernorm  out: attn_norm          self_attn                 out: attn_out
    q_proj k_proj v_proj  out: *_bias        post_attention_layernorm  in: attn_residual, out: ffn_norm
    apply_rotary_pos_emb  out: q_rope k_rope gate_proj up_proj         out: ffn_gate ffn_up
    norm, lm_head  out: final_norm logits    act_fn                    out: ffn_silu
                                             down_proj                 in: ffn_swiglu
                                             mlp                       out: ffn_out
                                             the layer                 out: ffn_residual

A linear layer adds its bias by itself, so ``q_proj``, ``k_proj`` and ``v_proj`` (before the bias) are never shown.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from assay.formats.contract.arguments import checked
from assay.formats.contract.declaration import Declaration
from assay.formats.contract.engine import Tap
from assay.formats.errors import InputError

OUTPUTS = {"input_layernorm": "attn_norm", "self_attn.q_proj": "q_bias", "self_attn.k_proj": "k_bias",
           "self_attn.v_proj": "v_bias", "self_attn": "attn_out", "post_attention_layernorm": "ffn_norm",
           "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.act_fn": "ffn_silu", "mlp": "ffn_out",
           "": "ffn_residual"}  # fmt: skip
"""Modules of a layer, and the stage that each one's output is."""
INPUTS = {"self_attn.o_proj": "attention", "post_attention_layernorm": "attn_residual", "mlp.down_proj": "ffn_swiglu"}
"""Modules of a layer, and the stage that each one's input is."""
ROTATE = "apply_rotary_pos_emb"
"""The function that turns queries and keys; it is in no module, so it is wrapped where attention finds it."""


class Arrays(Protocol):
    """The library's arrays."""

    def ids(self, ids: Sequence[int]) -> Any:
        """Token ids [1, n_tokens]."""
        ...

    def numpy(self, x: Any) -> np.ndarray:
        """An activation as NumPy's array: f64 stays f64, all else becomes f32."""
        ...

    def like(self, array: np.ndarray, x: Any) -> Any:
        """``array`` in the type, and on the device, of the activation ``x``."""
        ...

    def assign(self, x: Any, other: Any) -> None:
        """Write ``other`` into ``x``."""
        ...

    def running(self) -> AbstractContextManager[Any]:
        """In which the model runs: nothing is kept for gradients."""
        ...


class TorchArrays:
    """PyTorch's."""

    def __init__(self, device: Any) -> None:
        try:
            import torch
        except ImportError as error:
            raise InputError(f"PyTorch cannot be imported: {error}", where="torch",
                             remedy="Install it: pip install 'assay[torch]'") from error  # fmt: skip
        self.torch, self.device = torch, device

    def ids(self, ids: Sequence[int]) -> Any:
        return self.torch.tensor([list(ids)], device=self.device)

    def numpy(self, x: Any) -> np.ndarray:
        wide = self.torch.float64 if x.dtype == self.torch.float64 else self.torch.float32
        return x.detach().to(device="cpu", dtype=wide).numpy().copy()

    def like(self, array: np.ndarray, x: Any) -> Any:
        return self.torch.from_numpy(np.array(array)).to(device=x.device, dtype=x.dtype)

    def assign(self, x: Any, other: Any) -> None:
        x.copy_(other)

    def running(self) -> AbstractContextManager[Any]:
        return self.torch.no_grad()


class TransformersEngine:
    """A ``Qwen2ForCausalLM`` as an engine (``contract.engine.Engine``).

    ``declaration``: what its arithmetic rounds; None: as its dtype says, which is not all where layers are quantised.
    ``tokenizer``: the library's, if it is to be judged, too. Not to be used by two threads at once while it is tapped.
    """

    @checked
    def __init__(self, model: Any, *, declaration: Declaration | None = None, tokenizer: Any = None,
                 arrays: Any = None) -> None:  # fmt: skip
        """Raises InputError for a model of another kind, one that is training, and where there is no PyTorch."""
        for path in ("model.embed_tokens", "model.layers", "model.norm"):
            if part_of(model, path) is None:
                raise InputError(f"a {type(model).__name__} has no {path}", where="TransformersEngine",
                                 remedy="Give a Qwen2ForCausalLM")  # fmt: skip
        if getattr(model, "training", False):
            raise InputError("the model is being trained", where="TransformersEngine", remedy="Call model.eval()")
        self.model, self.declaration, self.layer = model, declaration, 0
        self.arrays: Arrays = arrays or TorchArrays(model.device)
        if tokenizer is not None:
            self.tokenizer = tokenizer

    @checked
    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits [n_tokens, n_vocab] of every position, f32, in one pass and without a cache."""
        with self.arrays.running(), ExitStack() as hooks:
            if tap is not None:
                hooks.enter_context(self._hooked(tap))
            found = self.model(input_ids=self.arrays.ids(ids), use_cache=False)
        return self.arrays.numpy(found.logits)[0]

    @checked
    def prefill(self, ids: Sequence[int], cache: Any = None) -> tuple[np.ndarray, Any]:
        """Append ``ids`` to the library's cache (a new one if None); logits [n_vocab] of the last, and the cache."""
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        with self.arrays.running():
            found = self.model(input_ids=self.arrays.ids(ids), use_cache=True, **{name: cache})
        return self.arrays.numpy(found.logits)[0, -1], getattr(found, name)

    @checked
    def decode(self, token: int, cache: Any) -> tuple[np.ndarray, Any]:
        """As ``prefill`` of one token."""
        return self.prefill([token], cache)

    def fingerprint(self) -> dict[str, Any]:
        """What could make two runs of this model differ."""
        declared = self.declaration or declaration_of(self.model)
        return {
            "engine": type(self.model).__name__, "dtype": dtype_of(self.model), "device": str(self.model.device),
            "attention": str(self.model.config._attn_implementation),
            **{name: version(name) for name in ("torch", "transformers") if isinstance(self.arrays, TorchArrays)},
            "declaration": declared.to_json() if declared else None,
        }  # fmt: skip

    @contextmanager
    def _hooked(self, tap: Tap) -> Iterator[None]:
        """Hooks on every module that shows a stage, while the block lasts."""
        base = self.model.model
        with ExitStack() as hooks:

            def output(module: Any, stage: str, layer: int | None) -> None:
                if hasattr(module, "register_forward_hook"):
                    hook = module.register_forward_hook(lambda _, args, out: self._show_output(tap, stage, layer, out))
                    hooks.callback(hook.remove)

            def before(module: Any, hook: Callable[[Any, Any], Any]) -> None:
                if hasattr(module, "register_forward_pre_hook"):
                    hooks.callback(module.register_forward_pre_hook(hook).remove)

            output(base.embed_tokens, "embedding", None)
            output(base.norm, "final_norm", None)
            output(part_of(self.model, "lm_head"), "logits", None)
            for i, layer in enumerate(base.layers):
                before(part_of(layer, "self_attn"), lambda module, args, i=i: setattr(self, "layer", i))
                for path, stage in INPUTS.items():
                    before(part_of(layer, path),
                           lambda module, args, stage=stage, i=i: self._show_input(tap, stage, i, args))  # fmt: skip
                for path, stage in OUTPUTS.items():
                    output(part_of(layer, path), stage, i)
            self._wrap_rotation(tap, hooks)
            yield

    def _show_output(self, tap: Tap, stage: str, layer: int | None, out: Any) -> Any:
        """A module's output as the tap returns it; of a tuple (older versions' layers, attention) the first."""
        if isinstance(out, tuple):
            return (self._shown(tap, stage, layer, out[0]), *out[1:])
        return self._shown(tap, stage, layer, out)

    def _show_input(self, tap: Tap, stage: str, layer: int, args: Any) -> Any:
        """A module's input as the tap returns it.

        It is written in place: the residual stream goes around the norm that is given it, and must change with it.
        """
        if args:
            self.arrays.assign(args[0], self._shown(tap, stage, layer, args[0]))

    def _shown(self, tap: Tap, stage: str, layer: int | None, x: Any, *, heads: bool = False) -> Any:
        """An activation [1, n_tokens, ..] as the tap returns it; with ``heads`` [1, n_heads, n_tokens, head_dim]."""
        array = self.arrays.numpy(x)[0]
        array = array.swapaxes(0, 1) if heads else array
        found = np.asarray(tap(stage, layer, array)).reshape(array.shape)
        found = found.swapaxes(0, 1) if heads else found
        return self.arrays.like(found[None], x)

    def _wrap_rotation(self, tap: Tap, hooks: ExitStack) -> None:
        """Show what ``apply_rotary_pos_emb`` returns, in every module of code that an attention layer finds it in."""
        wrapped: list[dict[str, Any]] = []
        for layer in self.model.model.layers:
            attention = part_of(layer, "self_attn")
            names = getattr(inspect.unwrap(attention.forward), "__globals__", {}) if attention is not None else {}
            if ROTATE not in names or any(names is other for other in wrapped):
                continue
            wrapped.append(names)
            rotate = names[ROTATE]

            def rotated(*args: Any, rotate: Callable[..., Any] = rotate, **options: Any) -> tuple[Any, Any]:
                q, k = rotate(*args, **options)
                return (self._shown(tap, "q_rope", self.layer, q, heads=True),
                        self._shown(tap, "k_rope", self.layer, k, heads=True))  # fmt: skip

            names[ROTATE] = rotated
            hooks.callback(names.__setitem__, ROTATE, rotate)


def part_of(module: Any, path: str) -> Any:
    """What stands at a path inside a module, the module itself at ""; None if there is nothing."""
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module


def dtype_of(model: Any) -> str:
    """The type that the model computes in, without the library's name."""
    return str(model.dtype).removeprefix("torch.")


def declaration_of(model: Any) -> Declaration | None:
    """What a model of this dtype rounds; None for a dtype of which nothing is known.

    In 16 bits every result is rounded, the weights are, and so are the scores of ``eager`` attention; fused attention
    keeps them in f32. Products are summed in f32.
    """
    kind: Any = {"float64": "f64", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(dtype_of(model))
    if kind is None:
        return None
    if kind in ("f64", "f32"):
        return Declaration(results=kind, accumulation=kind)
    eager = str(model.config._attn_implementation) == "eager"
    return Declaration(weights=kind, cache=kind, results=kind, scores=kind if eager else "f32")
