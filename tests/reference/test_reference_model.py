"""The oracle as a whole: reading at once or piece by piece, taps, and what must end in an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assay import reference
from assay.formats import FormatError, InputError, NumericError
from assay.formats.contract.engine import Sampling
from assay.goldens import BUILTIN
from assay.reference.model import Model
from tests.model_builder import TOKENS, Shape, build, tensors_of
from tests.stages import captured, expected_order, relative, replacing, rounding_bound

IDS = [185, 3, 77, 410, 3, 3, 250, 19, 476, 300, 9, 8, 7]


@pytest.fixture(scope="module", params=["f64", "f32", "ggml"])
def model(request: pytest.FixtureRequest) -> Model:
    return reference.load(BUILTIN, arith=request.param, cache_weights=True)


def tolerance(model: Model) -> float:
    """How far two ways of cutting the same work may part: only the shapes given to BLAS differ."""
    if model.arith.name == "ggml":
        # A difference of 1e-7 before 8-bit rounding moves a rare element by one of 127 steps, 1.5e-3 of |x| in a
        # block of 256 (the largest is about 3 sigma); room for four such.
        return 4 * 1.5e-3
    return rounding_bound(model.file.config, None, 2.0**-53 if model.arith.name == "f64" else 2.0**-24)


def test_reading_piece_by_piece_is_reading_at_once(model: Model) -> None:
    whole = model.forward(IDS)
    assert whole.shape == (len(IDS), model.file.config.n_vocab) and whole.dtype == model.arith.dtype
    first, cache = model.prefill(IDS[:4])
    steps = [first, *(model.decode(token, cache)[0] for token in IDS[4:])]
    assert cache.ids == IDS
    for t, logits in enumerate(steps, start=3):
        assert relative(logits, whole[t]) < tolerance(model), f"position {t}"


def test_chunks_of_any_size_give_the_same(model: Model) -> None:
    whole = model.forward(IDS)[-1]
    for sizes in ((13,), (5, 8), (1, 11, 1)):
        cache, at, logits = None, 0, np.empty(0)
        for size in sizes:
            logits, cache = model.prefill(IDS[at : at + size], cache)
            at += size
        assert relative(logits, whole) < tolerance(model), sizes


def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been(model: Model) -> None:
    _, cache = model.prefill([*IDS[:6], 1, 2, 3, 4])
    cache.truncate(6)
    logits, _ = model.prefill(IDS[6:], cache)
    assert cache.ids == IDS
    assert relative(logits, model.forward(IDS)[-1]) < tolerance(model)


def test_a_token_does_not_see_what_follows(model: Model) -> None:
    changed = model.forward([*IDS[:9], 1, 2, 3, 4])
    assert np.array_equal(changed[:9], model.forward(IDS)[:9])
    assert relative(changed[9:], model.forward(IDS)[9:]) > 0.01


def test_every_stage_is_shown_once_and_in_order(model: Model) -> None:
    assert list(captured(model, IDS)) == expected_order(model.file.config.n_layers)


def test_stages_have_the_shapes_that_the_anatomy_says(model: Model) -> None:
    config, shapes = model.file.config, {}

    def note(stage: str, layer: int | None, activation: np.ndarray) -> np.ndarray:
        shapes[stage] = activation.shape[1:]
        assert activation.dtype == model.arith.dtype
        return activation

    model.forward(IDS, note)
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    assert shapes["q_proj"] == (q,) and shapes["k_bias"] == shapes["v_proj"] == (kv,)
    assert shapes["q_rope"] == (config.n_heads, config.head_dim)
    assert shapes["k_rope"] == (config.n_kv_heads, config.head_dim)
    assert shapes["attention"] == (q,) and shapes["ffn_silu"] == (config.ffn_size,)
    assert shapes["final_norm"] == (config.hidden_size,) and shapes["logits"] == (config.n_vocab,)


def test_looking_changes_no_bit(model: Model) -> None:
    assert np.array_equal(model.forward(IDS, lambda stage, layer, x: x.copy()), model.forward(IDS))


@pytest.mark.parametrize("key", expected_order(2))
def test_what_a_tap_returns_is_what_the_model_goes_on_with(
    key: tuple[str, int | None], builtin_f32: Model
) -> None:
    rng = np.random.default_rng(0)
    spoiled = builtin_f32.forward(IDS, replacing(key, lambda x: x + rng.standard_normal(x.shape).astype(x.dtype)))
    plain = builtin_f32.forward(IDS)
    if key in (("k_rope", 1), ("q_rope", 1)):  # position 0 sees nothing but itself, whatever the scores
        assert np.array_equal(spoiled[0], plain[0])
    assert relative(spoiled, plain) > 1e-4


def test_transplanting_the_residual_stream_of_f64_makes_f32_go_on_from_truth(
    builtin_f32: Model, builtin_f64: Model
) -> None:
    truth = captured(builtin_f64, IDS)
    last = builtin_f32.file.config.n_layers - 1
    donor = truth["ffn_residual", last].astype(np.float32)

    def transplant(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        return donor if (stage, layer) == ("ffn_residual", last) else x * 0 if stage == "attn_norm" else x

    ruined_before = builtin_f32.forward(IDS, transplant)
    # All that is left to round is the last norm and one product.
    assert relative(ruined_before, truth["logits", None]) < rounding_bound(builtin_f32.file.config, 0)


def test_zero_inputs_leave_the_biases(builtin_f64: Model) -> None:
    shown: dict[str, np.ndarray] = {}

    def blank(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        if layer == 1:
            shown[stage] = x
        return x * 0 if stage == "attn_norm" else x

    builtin_f64.forward([1, 2], blank)
    for which in "qkv":
        bias = builtin_f64.weights.vector(f"blk.1.attn_{which}.bias", np.dtype(np.float64))
        assert not shown[f"{which}_proj"].any()
        assert np.array_equal(shown[f"{which}_bias"], np.stack([bias, bias])) and bias.any()


def test_ggml_differs_from_f32_by_the_rounding_of_activations_and_no_more(builtin_f32: Model) -> None:
    ggml = reference.load(BUILTIN, arith="ggml")
    distance = relative(ggml.forward(IDS), builtin_f32.forward(IDS))
    # 8 bits: half a step of max/127, i.e. about 3/127/sqrt(12) = 0.7 % of |x| a product, 10 products in series
    assert 1e-3 < distance < 0.07


@pytest.mark.parametrize("stage", ["embedding", "q_rope", "ffn_silu", "final_norm", "logits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_becomes_an_error(stage: str, bad: float, model: Model) -> None:
    def spoil(name: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        if name == stage:
            x = x.copy()
            x.reshape(len(x), -1)[0, 0] = bad
        return x

    with pytest.raises(NumericError, match="logits"):
        model.forward([1, 2, 3], spoil)


def test_an_output_matrix_of_its_own_is_used(tmp_path: Path) -> None:
    shape, stored = Shape(tied=False), tensors_of(Shape(tied=False))
    untied = reference.load(build(tmp_path / "a.gguf", shape), arith="f64")
    truth = captured(untied, [1, 2])
    output = stored["output.weight"][0].view(np.float32).astype(np.float64)
    assert relative(truth["final_norm", None] @ output.T, truth["logits", None]) < 1e-14
    tied = reference.load(build(tmp_path / "b.gguf", Shape(tied=True)), arith="f64")
    truth = captured(tied, [1, 2])
    table = tensors_of(Shape())["token_embd.weight"][0].view(np.float32).astype(np.float64)
    assert relative(truth["final_norm", None] @ table.T, truth["logits", None]) < 1e-14


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    stored, kind = tensors_of(Shape())["blk.0.ffn_up.weight"]
    stored.view(np.float32)[3, 4] = np.nan
    model = reference.load(build(tmp_path / "m.gguf", tensors={"blk.0.ffn_up.weight": (stored.view(np.float32), kind)}))
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.weight"):
        model.forward([1])


def test_ids_that_cannot_be_read_are_refused(builtin_f32: Model) -> None:
    n_vocab, context = builtin_f32.file.config.n_vocab, builtin_f32.file.config.context_length
    for ids in ([], [n_vocab], [-1], [0] * (context + 1)):
        with pytest.raises(InputError):
            builtin_f32.forward(ids)
        with pytest.raises(InputError):
            builtin_f32.prefill(ids)


def test_a_prompt_may_hold_padding_rows_and_still_be_penalised(tmp_path: Path) -> None:
    model = reference.load(build(tmp_path / "m.gguf", Shape(n_padding=4)))
    answer = reference.generate(model, [len(TOKENS) + 3, 5], max_tokens=4, sampling=Sampling(repeat_penalty=1.3))
    assert len(answer.ids) >= 1 and max(answer.ids) < len(TOKENS)


def test_the_fingerprint_names_the_arithmetic(model: Model) -> None:
    fingerprint = model.fingerprint()
    assert fingerprint["arith"] == model.arith.name and fingerprint["dtype"] == model.arith.dtype.name
