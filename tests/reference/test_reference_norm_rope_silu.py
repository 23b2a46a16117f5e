"""The small steps of the oracle against their formulas, on inputs where the usual mistakes show."""

from __future__ import annotations

import numpy as np
import pytest

from assay.reference.rms_norm import rms_norm
from assay.reference.rope import rotate, rotation_angles
from assay.reference.swiglu import silu

U32 = 2.0**-24
"""Unit roundoff of f32: a correctly rounded operation is off by at most this much of its result."""


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# ---- rms_norm ------------------------------


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rms_norm_is_its_formula(size: float) -> None:
    rng = np.random.default_rng(0)
    x, gain = size * rng.standard_normal((5, 96)), rng.standard_normal(96)
    rows = [row / (sum(v * v for v in row) / 96 + 1e-6) ** 0.5 * gain for row in x]
    assert np.allclose(rms_norm(x, gain, 1e-6), rows, rtol=1e-14, atol=0)  # ~ 96 additions of 1.1e-16 each
    # f32: pairwise mean of 96 squares (log2 96 + 1 roundings, halved by the root) and five more operations
    narrow = rms_norm(x.astype(np.float32), gain.astype(np.float32), 1e-6)
    assert narrow.dtype == np.float32
    assert relative(narrow, rms_norm(x, gain, 1e-6)) < 10 * U32


def test_eps_decides_on_short_vectors() -> None:
    x, gain = np.full((1, 64), 1e-3), np.ones(64)  # mean square 1e-6: as large as eps
    assert np.allclose(rms_norm(x, gain, 1e-6), 1 / np.sqrt(2), rtol=1e-14)
    assert np.allclose(rms_norm(x, gain, 1e-5), 1 / np.sqrt(11), rtol=1e-14)


def test_a_vector_of_zeros_stays_zero() -> None:
    assert np.array_equal(rms_norm(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 1e-6), np.zeros((1, 8)))


# ---- rope ------------------------------


@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_a_unit_vector_turns_in_the_plane_of_the_two_halves(head_dim: int) -> None:
    half, position, theta = head_dim // 2, 3, 1e4
    x = np.eye(head_dim)[None]  # one token with head_dim heads, each a unit vector
    turned = rotate(x, rotation_angles(np.array([position]), head_dim, theta))[0]
    for i in range(half):  # rotate_half: (e_i, e_{i+half}) -> (cos e_i + sin e_{i+half}, cos e_{i+half} - sin e_i)
        angle = position * theta ** (-2 * i / head_dim)
        expected = np.zeros((2, head_dim))
        expected[0, i], expected[0, i + half] = np.cos(angle), np.sin(angle)
        expected[1, i + half], expected[1, i] = np.cos(angle), -np.sin(angle)
        assert np.allclose(turned[[i, i + half]], expected, rtol=0, atol=1e-15)


def test_position_0_is_left_alone_and_lengths_are_kept() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 3, 16))
    turned = rotate(x, rotation_angles(np.array([0, 1, 7, 5000]), 16, 1e6))
    assert np.array_equal(turned[0], x[0])
    assert np.allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    assert not np.allclose(turned[1], x[1], rtol=0.01)


def test_scores_depend_on_the_distance_only() -> None:
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 1, 1, 64))

    def score(at_q: int, at_k: int) -> float:
        turned = [rotate(v, rotation_angles(np.array([at]), 64, 1e6)) for v, at in ((q, at_q), (k, at_k))]
        return float(np.vdot(*turned))

    assert score(9, 4) == pytest.approx(score(1005, 1000), rel=1e-10)
    assert abs(score(9, 4) - score(4, 9)) > 0.1  # and on its sign


def test_theta_shows_at_position_500() -> None:
    near, far = (np.abs(np.sin(rotation_angles(np.array([p]), 128, 1e6)) - np.sin(
        rotation_angles(np.array([p]), 128, 1e4))).max() for p in (0, 500))
    assert near == 0 and far > 1


def test_angles_stay_exact_at_far_positions() -> None:
    position, head_dim, theta = 30011, 128, 1e6
    frequency = theta ** (-2 / 128)
    angle = rotation_angles(np.array([position]), head_dim, theta)[0, 1]
    assert angle == pytest.approx(position * frequency, rel=1e-15)
    x = np.zeros((1, 1, head_dim), np.float32)
    x[..., 1] = 1
    turned = rotate(x, np.array([[angle] * 64]))
    assert turned.dtype == np.float32
    assert abs(turned[0, 0, 1] - np.cos(position * frequency)) <= U32  # one rounding; f32 angles are off by 1e-3


# ---- silu ------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silu_is_its_formula_up_to_the_extremes(dtype: type) -> None:
    x = np.array([-1e30, -1000, -80, -20, -1, -0.0, 0, 1, 20, 1000, 1e30], dtype)
    y = silu(x)
    assert y.dtype == dtype
    expected = [0, 0, -80 * np.exp(-80), -20 / (1 + np.exp(20)), -1 / (1 + np.e), 0, 0, 1 / (1 + 1 / np.e)]
    assert np.allclose(y[:8], expected, rtol=1e-5, atol=1e-38)  # f32 exp of 80: a few u
    assert np.allclose(y[8:], x[8:], rtol=1e-7)


def test_silu_is_not_gelu() -> None:
    assert silu(np.array([1.0]))[0] == pytest.approx(0.7310585786300049, rel=1e-15)  # gelu(1) is 0.841
