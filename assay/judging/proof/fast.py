"""The fast engine with every seam in its programs, steered by numbers that are among its weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp

import assay.accel.model
import assay.accel.steps
from assay import accel
from assay.accel.pack import Params
from assay.accel.programs import Programs
from assay.formats import ModelFile
from assay.judging.proof.faults import Fault, extra_turn, fault_of, norm_of, rounded, tap_of
from assay.judging.proof.rebound import rebound

FORWARD, READ = assay.accel.steps.forward, assay.accel.steps.read
jax.tree_util.register_dataclass(Fault, [field.name for field in fields(Fault)], [])


@jax.tree_util.register_dataclass
@dataclass
class Faulty(Params):
    """Weights, and the numbers of a fault."""

    fault: Fault


@contextmanager
def instrumented() -> Iterator[None]:
    """The engine's programs with seams in them, for models that are traced while the block lasts."""
    patches = [(assay.accel.steps, "forward", forward), (assay.accel.steps, "read", read),
               (assay.accel.model, "read", read)]  # fmt: skip
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    try:
        for module, name, new in patches:
            setattr(module, name, new)
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)


def loaded(file: ModelFile, arith: str, cache_type: str | None = None) -> Any:
    """A model whose programs have seams, with no fault in them. Programs it began to compile are forgotten."""
    model = accel.load(file, arith=arith, cache_type=cache_type)
    model.programs = Programs(model.device)
    set_fault(model, fault_of(None, file.config, file.vocabulary))
    return model


def set_fault(model: Any, fault: Fault, params: Params | None = None) -> None:
    """Steer the seams of ``model``; with other weights, if given."""
    weights = {field.name: getattr(params or model.params, field.name) for field in fields(Params)}
    on_device = Fault(**{field.name: jnp.asarray(getattr(fault, field.name)) for field in fields(Fault)})
    model.params = Faulty(**weights, fault=on_device)


def of_weights(arguments: dict[str, Any]) -> Any:
    """The fault among the arguments of a step; None where there is none."""
    return getattr(arguments["params"], "fault", None)


def forward(*arguments: Any, **named: Any) -> Any:
    """``accel/steps.py``'s, with a tap before the judge's and the twins' functions replaced."""
    bound = inspect.signature(FORWARD).bind(*arguments, **named)
    bound.apply_defaults()
    given = bound.arguments
    fault = of_weights(given)
    if fault is None:
        return FORWARD(*arguments, **named)
    ids, start = given["ids"], given["start"]
    positions = (start[:, None] + jnp.arange(ids.shape[1])).reshape(-1)
    warm = jnp.repeat(start > 0, ids.shape[1])
    spoil, shown = tap_of(fault, jnp, positions, ids.reshape(-1), len(ids), warm), given["tap"]
    given["tap"] = lambda stage, layer, x: shown(stage, layer, spoil(stage, layer, x))
    names = {name: make(fault, FORWARD.__globals__[name]) for name, make in TWINS.items()}
    return rebound(FORWARD, **names)(*bound.args, **bound.kwargs)


def read(*arguments: Any, **named: Any) -> Any:
    """``accel/steps.py``'s, with a spoiled choice."""
    bound = inspect.signature(READ).bind(*arguments, **named)
    fault = of_weights(bound.arguments)
    if fault is None:
        return READ(*arguments, **named)
    names = {"forward": forward, "choose": choose_of(fault, READ.__globals__["choose"])}
    return rebound(READ, **names)(*bound.args, **bound.kwargs)


def rotate_of(fault: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """rotate: called for queries, then for keys, which have fewer heads, or come second."""
    back, calls = jnp.argsort(fault.pairs), cycle((fault.q_turn, fault.k_turn))

    def rotate(x: Any, turns: Any) -> Any:
        turned = original(x[..., fault.pairs], extra_turn(turns, next(calls), fault, jnp))
        return turned[..., back]

    return rotate


def attention_of(fault: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """attention: other scores, mask, heads, or slots of the cache."""

    def attention(q: Any, k_cache: Any, v_cache: Any, layer: Any, positions: Any) -> Any:
        slots = jnp.arange(k_cache.shape[4])
        source = jnp.minimum(slots + (slots >= fault.late[0]), len(slots) - 1)
        found = (slots < fault.lost[0]) | (slots >= fault.lost[1])
        k_cache = jnp.where(found, k_cache[..., source], 0)
        v_cache = jnp.where(found[:, None], v_cache[..., source, :], 0)
        seen = jnp.maximum(positions + fault.ahead, 0)
        out = original((q * fault.score)[..., fault.heads, :], k_cache, v_cache, layer, seen)
        return out[..., jnp.argsort(fault.heads), :]

    return attention


def write_of(fault: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """write: another place, or fewer bits."""

    def write(k_cache: Any, v_cache: Any, k: Any, v: Any, layer: Any, start: Any) -> Any:
        k, v = (rounded(x.reshape(-1, x.shape[-1]), fault.cache_keep, fault.cache_levels, jnp).reshape(x.shape)
                for x in (k, v))  # fmt: skip
        v = v[(jnp.arange(len(v)) - fault.sequences_on) % len(v)]
        layer = (layer + fault.layers_on) % k_cache.shape[0]
        return original(k_cache, v_cache, k, v, layer, start + fault.written * (start > 0))

    return write


def choose_of(fault: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """choose: other settings."""

    def choose(logits: Any, seen: Any, settings: Any, counter: Any, **named: Any) -> Any:
        changed = type(settings)(
            temperature=settings.temperature * fault.temperature,
            top_k=jnp.where(settings.top_k > 0, settings.top_k + fault.top_k, settings.top_k),
            top_p=settings.top_p * fault.top_p, min_p=settings.min_p,
            repeat_penalty=jnp.where(settings.repeat_penalty == 1, 1, settings.repeat_penalty * fault.penalty),
            key=settings.key, greedy=settings.greedy)  # fmt: skip
        return original(logits, seen & ~fault.unseen, changed, counter + fault.counter, **named)

    return choose


TWINS: dict[str, Callable[..., Any]] = {
    "rms_norm": norm_of, "rotate": rotate_of, "attention": attention_of, "write": write_of,
}  # fmt: skip
