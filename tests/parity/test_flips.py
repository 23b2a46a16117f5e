"""The prediction of flips: its pieces against known values, and its calibration on noise that it did not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import poisson_binom

from assay.judging.engines_under_test import UnderTest
from assay.parity import flips
from assay.parity.counting import count_tails, poisson_binomial, unexplained
from assay.parity.divergence import LEAK, TOP, Divergence, block_bootstrap, divergence, statistics
from assay.parity.flips import Positions, account
from assay.parity.limits import freedom_of, log_bias, moderated
from assay.parity.precision import Precision
from assay.parity.prediction import RIVALS, common_share, flip_probability, variances_of
from assay.parity.verdict import Verdict, of_flips, remarks_of
from tests.planted import IDS, Planted


@pytest.mark.parametrize(("t", "freedom", "tail"), [
    (0.0, 4, 0.5), (2.776445, 4, 0.025), (4.604095, 4, 0.005), (1.859548, 8, 0.05), (-1.859548, 8, 0.95),
    (9.924843, 2, 0.005), (3.686155, 16, 0.001),
])  # fmt: skip
def test_one_rival_wins_as_often_as_students_t_says(t: float, freedom: int, tail: float) -> None:
    """Quantiles of printed tables."""
    for common in (0.0, 0.5, 0.98):
        found = flip_probability(np.array([[t]]), np.ones((1, 1)), freedom, common)
        assert found == pytest.approx(tail, rel=1e-4)


@pytest.mark.parametrize(("t", "freedom", "tail"), [
    (1e8, 4, 3e-32), (1e3, 64, 3.11177e-136), (1e75, 4, 3e-300), (1e-9, 4, 0.5 - 3.75e-10), (20.0, 64, 1.57213e-29),
])  # fmt: skip
def test_no_tail_is_lost_in_rounding(t: float, freedom: int, tail: float) -> None:
    """4 degrees of freedom: 3/t⁴ far out, and a density of 3/8 at 0; 64: integrated with 60 digits."""
    gaps = np.array([[t, np.inf], [t, t]])
    one, two = flip_probability(gaps, np.ones((2, 2)), freedom, 0.0)
    assert one == pytest.approx(tail, rel=1e-5, abs=0) and one - 0.5 == pytest.approx(tail - 0.5, rel=1e-6)
    assert two == pytest.approx(2 * tail - tail**2, rel=1e-5, abs=0)


@pytest.mark.parametrize(("freedom", "bias"), [
    (2, -0.5772156649015329), (4, -0.2703628454614782), (1, -1.2703628454614782),
])  # fmt: skip
def test_the_logarithm_of_a_variance_is_biased_by_eulers_constant(freedom: int, bias: float) -> None:
    """digamma(1) = -γ, digamma(2) = 1 - γ, digamma(1/2) = -γ - 2 log 2."""
    assert log_bias(freedom) == pytest.approx(bias, rel=1e-12)


def test_equal_probabilities_make_the_binomial() -> None:
    n, p = 12, 0.3
    expected = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    np.testing.assert_allclose(poisson_binomial(np.full(n, p)), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_the_count_is_distributed_as_scipy_has_it(n: int) -> None:
    """Down to probabilities of 1e-300, and with events that are certain or impossible."""
    p = np.random.default_rng(n).random(n) ** 12
    p[: n // 3] = 0
    p[n // 3 : n // 2] = 1
    expected = poisson_binom.pmf(np.arange(n + 1), p) if n else [1.0]
    np.testing.assert_allclose(poisson_binomial(p), expected, rtol=1e-12)


def test_unequal_probabilities_by_enumeration() -> None:
    p = np.array([0.1, 0.5, 0.9])
    expected = [0.0] * 4
    for outcome in np.ndindex(2, 2, 2):
        chance = np.prod(np.where(outcome, p, 1 - p))
        expected[sum(outcome)] += float(chance)
    np.testing.assert_allclose(poisson_binomial(p), expected, rtol=1e-12)


def test_a_tie_without_noise_is_no_certainty_and_a_lead_without_noise_is() -> None:
    gaps, sigmas = np.array([[0.0, 9.0], [1.0, 1.0]]), np.zeros((2, 2))
    np.testing.assert_allclose(flip_probability(gaps, sigmas, 4, 0.5), [0.5, 0.0], atol=1e-15)


def drawn(n: int, scale: float = 1.0, seed: int = 1) -> Positions:
    """Positions whose candidate's noise is ``scale`` times the noise from which sigma was estimated (4 runs)."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(2.0, (n, 1))
    true_sigma = np.exp(rng.normal(-1, 0.5, (n, 1)))
    variances = np.square(true_sigma * rng.standard_normal((n, 4))).mean(1, keepdims=True)
    sigmas, freedom = moderated(variances, 4)
    moved = scale * true_sigma[:, 0] * rng.standard_normal(n)
    zeros = np.zeros(n)
    return Positions(zeros, gaps[:, 0], sigmas[:, 0], flip_probability(gaps, sigmas, freedom, 0.0),
                     gaps[:, 0] + moved < 0, moved, Divergence(zeros, zeros, zeros, zeros, zeros), freedom)  # fmt: skip


