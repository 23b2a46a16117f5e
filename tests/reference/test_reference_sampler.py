"""The oracle's sampler: Threefry's published vectors, each filter on logits small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from assay.formats import InputError
from assay.formats.contract.engine import Sampling
from assay.reference.sampler import keep_min_p, keep_top_k, keep_top_p, penalize, sample, softmax, threefry, uniform

LN = np.log


def kept(logits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isfinite(logits)).tolist()


@pytest.mark.parametrize(("key", "counter", "word"), [
    (0, 0, 0x6B200159),
    (2**64 - 1, 2**64 - 1, 0x1CB996FC),
    (0x13198A2E_03707344, 0x243F6A88_85A308D3, 0xC4923A9C),
])  # fmt: skip
def test_threefry_gives_the_published_words(key: int, counter: int, word: int) -> None:
    """kat_vectors of Random123 (D. E. Shaw Research), threefry2x32 with 20 rounds."""
    assert threefry(key, counter) == word


def test_uniform_numbers_have_24_bits() -> None:
    numbers = [uniform(7, t) for t in range(2000)]
    assert all(0 <= u < 1 and u == float(np.float32(u)) and u * 2**24 == int(u * 2**24) for u in numbers)
    assert uniform(0, 0) == (0x6B200159 >> 8) / 2**24
    assert len({uniform(seed, 0) for seed in (0, 1, 1 << 32, 1 << 63)}) == 4  # both words of the seed count


def test_top_k_keeps_ties_at_its_edge() -> None:
    logits = np.array([1.0, 3.0, 2.0, 2.0, 0.0])
    assert kept(keep_top_k(logits, 1)) == [1]
    assert kept(keep_top_k(logits, 2)) == [1, 2, 3]
    assert kept(keep_top_k(logits, 3)) == [1, 2, 3]
    assert kept(keep_top_k(logits, 4)) == [0, 1, 2, 3]
    for k in (0, 5, 10**12):
        assert kept(keep_top_k(logits, k)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = LN([0.1, 0.5, 0.25, 0.15])
    assert kept(keep_top_p(logits, 1e-6)) == [1]
    assert kept(keep_top_p(logits, 0.4999)) == [1]
    assert kept(keep_top_p(logits, 0.51)) == [1, 2]
    assert kept(keep_top_p(logits, 0.76)) == [1, 2, 3]
    assert kept(keep_top_p(logits, 0.91)) == [0, 1, 2, 3]
    assert kept(keep_top_p(logits, 1.0)) == [0, 1, 2, 3]
    assert kept(keep_top_p(LN([0.5, 0.25, 0.25]), 0.6)) == [0, 1, 2]  # ties at the edge stay


def test_top_p_is_taken_of_what_the_other_filters_left() -> None:
    logits = keep_top_k(LN([0.3, 0.2, 0.2, 0.15, 0.15]), 1)  # 0.3 is all there is, hence 100 %
    assert kept(keep_top_p(logits, 0.9)) == [0]


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = LN([0.5, 0.25, 0.125, 0.0625]) + 7
    assert kept(keep_min_p(logits, 0.0)) == [0, 1, 2, 3]
    assert kept(keep_min_p(logits, 0.3)) == [0, 1]
    assert kept(keep_min_p(logits, 0.2)) == [0, 1, 2]
    assert kept(keep_min_p(logits, 1.0)) == [0]


def test_a_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    logits = np.array([2.0, -2.0, 0.0, 2.0])
    assert penalize(logits, {0, 1, 2}, 4.0).tolist() == [0.5, -8.0, 0.0, 2.0]
    assert logits.tolist() == [2.0, -2.0, 0.0, 2.0]
    assert penalize(logits, set(), 4.0).tolist() == logits.tolist()
    assert penalize(logits, {0, 4, 1000}, 4.0)[0] == 0.5  # a padding row has no logit


def test_temperature_0_takes_the_first_of_the_largest_and_ignores_the_filters() -> None:
    logits = np.array([1.0, 5.0, 5.0, 0.0], np.float32)
    assert sample(logits, Sampling(), set(), 0) == 1
    assert sample(logits, Sampling(top_k=1, top_p=0.1, min_p=1, seed=5), set(), 3) == 1
    assert sample(logits, Sampling(repeat_penalty=2), {1}, 0) == 2  # but not the penalty


def test_a_filter_down_to_one_is_greedy() -> None:
    logits = np.random.default_rng(0).standard_normal(50)
    for setting in (Sampling(2, top_k=1), Sampling(2, top_p=1e-6), Sampling(2, min_p=1.0)):
        assert {sample(logits, setting, set(), t) for t in range(20)} == {int(logits.argmax())}


def test_the_draw_inverts_the_cumulative_distribution() -> None:
    p = np.array([0.25, 0.25, 0.5])
    for t in range(200):
        u = uniform(3, t)
        assert sample(LN(p), Sampling(temperature=1, seed=3), set(), t) == (0 if u < 0.25 else 1 if u < 0.5 else 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_are_distributed_as_the_probabilities_say(temperature: float) -> None:
    logits = np.array([2.0, 0.0, -1.0, 1.0, 1.0, -3.0])
    n = 4000
    drawn = [sample(logits, Sampling(temperature=temperature, seed=11), set(), t) for t in range(n)]
    expected = n * softmax(logits / temperature)
    chi_square = float((((np.bincount(drawn, minlength=6) - expected) ** 2) / expected).sum())
    assert chi_square < 20.5  # 5 degrees of freedom: exceeded once in 1000 seeds, and the seed is fixed


def test_filtered_tokens_are_never_drawn() -> None:
    logits = np.random.default_rng(1).standard_normal(1000)
    allowed = set(np.argsort(-logits)[:5].tolist())
    assert {sample(logits, Sampling(temperature=5, top_k=5), set(), t) for t in range(500)} == allowed


@pytest.mark.parametrize("setting", [
    {"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": 1e-40},
    {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_p": 1e-40}, {"min_p": -0.1}, {"min_p": 1.1},
    {"repeat_penalty": 0}, {"repeat_penalty": 1e-40}, {"repeat_penalty": float("inf")}, {"seed": -1}, {"seed": 2**64},
])  # fmt: skip
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        Sampling(**setting)  # type: ignore[arg-type]
