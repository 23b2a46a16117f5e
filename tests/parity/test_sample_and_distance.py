"""The same-sample check refuses what must not be compared; distances say what they promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import assay.reference.model
from assay.formats import SampleError, open_model
from assay.formats.contract.declaration import Declaration
from assay.formats.contract.engine import Prompt
from assay.goldens import BUILTIN
from assay.judging.engines_under_test import UnderTest
from assay.parity import stages
from assay.parity.bisect import Finding
from assay.parity.distance import distance
from assay.parity.flips import Account
from assay.parity.floor import MAGNITUDES, Floor, NoiseFloor, over_floor
from assay.parity.limits import Measure
from assay.parity.precision import Precision, as_weights, floats, in_blocks, precision, shaken
from assay.parity.sample import Sample, check_same, check_shapes
from assay.parity.verdict import Verdict, of_flips, of_stages
from assay.reference.arithmetic import Arithmetic
from assay.reference.attention import attention, softmax
from assay.reference.weights import Weights
from tests.planted import IDS

CONFIG = open_model(BUILTIN).config
ONE = Sample("<|im_start|>user\nhi<|im_end|>\n", (5, 6, 7, 8), "a" * 64)


@pytest.mark.parametrize(("other", "named"), [
    (replace(ONE, weights="b" * 64), "weights"),
    (replace(ONE, text="<|im_start|>user\nhi<|im_end|>"), "rendered prompt"),
    (replace(ONE, text=None), "rendered prompt"),
    (replace(ONE, ids=(5, 6, 7)), "token ids"),
    (replace(ONE, ids=(5, 6, 9, 8)), "position 2"),
])  # fmt: skip
def test_different_samples_are_refused(other: Sample, named: str) -> None:
    with pytest.raises(SampleError, match=named):
        check_same(ONE, other)
    check_same(ONE, replace(ONE))


def test_the_incidents_statistics_are_refused() -> None:
    """Seven positions on one side, the last of them on the other: the false alarm of a factor 18."""
    with pytest.raises(SampleError, match="7 positions and 1"):
        check_shapes("ffn_swiglu", 3, np.zeros((7, 16)), np.zeros((1, 16)))
    with pytest.raises(SampleError, match="8 elements and 112"):
        check_shapes("ffn_swiglu", 3, np.zeros((7, 8))[:1], np.zeros((1, 112)))


def test_an_engine_that_shows_fewer_positions_is_refused(judged: UnderTest, truth: stages.Activations) -> None:
    class Cut:
        def forward(self, ids: Any, tap: Any = None) -> np.ndarray:
            return judged.candidate.forward(ids, lambda stage, layer, a: (tap(stage, layer, a[-1:]), a)[1])

    with pytest.raises(SampleError, match="1 positions and 12"):
        stages.accumulated(Cut(), IDS, truth)  # type: ignore[arg-type]


def test_a_template_of_its_own_is_refused(judged: UnderTest) -> None:
    class Twice:
        """Wraps what is wrapped already, as the incident's engine did."""

        def __getattr__(self, name: str) -> Any:
            return getattr(judged.candidate, name)

        def chat_prompt(self, messages: Any) -> Prompt:
            once = judged.candidate.chat_prompt(messages)
            return judged.candidate.chat_prompt([{"role": "user", "content": once.text}])

    with pytest.raises(SampleError, match="rendered prompt"):
        replace(judged, candidate=Twice()).sample("What is 2+2?", None, chat=True)


def test_a_tokenizer_of_its_own_is_refused(judged: UnderTest) -> None:
    class Greedy:
        def __getattr__(self, name: str) -> Any:
            return getattr(judged.candidate, name)

        @property
        def tokenizer(self) -> Any:
            return self

        def encode(self, prompt: Any) -> list[int]:
            return judged.candidate.tokenizer.encode(prompt)[:-1]

    with pytest.raises(SampleError, match="token ids"):
        replace(judged, candidate=Greedy()).sample("def fib(n):", None, chat=False)


def test_distances() -> None:
    t = np.array([[3.0, 4.0], [0.0, 5.0]])
    d = distance(t + np.array([[0.0, 0.0], [0.0, 1.0]]), t)
    assert d.relative_l2 == pytest.approx(1 / np.sqrt(50)) and (d.position, d.channel) == (1, 1)
    assert d.worst_position == pytest.approx(0.2) and d.peak == pytest.approx(1 / np.sqrt(12.5))
    assert d.max_ulp == 2**21 and d.n_bad == 0  # 1 in units of 2^-21, f32's spacing from 4 to 8
    assert distance(2 * t, t).std_ratio == pytest.approx(2) and distance(2 * t, t).cosine == pytest.approx(1)
    assert distance(t - 1, t).bias == -1 and distance(t, t)[0] == 0
    bad = distance(np.where(t == 4, np.nan, t), t)
    assert (bad.n_bad, bad.position, bad.channel, bad.relative_l2) == (1, 0, 1, np.inf)


