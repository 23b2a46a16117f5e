"""The accelerated engine as a whole, in f32: reading at once or piece by piece, taps, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from assay.accel.attention import CACHE_TYPES, SMALLEST_CAPACITY
from assay.accel.model import ARITHMETICS, LONGEST, Model
from assay.formats import FormatError, InputError, NumericError
from assay.formats.contract.config import Config
from assay.formats.contract.engine import identity
from assay.goldens import BUILTIN
from tests.model_builder import TOKENS, Shape, build, tensors_of
from tests.stages import captured, expected_order, relative, replacing, rounding_bound

IDS = [185, 3, 77, 410, 3, 3, 250, 19, 476, 300, 9, 8, 7]
FEW = [i % len(TOKENS) for i in IDS]
"""The same for the model of one layer, whose vocabulary is small."""


@pytest.fixture(scope="module")
def one_layer_f64(one_layer: Path) -> Any:
    return reference.load(one_layer, arith="f64", cache_weights=True)


def bound(model: Model) -> float:
    """Two ways of cutting the same work, each as far from the truth as rounding takes it."""
    return 2 * rounding_bound(model.file.config, None)


def test_reading_piece_by_piece_is_reading_at_once(builtin_accel: Model) -> None:
    whole = builtin_accel.forward(IDS)
    assert whole.shape == (len(IDS), builtin_accel.file.config.n_vocab) and whole.dtype == np.float32
    first, cache = builtin_accel.prefill(IDS[:4])
    steps = [first, *(builtin_accel.decode(token, cache)[0] for token in IDS[4:])]
    assert cache.ids == IDS
    for t, logits in enumerate(steps, start=3):
        assert relative(logits, whole[t]) < bound(builtin_accel), f"position {t}"


def test_a_prompt_longer_than_a_chunk_and_a_cache_that_grows(one_layer_accel: Model, one_layer_f64: Any) -> None:
    ids = (FEW * 30)[: LONGEST["float32"] + 9]  # a whole piece and a padded one; more than the first cache has rows
    logits, cache = one_layer_accel.prefill(ids)
    assert cache.ids == ids and cache.capacity == 512
    assert relative(logits, one_layer_f64.prefill(ids)[0]) < bound(one_layer_accel)


def test_a_short_prompt_still_works_after_a_long_one(one_layer_accel: Model) -> None:
    before = one_layer_accel.prefill(FEW)[0]
    one_layer_accel.prefill((FEW * 30)[: LONGEST["float32"] + 9])
    assert np.array_equal(one_layer_accel.prefill(FEW)[0], before)


def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been(builtin_accel: Model) -> None:
    _, cache = builtin_accel.prefill([*IDS[:6], 1, 2, 3, 4])
    cache.truncate(6)
    logits, _ = builtin_accel.prefill(IDS[6:], cache)
    assert cache.ids == IDS
    assert relative(logits, builtin_accel.forward(IDS)[-1]) < bound(builtin_accel)


def test_a_token_does_not_see_what_follows_nor_the_padding(builtin_accel: Model) -> None:
    changed = builtin_accel.forward([*IDS[:9], 1, 2, 3, 4])
    assert np.array_equal(changed[:9], builtin_accel.forward(IDS)[:9])
    assert relative(changed[9:], builtin_accel.forward(IDS)[9:]) > 0.01
    shorter = builtin_accel.forward(IDS[:9])  # padded with seven zeros instead of three
    assert relative(shorter, changed[:9]) < bound(builtin_accel)


def test_every_stage_is_shown_once_and_in_order(builtin_accel: Model) -> None:
    assert list(captured(builtin_accel, IDS)) == expected_order(builtin_accel.file.config.n_layers)


def test_looking_changes_no_more_than_rounding(builtin_accel: Model) -> None:
    looked_at = builtin_accel.forward(IDS, identity)
    assert relative(looked_at, builtin_accel.forward(IDS)) < bound(builtin_accel)


@pytest.mark.parametrize("key", expected_order(2))
def test_what_a_tap_returns_is_what_the_model_goes_on_with(
    key: tuple[str, int | None], builtin_accel: Model
) -> None:
    rng = np.random.default_rng(0)
    tap = replacing(key, lambda x: x + rng.standard_normal(x.shape).astype(np.float32))
    assert relative(builtin_accel.forward(IDS, tap), builtin_accel.forward(IDS)) > 1e-4


def test_a_tap_may_write_into_what_it_is_shown(builtin_accel: Model) -> None:
    def blank(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        x[:] = 0
        return x

    assert not builtin_accel.forward(IDS, blank).any()


def test_zero_inputs_leave_the_biases(builtin_accel: Model) -> None:
    shown: dict[str, np.ndarray] = {}

    def blank(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        if layer == 1:
            shown[stage] = x.copy()
        return x * 0 if stage == "attn_norm" else x

    builtin_accel.forward([1, 2], blank)
    for which in "qkv":
        bias = builtin_accel.file.tensors[f"blk.1.attn_{which}.bias"].decode()
        assert not shown[f"{which}_proj"].any()
        assert np.array_equal(shown[f"{which}_bias"], np.stack([bias, bias]))


@pytest.mark.parametrize("stage", ["embedding", "q_rope", "ffn_silu", "final_norm", "logits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_becomes_an_error(stage: str, bad: float, builtin_accel: Model) -> None:
    def spoil(name: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        if name == stage:
            x.reshape(len(x), -1)[0, 0] = bad
        return x

    with pytest.raises(NumericError, match="logits"):
        builtin_accel.forward(IDS, spoil)


def test_ids_that_cannot_be_read_are_refused(builtin_accel: Model) -> None:
    config: Config = builtin_accel.file.config
    for ids in ([], [config.n_vocab], [-1], [0] * (config.context_length + 1)):
        with pytest.raises(InputError):
            builtin_accel.forward(ids)
        with pytest.raises(InputError):
            builtin_accel.prefill(ids)


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    shape = Shape(types={"ffn_up": ["Q8_0"]}, hidden=32, ffn=64)
    for name in ("blk.0.ffn_up.weight", "blk.0.attn_q.bias"):
        stored, kind = tensors_of(shape)[name]
        stored.reshape(-1).view(np.float16 if kind == "Q8_0" else np.float32)[0] = np.nan
        with pytest.raises(FormatError, match=name):
            accel.load(build(tmp_path / "m.gguf", shape, tensors={name: (stored, kind)}))


def test_packing_counts_every_tensor() -> None:
    counts: list[tuple[int, int]] = []
    model = accel.load(BUILTIN, arith="f32", progress=lambda done, total: counts.append((done, total)))
    n = len(model.file.tensors)
    assert counts[-1] == (n, n) and [d for d, _ in counts] == sorted(d for d, _ in counts)


def test_an_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(InputError, match="f32"):
        accel.load(BUILTIN, arith="f64")


def test_the_fingerprint_names_arithmetic_and_device(builtin_accel: Model) -> None:
    fingerprint = builtin_accel.fingerprint()
    assert fingerprint["arith"] == "f32" and ":" in fingerprint["device"] and fingerprint["jax"]


def test_an_interrupted_step_costs_the_cache_but_not_the_conversation(builtin_accel: Model) -> None:
    """Ctrl-C can fall between the call that takes the cache's arrays and the assignment that gives them back."""
    cache = builtin_accel.new_cache()
    first = accel.generate(builtin_accel, "def fib(n):", max_tokens=4, cache=cache)
    cache.k.delete()
    again = accel.generate(builtin_accel, "def fib(n):", max_tokens=4, cache=cache)
    assert again.ids == first.ids


