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


@cache
def dense_type(arith: str) -> jnp.dtype:
    """The type in which decoded matrices are multiplied: for ``fast`` bf16 where the hardware does that, else f32.

    A processor without bf16 instructions widens every element first: on Zen 3 bf16 dots of 128 tokens reach 70
    GFLOP/s and f32 dots 100 to 130; on Zen 4, which has them, 340 and 190.
    """
    return jnp.dtype(jnp.bfloat16 if arith == "fast" and multiplies_bf16() else jnp.float32)


def multiplies_bf16() -> bool:
    """Whether the device has instructions for bf16 products; a processor that does not say so has none."""
    if jax.default_backend() != "cpu":
        return True
    if platform.system() == "Darwin":
        return False  # XLA uses none there
    return not BF16_FLAGS.isdisjoint(instructions())


def instructions() -> frozenset[str]:
    """Names of the processor's instruction sets, as Linux lists them; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(words, []))


def read_bandwidth() -> float | None:
    """Bytes a second that the device reads from its own memory, the best of five; None for a processor, whose memory is
    the machine's."""
    if jax.default_backend() == "cpu":
        return None
    array, total, best = jnp.ones(1 << 28, jnp.float32), jax.jit(jnp.sum), 0.0  # 1 GiB: no cache holds it
    total(array).block_until_ready()
    for _ in range(5):
        started = time.perf_counter()
        total(array).block_until_ready()
        best = max(best, array.nbytes / (time.perf_counter() - started))
    return best