def really_rounded(x: np.ndarray, size: int) -> np.ndarray:
    """Rounded to 8 bits, a scale for each ``size`` elements of a row."""
    blocks = x.reshape(len(x), -1, size)
    step = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.round(blocks / step) * step).reshape(x.shape)


def test_noise_is_as_large_as_the_rounding_it_stands_for() -> None:
    x = np.random.default_rng(0).standard_normal((8, 8192))
    for rounding, rounded, factor in (
        (floats(10), x.astype(np.float16).astype(np.float64), 1),
        (floats(23), x.astype(np.float32).astype(np.float64), 1),
        (shaken(23, 16), x.astype(np.float32).astype(np.float64), 16),
        (as_weights(10), x.astype(np.float16).astype(np.float64), 1),
        (in_blocks(256), really_rounded(x, 256), 1),
    ):
        precision = Precision("", {("ffn_up", 0): rounding})
        one, other = (precision.noise(seed)("ffn_up", 0, x) - x for seed in (1, 2))
        assert np.std(one) == pytest.approx(factor * np.std(rounded - x), rel=0.03)
        # Draws, not one rounding: of values above the step they share nothing. (A quarter of these are below two.)
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.2


def test_equal_rows_are_rounded_equally_wherever_they_stand() -> None:
    """A real engine does so; noise that did not would average out over positions where its errors stay."""
    x = np.random.default_rng(0).standard_normal((1, 512)).repeat(3, axis=0)
    for rounding in (floats(10), as_weights(7), in_blocks(32)):
        moved = Precision("", {("ffn_up", 0): rounding}).noise(1)("ffn_up", 0, x)
        assert (moved == moved[0]).all() and (moved != x).mean() > 0.5


def test_what_the_largest_of_a_block_drowns_is_lost_not_blurred() -> None:
    """As behind the first token of real models: one element thousands of times the others, whose sum matters."""
    x = np.full((4, 512), 0.1)
    x[:, 300] = 1000.0
    noise = Precision("", {("ffn_norm", 0): in_blocks(256)}).noise(3)("ffn_norm", 0, x)
    np.testing.assert_array_equal(np.delete(noise[:, 256:], 300 - 256, axis=1), 0)
    np.testing.assert_allclose(noise[:, 300], 1000, rtol=0.005)
    np.testing.assert_allclose(noise[:, :256].mean(1), 0.1, rtol=0.01)
    assert not really_rounded(x, 256)[:, 256:300].any()


def test_a_block_of_zeros_or_of_a_shorter_row_is_rounded_too() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(in_blocks(32)(np.zeros((2, 40)), rng), 0)
    x = rng.standard_normal((3, 5, 7))
    moved = in_blocks(32)(x, rng)
    assert moved.shape == x.shape and 0 < np.abs(moved - x).max() < np.abs(x).max() / 127 * 0.56


def one_by_one(x: np.ndarray, weights: Weights, name: str, arith: Arithmetic) -> np.ndarray:
    """The oracle's product with each sum added term after term."""
    (_, matrix), *_ = weights.row_blocks(name)
    y = np.zeros((len(x), len(matrix)), arith.dtype)
    for k in range(x.shape[1]):
        y += x[:, k : k + 1] * matrix[:, k].astype(arith.dtype)
    return y


def test_sums_added_one_by_one_are_what_the_noise_stands_for(
    judged: UnderTest, truth: stages.Activations, limits: NoiseFloor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assay.reference.model, "linear", one_by_one)
    products = [key for key in truth if key[0].endswith(("_proj", "_out", "_gate", "_up", "logits"))]
    own = stages.local(judged.oracle, IDS, truth)
    ratios = [own[key].relative_l2 / limits[key].relative_l2 for key in products]
    assert len(products) == 7 * 4 + 1 and min(ratios) > 0.3 and max(ratios) < 1.5, ratios
    squares = np.square(np.float32(truth["attn_norm", 1]))
    exact = np.sqrt(np.square(np.float64(np.sqrt(squares))).sum(1))
    serial = np.sqrt(np.add.accumulate(squares, axis=1)[:, -1].astype(np.float64))
    expected = squares.shape[1] ** 0.5 / 6 * 2.0**-24
    assert 0.2 < np.sqrt(np.square(serial / exact - 1).mean()) / expected < 1.5


