"""What the device does well: the few facts about hardware that the engine's choices depend on."""

from __future__ import annotations

import platform
import time
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As Linux names them: the first two on x86, the last on Arm."""


def computing_on() -> jax.Device:
    """The device that this thread computes on, inside ``own_settings``; outside, JAX's first.

    For code that is traced, whose digest (``formats/system/code_digest.py``) must be told from what it names.
    """
    return jax.default_device.value or jax.devices()[0]


def dense_type(arith: str, device: jax.Device) -> jnp.dtype:
    """The type in which ``device`` multiplies decoded matrices: for ``fast`` bf16 where the hardware does, else f32.

    A processor without bf16 instructions widens every element first: on Zen 3 bf16 dots of 128 tokens reach 70
    GFLOP/s and f32 dots 100 to 130; on Zen 4, which has them, 340 and 190.
    """
    return jnp.dtype(jnp.bfloat16 if arith == "fast" and multiplies_bf16(device) else jnp.float32)


def multiplies_bf16(device: jax.Device) -> bool:
    """Whether a device has instructions for bf16 products; a processor that does not say so has none."""
    if device.platform != "cpu":
        return True
    if platform.system() == "Darwin":
        return False  # XLA uses none there
    return not BF16_FLAGS.isdisjoint(instructions())


@cache
def instructions() -> frozenset[str]:
    """Names of the processor's instruction sets, as Linux lists them; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(words, []))


def read_bandwidth(device: jax.Device) -> float | None:
    """Bytes a second that a device reads from its own memory, the best of five; None for a processor, whose memory is
    the machine's."""
    if device.platform == "cpu":
        return None
    array = jnp.ones(1 << 28, jnp.float32, device=device)  # 1 GiB: no cache holds it
    total, best = jax.jit(jnp.sum), 0.0
    total(array).block_until_ready()
    for _ in range(5):
        started = time.perf_counter()
        total(array).block_until_ready()
        best = max(best, array.nbytes / (time.perf_counter() - started))
    return best
