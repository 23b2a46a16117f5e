"""The measures of all logits: against their definitions, and their limits on noise whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest

from assay.parity.distribution import (
    Floor,
    floor_of,
    joined,
    kl_between,
    measures_of,
    moved_logits,
    signed_of,
    terms_of_kl,
)
from assay.parity.divergence import divergence
from assay.parity.limits import INEXACT, Measure

N, VOCAB, RUNS = 40, 300, 4


def truth(seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((N, VOCAB))


def noisy(exact: np.ndarray, seed: int, size: float = 0.05, common: float = 0.0) -> np.ndarray:
    """With noise of its own at each position, and one (``common``, of the same total size) that is alike at all."""
    rng = np.random.default_rng((seed, 1))
    own, alike = rng.standard_normal(exact.shape), rng.standard_normal(exact.shape[1])
    return exact + size * ((1 - common) ** 0.5 * own + common**0.5 * alike)


def floor(exact: np.ndarray, seed: int = 100) -> Floor:
    return floor_of(exact, [moved_logits(exact, noisy(exact, seed + run)) for run in range(RUNS)])


def measured(exact: np.ndarray, found: np.ndarray, known: Floor) -> dict[str, Measure]:
    return {one.name: one for one in measures_of(moved_logits(exact, found)[0], known)}


def test_the_measures_are_what_their_names_say() -> None:
    exact = truth()
    found = 1.01 * exact + 5
    found[:, 7] += 0.3
    moved, square = moved_logits(exact, found, rows=7)
    t, x = (a - a.mean(1, keepdims=True) for a in (exact, found))
    np.testing.assert_allclose(moved.error, np.square(x - t).sum(1) / np.square(t).sum(1))
    np.testing.assert_allclose(moved.gain, ((x - t) * t).sum(1) / np.square(t).sum(1))
    np.testing.assert_allclose(moved.kl, divergence(exact, found).kl, rtol=1e-9)
    np.testing.assert_allclose(moved.row, (x - t).sum(0), atol=1e-9)
    np.testing.assert_allclose(square, np.square(x - t).sum(0))
    small = exact + 1e-7 * np.random.default_rng(2).standard_normal(exact.shape)
    np.testing.assert_allclose(kl_between(exact, small - exact), divergence(exact, small).kl, rtol=1e-6)


def test_a_floor_is_kept_as_one_array() -> None:
    known = floor(truth())
    flat = known.flat()
    assert len(flat) == Floor.size(N, VOCAB)
    for one, two in zip(Floor.of_flat(flat, N, VOCAB), known, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_kl_of_two_tokens_is_one_square() -> None:
    assert terms_of_kl(np.array([[0.0, -3.0, -90.0, -90.0]])) == pytest.approx(1.0)
    assert terms_of_kl(np.zeros((1, 101))) == pytest.approx(100)


@pytest.mark.parametrize("common", [0.0, 0.2, 1.0])
def test_right_engines_pass_whatever_their_positions_have_in_common(common: float) -> None:
    exact = truth()
    known = floor(exact)
    for seed in range(20):
        found = measured(exact, noisy(exact, seed, common=common), known)
        assert not [one for one in found.values() if one.beyond]
    alike = signed_of(moved_logits(exact, noisy(exact, 1, common=common))[0], known).common
    assert alike == pytest.approx((1 + (N - 1) * common) ** 0.5, rel=0.2)


def test_faults_are_named_and_twice_the_noise_is_seen() -> None:
    exact = truth()
    known = floor(exact)
    right = noisy(exact, 1)
    limit = measured(exact, right, known)
    off = right.copy()
    off[:, 17] += 1.3 * limit["row"].limit + abs(limit["row"].value)
    found = measured(exact, off, known)["row"]
    assert found.beyond and found.at == 17
    assert [one.name for one in measured(exact, right * (1 + 2 * limit["gain"].limit), known).values()
            if one.beyond] == ["gain"]  # fmt: skip
    assert measured(exact, noisy(exact, 1, size=0.1), known)["error"].beyond
    assert not measured(exact, noisy(exact, 1, size=0.05 * (1 + INEXACT) / 2), known)["error"].beyond
    one = right.copy()
    one[5] = noisy(exact, 2, size=0.25)[5]
    found = measured(exact, one, known)
    assert found["error at a position"].beyond and found["error at a position"].at == 5


def test_windows_add_up() -> None:
    """A row that is off by too little to be seen in one window is seen in eight."""
    parts = []
    for seed in range(8):
        exact = truth(seed)
        known = floor(exact, 100 * (seed + 1))
        found = noisy(exact, seed)
        found[:, 17] += 0.06
        assert not measured(exact, found, known)["row"].beyond
        parts.append((moved_logits(exact, found)[0], known))
    row = {one.name: one for one in measures_of(*joined(parts))}["row"]
    assert row.beyond and row.at == 17 and row.value == pytest.approx(0.06, abs=0.02)