def test_scores_added_one_by_one_are_what_the_noise_stands_for() -> None:
    """Also where keys share an element that is nearly all of every score, as Qwen's biases make them: what moves all
    scores of a query alike is not seen by softmax, and stands for nothing."""
    size, declared = CONFIG.head_dim, precision(Declaration(), CONFIG)
    rng = np.random.default_rng(5)
    q, k, v = rng.standard_normal((3, 32, 1, size)).astype(np.float32)
    q[..., 3], k[..., 3] = 60 + q[..., 3], 100 + k[..., 3]
    exact = [x.astype(np.float64) for x in (q, k, v)]
    truth = attention(*exact)
    scores = np.add.accumulate(q[:, 0, None] * k[None, :, 0], axis=-1)[..., -1].astype(np.float64) / size**0.5
    serial = softmax(np.where(np.tri(32, dtype=bool), scores, -np.inf)) @ exact[2][:, 0]
    moved = []
    for seed in range(4):
        tap = declared.noise(seed)
        keys = ("q_rope", "k_rope", "v_bias")
        moved.append(attention(*(tap(key, 0, x) for key, x in zip(keys, exact, strict=True))) - truth)
    ratio = np.linalg.norm(serial[:, None] - truth) / max(map(np.linalg.norm, moved))
    assert 0.2 < ratio < 1.5, ratio


def test_the_step_of_eight_bits_is_a_127th_of_the_largest_in_the_block() -> None:
    x, steps = np.array([[1.0, -127.0, 3.0, 254.0, 5.0]]), np.array([[1.0, 1.0, 2.0, 2.0, 5 / 127]])
    moved = np.stack([in_blocks(2)(x, np.random.default_rng(seed)) for seed in range(200)]) - x
    assert (np.abs(moved) <= 0.55 * steps).all()
    assert (np.abs(moved).max(0)[:, [1, 3, 4]] > 0.45 * steps[:, [1, 3, 4]]).all()


@pytest.mark.parametrize("measure", MAGNITUDES)
def test_one_measure_beyond_its_floor_is_enough(measure: str) -> None:
    even = distance(np.array([[1.0, 2.0]]), np.array([[1.5, 2.5]]))
    floor = Floor(*(getattr(even, name) for name in MAGNITUDES))
    assert over_floor(even, floor) == 1
    assert over_floor(even, floor._replace(**{measure: getattr(floor, measure) / 5})) == pytest.approx(5)
    assert over_floor(even, floor._replace(**{measure: 0.0})) == np.inf
    for none in (np.inf, np.nan):  # a floor that was not measured allows nothing and forbids nothing
        assert np.isnan(over_floor(even, floor._replace(**{measure: none})))


def test_verdicts_that_no_engine_here_earns() -> None:
    declared, nothing = Precision("f32", {}), Finding({}, {}, {}, (), None)
    assert of_stages(nothing, declared, suspect=True) == Verdict.REFERENCE_SUSPECT
    assert of_stages(nothing, declared) == Verdict.NOISE
    assert of_stages(nothing, declared, disturbed=True) == Verdict.BUG
    assert of_stages(nothing, declared, equal=True, measured=False) == Verdict.UNCALIBRATED
    assert of_stages(nothing, None) == Verdict.UNCALIBRATED and of_flips(None, None) == Verdict.SKIPPED
    assert not Verdict.SKIPPED.green and not Verdict.UNCALIBRATED.green
    counted = Account(1000, 20.0, 60, 1e-9, (), 1.0, 0.94, 0.0, 0.0)
    assert of_flips(counted, declared) == Verdict.BUG, "too many flips, each of them explained"
    assert of_flips(counted._replace(observed=2), declared) == Verdict.NOISE, "fewer than expected is not a fault"
    counted = counted._replace(observed=20, p_value=1.0)
    for value, limit, verdict in ((4.1, 4.0, Verdict.BUG), (-4.1, 4.0, Verdict.BUG), (3.9, 4.0, Verdict.NOISE),
                                  (np.nan, 4.0, Verdict.BUG), (1.0, np.inf, Verdict.BUG), (1.0, np.nan, Verdict.BUG)):
        measures = (Measure("logit gaps", value, limit),)
        assert of_flips(counted._replace(measures=measures), declared) == verdict, (value, limit)