def test_variances_lend_one_another_what_they_have_in_common() -> None:
    draws = np.random.default_rng(0).standard_normal((4000, 4))
    equal, freedom = moderated(np.square(draws).mean(1, keepdims=True), 4)
    assert freedom == 64 and np.std(equal) < 0.03 and np.mean(equal) == pytest.approx(1, abs=0.02)
    spread = np.exp(np.linspace(-6, 6, 4000))[:, None]
    _, freedom = moderated(np.square(spread * draws).mean(1, keepdims=True), 4)
    assert freedom == 6
    assert moderated(np.zeros((3, 1)), 4)[1] == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_prediction_is_calibrated(seed: int) -> None:
    counted = account(drawn(10_000, seed=seed))
    assert 0.9 < counted.expected / counted.observed < 1.1 and counted.p_value > 1e-3


def test_twice_the_declared_noise_shows() -> None:
    counted = account(drawn(10_000, scale=2.0))
    assert counted.observed > 1.5 * counted.expected and counted.p_value < 1e-3
    assert of_flips(counted, Precision("f32", {})) == Verdict.BUG


def test_one_flip_that_the_noise_cannot_explain_is_a_bug() -> None:
    quiet = drawn(200, scale=0.0)
    probability, flipped = quiet.probability.copy(), quiet.flipped.copy()
    probability[17], flipped[17] = 1e-9, True
    counted = account(quiet._replace(probability=probability, flipped=flipped))
    assert counted.unexplained == (17,) and of_flips(counted, Precision("f32", {})) == Verdict.BUG


def test_what_is_improbable_at_each_position_is_not_so_at_one_of_many() -> None:
    """4,000 positions at 9e-4: 3.6 flips are expected, and were a BUG while each position was judged alone."""
    p, flipped = np.full(4000, 9e-4), np.zeros(4000, bool)
    flipped[[5, 700, 2000, 3999]] = True
    assert unexplained(p, flipped) == ()
    flipped[::250] = True
    assert len(unexplained(p, flipped)) == 19, "16 of them and the four above, one of which is both"
    p = np.where(np.arange(4000) < 20, 1.1e-3, 1e-30)
    assert unexplained(p, np.arange(4000) < 4) == (0, 1, 2, 3), "each alone is no surprise"


def test_the_tail_of_flips_is_the_poisson_binomial_of_those_as_improbable() -> None:
    p = np.random.default_rng(0).random(60) ** 6
    seen = np.sort(p)[[2, 9, 30, 59]]
    expected = [poisson_binomial(p[p <= x])[k + 1 :].sum() for k, x in enumerate(seen)]
    np.testing.assert_allclose(count_tails(p, seen), expected, rtol=1e-10)


