"""JAX's settings are the process's: a user's, another library's, the environment's. The engine computes under its own.

``JAX_ENABLE_X64=1``, ``JAX_TRANSFER_GUARD=disallow``, ``jax.config.update`` and ``with jax.numpy_rank_promotion(...)``
are ways to say how *other* code is to be traced, checked or reported. Every function of the engine that touches JAX
does so inside ``own_settings``: JAX's defaults, for this thread, for as long as it lasts. Never across a ``yield`` or a
call of the user's: those see the user's settings. What is left to the user is where to compute (``JAX_PLATFORMS``,
``jax.default_device``) and how XLA compiles (``XLA_FLAGS``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import jax

from assay.formats import InputError

P = ParamSpec("P")
R = TypeVar("R")
DEFAULTS: dict[str, Any] = {
    "enable_x64": False,
    "default_matmul_precision": None,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "default_prng_impl": "threefry2x32",
    "enable_custom_prng": False,
    "threefry_partitionable": True,
    "softmax_custom_jvp": False,
    "transfer_guard": "allow",
    "array_garbage_collection_guard": "allow",
    "thread_guard": False,
    "disable_jit": False,
    "no_tracing": False,
    "no_execution": False,
    "check_tracer_leaks": False,
    "debug_nans": False,
    "debug_infs": False,
    "debug_key_reuse": False,
    "enable_checks": False,
    "error_checking_behavior_nan": "ignore",
    "error_checking_behavior_divide": "ignore",
    "error_checking_behavior_oob": "ignore",
    "use_simplified_jaxpr_constants": False,
    "log_compiles": False,
    "explain_cache_misses": False,
}
"""JAX's default of each setting that changes what is traced, refused or reported; one that it lacks is left out."""


def setting(name: str) -> Callable[[Any], Any] | None:
    """The context manager of a setting, ``jax.NAME``; a few JAX does not export, but has in its configuration."""
    return getattr(jax, name, getattr(jax.config, "_value_holders", {}).get(f"jax_{name}"))


@contextmanager
def own_settings(device: jax.Device) -> Iterator[None]:
    """JAX's defaults, and ``device`` to compute on, in this thread for as long as the block lasts."""
    with ExitStack() as stack:
        for name, value in DEFAULTS.items():
            if (context := setting(name)) is not None:
                stack.enter_context(context(value))
        stack.enter_context(jax.default_device(device))
        yield


class OnDevice(Protocol):
    """Something that lives on one device."""

    device: jax.Device


S = TypeVar("S", bound=OnDevice)


def in_own_settings(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """``method``, of an object with a ``device``, inside ``own_settings``."""

    @wraps(method)
    def call(self: S, /, *arguments: P.args, **named: P.kwargs) -> R:
        with own_settings(self.device):
            return method(self, *arguments, **named)

    return call


def default_device() -> jax.Device:
    """The device that this thread computes on: that of ``jax.default_device``, or else JAX's first.

    Raises InputError where JAX cannot start one: it was asked for a GPU that is not there, say.
    """
    try:
        wanted: Any = jax.config.values["jax_default_device"]
        return jax.devices(wanted)[0] if isinstance(wanted, str | None) else wanted
    except Exception as error:  # RuntimeError as a rule; but an AssertionError for "cuda", and plugins raise their own
        raise no_device(error) from error


def no_device(error: Exception) -> InputError:
    """The error for a JAX that has no device to compute on: what it lacks, and how to get it."""
    asked = {name: os.environ[name] for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE")
             if os.environ.get(name)}  # fmt: skip
    where = " ".join(f"{name}={value}" for name, value in asked.items()) or "jax"
    reason = " ".join(str(error).split()) or f"it has no support for this platform ({type(error).__name__})"
    unset = f"Unset {', '.join(asked)} to take what there is (JAX_PLATFORMS=cpu: the processor), or" if asked else "To"
    return InputError(f"JAX cannot start this device: {reason[:300]}", where=where,
                      remedy=f"{unset} install what JAX needs for it: pip install 'jax[cuda13]' for an NVIDIA GPU and "
                             "its driver, 'jax[tpu]' for a TPU")  # fmt: skip
