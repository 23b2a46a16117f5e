"""Values that try a quantiser's every branch, the same on every machine: no library's random stream, no libm.

Numbers come of a counter through integer mixing (splitmix64), and are then only added, multiplied and scaled by powers
of two, which IEEE 754 rounds alike everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHAPE = (8, 1024)
N_GROUPS = 8 * 1024 // 32


def bits(seed: int, n: int) -> np.ndarray:
    """uint64 [n]: outputs of splitmix64."""
    z = (np.arange(n, dtype=np.uint64) + np.uint64(1 + (seed << 32))) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def integers(seed: int, low: int, high: int, n: int = SHAPE[0] * SHAPE[1]) -> np.ndarray:
    """int64 [n] in low..high."""
    return (bits(seed, n) >> np.uint64(33)).astype(np.int64) % (high - low + 1) + low


def bell(seed: int) -> np.ndarray:
    """f32 [8, 1024], mean 0, deviation about 0.02, most like a matrix of a model: a sum of four uniform numbers."""
    uniform = (bits(seed, 4 * SHAPE[0] * SHAPE[1]) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return (uniform.reshape(4, *SHAPE).sum(axis=0) - np.float32(2)) * np.float32(0.035)


def by_group(values: np.ndarray) -> np.ndarray:
    """One number for each group of 32 -> f32 [8, 1024]."""
    return values.astype(np.float32).repeat(32).reshape(SHAPE)


def grid(seed: int, low: int, high: int, step: float) -> np.ndarray:
    return (integers(seed, low, high) * step).astype(np.float32).reshape(SHAPE)


def with_signed_zeros() -> np.ndarray:
    x = bell(3)
    keep = integers(4, 0, 19).reshape(SHAPE) == 0
    x = np.where(keep, x, np.copysign(np.float32(0), x))
    x[:2] = 0
    x[2] = -0.0
    return x


def lonely() -> np.ndarray:
    x = np.zeros(SHAPE, np.float32)
    x[:, 5::256] = bell(5)[:, ::256]
    return x


def nearly_constant() -> np.ndarray:
    x = by_group(integers(6, -500, 500, N_GROUPS) * 0.002)
    return (x.view(np.int32) + integers(7, -1, 1).astype(np.int32).reshape(SHAPE)).view(np.float32)


INPUTS: dict[str, Callable[[], np.ndarray]] = {
    "bell": lambda: bell(0),
    "cubed": lambda: bell(1) * bell(1) * bell(1),
    "scales": lambda: np.ldexp(bell(2), integers(8, -12, 6, N_GROUPS).repeat(32).reshape(SHAPE)).astype(np.float32),
    "positive": lambda: np.abs(bell(9)) + np.float32(0.25),
    "negative": lambda: -np.abs(bell(10)) - np.float32(0.25),
    "whole": lambda: grid(11, -9, 9, 1.0),  # ties: what lies half way between two levels
    "halves": lambda: grid(12, -31, 31, 0.5),
    "signs": lambda: grid(13, 0, 1, 2.0) - np.float32(1),  # the peak is +1 and -1 at once
    "constant": lambda: by_group(integers(14, -500, 500, N_GROUPS) * 0.002),
    "nearly constant": nearly_constant,
    "signed zeros": with_signed_zeros,
    "lonely": lonely,
    "subnormal": lambda: (integers(15, -4000, 4000).astype(np.float32) * np.float32(2**-149)).reshape(SHAPE),
    "tiny": lambda: np.ldexp(bell(16), integers(17, -140, 0, N_GROUPS).repeat(32).reshape(SHAPE)).astype(np.float32),
    "faint": lambda: np.ldexp(bell(19), -44 - integers(20, 0, 4, 32).repeat(256).reshape(SHAPE)).astype(np.float32),
    "large": lambda: bell(18) * np.float32(4e5),
}