def test_right_engines_flip_unexplained_as_rarely_as_is_said() -> None:
    """2,000 of them, 60 positions each, at a rate of one in twenty: at most that many, within three deviations."""
    rng = np.random.default_rng(5)
    p = rng.random(60) ** 8
    wrong = sum(bool(unexplained(p, rng.random(60) < p, chance=0.05)) for _ in range(2000))
    assert 20 < wrong < 100 + 3 * 100**0.5


def gaps_that_share_a_term(n: int, seed: int, runs: int = 4) -> tuple[float, float, float]:
    """Flips predicted with the common term, without it, and observed over many candidates; ``runs`` noisy runs."""
    rng = np.random.default_rng(seed)
    gaps = np.sort(rng.exponential(1.0, (n, RIVALS)), axis=1)
    own = np.exp(rng.normal(-0.5, 0.3, (n, 1)))  # of each position

    def moved(times: int) -> np.ndarray:
        return own * (rng.standard_normal((times, n, 1)) - rng.standard_normal((times, n, RIVALS)))

    noise = moved(runs)
    variances, between = variances_of(noise)
    sigmas, freedom = moderated(variances, runs)
    common = common_share(variances, between, sigmas)
    assert common == pytest.approx(0.5, abs=0.06)
    expected, alone = (float(flip_probability(gaps, sigmas, freedom, c).sum()) for c in (common, 0.0))
    observed = (gaps + moved(100) < 0).any(2).sum(1).mean()
    return expected, alone, float(observed)


@pytest.mark.parametrize("runs", [2, 4, 8])
def test_rivals_share_the_first_tokens_noise(runs: int) -> None:
    """Predicted over observed within a few percent; taken as independent, rivals flip a fifth too often here."""
    expected, alone, observed = np.sum([gaps_that_share_a_term(1000, seed, runs) for seed in range(2)], axis=0)
    assert expected / observed == pytest.approx(1, abs=0.04)
    assert alone / observed > 1.2


def test_students_tails_are_predicted_where_few_runs_say_little() -> None:
    """Nothing is lent: noise of every size, 4 runs. Of positions given the same probability, so many flip."""
    rng = np.random.default_rng(1)
    n = 40_000
    noise = np.exp(np.linspace(-4, 3, n))[:, None] * rng.standard_normal((5, n, 1))
    p = flip_probability(np.ones((n, 1)), np.sqrt(np.square(noise[:4]).mean(0)), 4, 0.5)
    flipped = noise[4, :, 0] < -1
    for low, high in ((0.001, 0.02), (0.02, 0.1), (0.1, 0.5)):
        some = (low <= p) & (p < high)
        expected = p[some].sum()
        assert abs(flipped[some].sum() - expected) < 4 * expected**0.5, (low, high)


@pytest.mark.parametrize("freedom", [0.5, 3.0, 24.0, 5000.0])
def test_freedom_is_told_from_the_scatter_of_logarithms(freedom: float) -> None:
    from scipy.special import polygamma

    assert freedom_of(float(polygamma(1, freedom / 2))) == pytest.approx(freedom, rel=1e-4)


def test_an_engine_that_declares_more_than_it_uses_is_told_so() -> None:
    declared = Precision("8-bit activations, f16 cache", {})
    few = account(drawn(10_000, scale=0.2))
    assert of_flips(few, declared) == Verdict.DRIFT and few.observed < few.expected / 2
    (remark,) = remarks_of(few, declared)
    assert "declares more" in remark and "flips where" in remark and "0.24 times" in remark
    assert not remarks_of(account(drawn(10_000)), declared)
    assert not remarks_of(few, Precision("f32", {})), "the order of a sum is bounded, not known"


def test_the_bootstrap_knows_that_neighbours_agree() -> None:
    """A random walk of blocks: the error of the mean is far above that of independent values."""
    values = np.repeat(np.random.default_rng(0).standard_normal(64), 32)
    naive = values.std(ddof=1) / math.sqrt(len(values))
    assert 3 * naive < block_bootstrap(values) < 9 * naive