@pytest.mark.slow
@pytest.mark.parametrize(("cache_type", "bits"), [("bf16", 8), ("f16", 11)])
def test_a_narrow_cache_costs_its_rounding_and_no_more(cache_type: str, bits: int, builtin_accel: Model) -> None:
    """Keys and values are rounded once to ``bits`` significand bits; a few such roundings add up through the layers."""
    model = accel.load(BUILTIN, arith="f32", cache_type=cache_type)
    assert model.fingerprint()["cache"] == cache_type
    error = relative(model.forward(IDS), builtin_accel.forward(IDS))
    assert bound(builtin_accel) < error < 8 * 2.0**-bits
    _, cache = model.prefill(IDS[:5])
    assert cache.k.dtype == cache.v.dtype == CACHE_TYPES[cache_type]


def test_an_unknown_cache_type_is_refused() -> None:
    with pytest.raises(InputError, match="bf16"):
        accel.load(BUILTIN, cache_type="q8_0")


@pytest.mark.parametrize("arith", ARITHMETICS)
def test_attention_goes_on_over_many_blocks(arith: str, one_layer: Path, one_layer_f64: Any) -> None:
    """Decoding behind a long past, where keys and values lie in several blocks of the cache."""
    model = accel.load(one_layer, arith=arith)
    ids = (FEW * 40)[: SMALLEST_CAPACITY + 9]
    _, cache = model.prefill(ids[:-2])
    model.decode(ids[-2], cache)
    logits, _ = model.decode(ids[-1], cache)
    wanted = one_layer_f64.prefill(ids)[0]
    assert relative(logits, wanted) < (bound(model) if arith == "f32" else 0.05)  # 8-bit activations: some per cent