def test_unnamed_tokens_are_one_outcome() -> None:
    rng = np.random.default_rng(0)
    exact, found = rng.standard_normal((70, 40)), rng.standard_normal((70, 40))
    q = log_softmax(found, axis=1)
    whole = divergence(exact, q).kl
    np.testing.assert_allclose(whole, divergence(exact, found).kl, rtol=1e-10)
    only_one = np.where(np.arange(40) == 7, np.nan, q)
    np.testing.assert_allclose(divergence(exact, only_one).kl, whole, rtol=1e-3)
    few = divergence(exact, np.where(np.arange(40) >= 7, np.nan, q)).kl
    p = np.exp(log_softmax(exact, axis=1))
    by_hand = (p[:, :7] * np.log(p[:, :7] / np.exp(q[:, :7]))).sum(1)
    by_hand += (rest := p[:, 7:].sum(1)) * np.log(rest / (np.exp(q[:, 7:]).sum(1) + LEAK))
    np.testing.assert_allclose(few, by_hand, rtol=1e-9)
    assert (few < whole).all() and (few > 0).all()


def test_named_tokens_that_add_up_to_more_than_all_there_is() -> None:
    """Rounded to f32 they may; what is left for the others is then as much as rounding hides, not nothing."""
    exact = np.full((1, 40), -20.0)
    exact[0, 0] = 0.0
    named = np.full((1, 40), np.nan)
    named[0, 0] = 1e-6
    found = divergence(exact, named)
    assert found.kl[0] == 0 and found.bound.all()


def test_a_divergence_is_never_below_zero() -> None:
    """Nor rounding noise: where distributions differ by 1e-10 it is about 1e-20, which no difference of sums shows."""
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((200, 500)) * 3
    p = np.exp(log_softmax(exact, axis=1))
    for size in (1e-15, 1e-12, 1e-10, 1e-7, 1e-3):
        move = rng.standard_normal(exact.shape) * size
        found = divergence(exact, exact + move)
        assert (found.kl >= 0).all() and not found.bound.any()
        expected = ((p * move**2).sum(1) - (p * move).sum(1) ** 2) / 2  # to second order in the move
        if size >= 1e-10:
            np.testing.assert_allclose(found.kl, expected, rtol=0.02)
    assert (divergence(exact, exact + rng.standard_normal((200, 1))).kl < 1e-25).all(), "a constant changes nothing"
    top = np.argsort(-exact, axis=1)[:, :20]
    named = np.full_like(exact, np.nan)
    np.put_along_axis(named, top, np.take_along_axis(log_softmax(exact, axis=1), top, 1), 1)
    some = divergence(exact, named)
    assert (some.kl == 0).all() and some.bound.all()
    far = divergence(np.array([[0.0, -2000.0]]), np.array([[-2000.0, 0.0]]))
    assert far.kl[0] == pytest.approx(2000)


def test_sets_of_ten_need_ten_names() -> None:
    exact = np.random.default_rng(0).standard_normal((3, 40))
    few = np.where(np.argsort(np.argsort(-exact, axis=1), axis=1) < TOP - 1, log_softmax(exact, axis=1), np.nan)
    enough = np.where(np.argsort(np.argsort(-exact, axis=1), axis=1) < TOP, log_softmax(exact, axis=1), np.nan)
    assert statistics(divergence(exact, few))[f"same_top_{TOP}"] is None
    assert statistics(divergence(exact, enough))[f"same_top_{TOP}"] == 1


def test_the_figures_of_kl_divergence_against_the_definitions() -> None:
    rng = np.random.default_rng(3)
    exact, found = rng.standard_normal((70, 40)), rng.standard_normal((70, 40))
    text = rng.integers(0, 40, 69).tolist()
    shown = divergence(exact, found, text)
    assert np.isnan(shown.true_next[-1]) and np.isnan(shown.found_next[-1])
    p, q = log_softmax(exact, axis=1), log_softmax(found, axis=1)
    said = statistics(shown)
    in_p, in_q = (np.array([x[i, token] for i, token in enumerate(text)]) for x in (p, q))
    assert said["ppl_truth"] == pytest.approx(np.exp(-in_p.mean())) and said["kld_50"] == np.median(shown.kl)
    assert said["ln_ppl_ratio"] == pytest.approx(math.log(said["ppl_candidate"] / said["ppl_truth"]))  # type: ignore[operator]
    assert said["rms_dp"] == pytest.approx(np.sqrt(np.mean((np.exp(in_q) - np.exp(in_p)) ** 2)))
    best = [set(np.argsort(-x[7])[:TOP]) for x in (p, q)]
    assert shown.shared_top[7] == len(best[0] & best[1]) / TOP
    same = statistics(divergence(exact, exact, text))
    assert same["maximum_kld"] == 0 and same[f"same_top_{TOP}"] == 1 and same["mean_dp"] == 0


def test_a_next_token_that_was_not_named_is_not_counted() -> None:
    exact = np.random.default_rng(0).standard_normal((2, 40))
    named = np.where(np.arange(40) == 5, np.nan, log_softmax(exact, axis=1))
    shown = divergence(exact, named, [5, 6])
    assert np.isnan(shown.found_next[0]) and shown.found_next[1] == shown.true_next[1]
    assert "ppl_truth" not in statistics(shown) and "ppl_truth" in statistics(divergence(exact, named, [6, 7]))


def test_the_oracle_against_itself(judged: UnderTest, declared: Precision) -> None:
    found = flips.teacher_forced(judged.truth, judged.oracle, judged.candidate, IDS, declared,
                                 n_vocab=len(judged.file.vocabulary))  # fmt: skip
    counted = account(found)
    assert counted.observed == 0 and counted.expected < 0.01 and 0 <= counted.kl_mean < 1e-10
    assert (np.abs(found.moved) < 12 * found.sigma).all() and found.certificate.min() > 10
    assert 0.05 < counted.noise < 1.5


def test_an_error_that_flips_nothing_shows_in_the_logit_gaps(judged: UnderTest, declared: Precision) -> None:
    """A gain too large by a thousandth: no token flips, and every logit gap moves further than f32 moves it."""
    off = Planted(judged.candidate, ("ffn_norm", 1), lambda x: x * 1.001)
    counted = account(flips.teacher_forced(judged.truth, judged.oracle, off, IDS, declared,
                                           n_vocab=len(judged.file.vocabulary)))  # fmt: skip
    assert counted.observed == 0 and counted.noise > 100 and of_flips(counted, declared) == Verdict.BUG


def test_reading_one_by_one_is_the_same_sample(judged: UnderTest, declared: Precision) -> None:
    whole, single = (flips.teacher_forced(judged.truth, judged.oracle, judged.candidate, IDS, declared, read=read,
                                          n_vocab=len(judged.file.vocabulary)).divergence.kl
                     for read in (flips.by_prefill, flips.by_decode))  # fmt: skip
    assert single.max() < 1e-10 and whole.max() < 1e-10


def test_a_fault_that_only_logits_show_is_found_in_the_tokens(judged: UnderTest, declared: Precision) -> None:
    """A token's row raised far enough to win everywhere."""
    loud = Planted(judged.candidate, ("logits", None), lambda x: x + 100 * (np.arange(x.shape[1]) == 99))
    counted = account(flips.teacher_forced(judged.truth, judged.oracle, loud, IDS, declared,
                                           n_vocab=len(judged.file.vocabulary)))  # fmt: skip
    assert counted.observed >= len(IDS) - 1 and len(counted.unexplained) == counted.observed
    assert of_flips(counted, declared) == Verdict.BUG
