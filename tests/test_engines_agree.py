"""The two engines against the oracle's f64, stage by stage, and the same text from both; planted faults must show."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import assay.reference.model
from assay import accel, reference
from assay.formats import InputError, NumericError, blocks, open_model
from assay.formats.contract.config import Config
from assay.formats.contract.engine import Generation, Sampling
from assay.goldens import BUILTIN
from assay.reference.weights import Weights
from tests.model_builder import TOKENS, Shape, build
from tests.stages import Key, captured, first_beyond_rounding, relative, rounding_bound

IDS = [185, 3, 77, 410, 3, 3, 250, 19, 476, 300, 9, 8, 7]

ODD_MODELS = {
    # 7 query heads to one, heads of 32 in a width of 256, padding rows, and every quantised type
    "every-quantised-type": Shape(
        n_layers=2, hidden=256, n_heads=7, n_kv_heads=1, head_dim=32, ffn=512, n_padding=10,
        types={"token_embd": ["Q8_0"], "attn_q": ["Q2_K", "Q3_K"], "attn_k": ["Q5_K", "IQ4_XS"],
               "attn_v": ["Q6_K", "Q4_K"], "attn_output": ["Q4_0", "Q5_0"], "ffn_gate": ["IQ4_NL", "Q4_1"],
               "ffn_up": ["Q5_1", "Q8_0"], "ffn_down": ["Q4_K", "Q6_K"]}),
    # an output matrix of its own, float types, no whole number of 256, another theta and eps
    "untied-floats": Shape(
        n_layers=2, hidden=96, n_heads=6, n_kv_heads=2, head_dim=10, ffn=160, tied=False, theta=1e4, eps=1e-5,
        types={"token_embd": ["F16"], "output": ["Q5_1"], "attn_q": ["F16", "BF16"], "attn_k": ["F32"],
               "attn_v": ["BF16"], "ffn_gate": ["Q5_0"], "ffn_up": ["F16"], "ffn_down": ["F32", "Q8_0"]}),
    # the quantization mix that llama.cpp's Q4_K_M makes of the 0.5B: in a width that is not a multiple of 256, no Q4_K
    "half-billion-mix": Shape(
        n_layers=2, hidden=224, n_heads=7, n_kv_heads=1, head_dim=32, ffn=256,
        types={"token_embd": ["Q8_0"], "attn_q": ["Q5_0"], "attn_k": ["Q5_0"], "attn_v": ["Q8_0", "Q5_0"],
               "attn_output": ["Q5_0"], "ffn_gate": ["Q5_0"], "ffn_up": ["Q5_0"], "ffn_down": ["Q6_K", "Q4_K"]}),
}  # fmt: skip
GENERATED = ("every-quantised-type", "untied-floats")  # these two cover every type; a program takes seconds


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("odd")
    return cache(lambda name: build(folder / f"{name}.gguf", ODD_MODELS[name], seed=list(ODD_MODELS).index(name)))


@pytest.fixture(scope="module")
def fast(odd: Callable[[str], Path], nothing_prepared: None) -> Callable[[str], Any]:
    return cache(lambda name: accel.load(odd(name), arith="f32"))


def check(found: dict[Key, np.ndarray], truth: dict[Key, np.ndarray], config: Config) -> None:
    """Fail with the first stage that is further from the truth than rounding can take it."""
    beyond = first_beyond_rounding(found, truth, config)
    assert beyond is None, f"{beyond[0]} is off by {beyond[1]:.2e} of its length"


# ---- stages ------------------------------


def test_the_models_between_them_use_every_decodable_type(odd: Callable[[str], Path]) -> None:
    used = {kind for name in GENERATED for kind in open_model(odd(name)).census()}
    assert used == set(blocks.DECODABLE)


def test_both_engines_agree_on_the_builtin_model(builtin_f64: Any, builtin_f32: Any, builtin_accel: Any) -> None:
    truth = captured(builtin_f64, IDS)
    check(captured(builtin_f32, IDS), truth, builtin_f64.file.config)
    check(captured(builtin_accel, IDS), truth, builtin_f64.file.config)


@pytest.mark.parametrize("name", ODD_MODELS)
def test_both_engines_agree_on_odd_models(
    name: str, odd: Callable[[str], Path], fast: Callable[[str], Any]
) -> None:
    ids = [i % len(TOKENS) for i in IDS]
    truth = captured(reference.load(odd(name), arith="f64"), ids)
    check(captured(reference.load(odd(name)), ids), truth, fast(name).file.config)
    check(captured(fast(name), ids), truth, fast(name).file.config)


# ---- planted faults: each mistake people make must be beyond rounding, at the stage where it is made ------------


def interleaved(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angles).astype(x.dtype)[:, None], np.sin(angles).astype(x.dtype)[:, None]
    out, (a, b) = np.empty_like(x), (x[..., 0::2], x[..., 1::2])
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
    return out


def tiled(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    order = [h for r in range(k.shape[1]) for h in range(r, q.shape[1], k.shape[1])]  # head h reads h % n_kv_heads
    out = np.empty_like(q)
    out[:, order] = TRUE["attention"](q[:, order], k, v)
    return out


def unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    group, scale = q.shape[1] // k.shape[1], q.dtype.type(q.shape[-1] ** -0.5)
    scores = np.einsum("thd,jhd->htj", q, k.repeat(group, 1)) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("htj,jhd->thd", weights / weights.sum(-1, keepdims=True), v.repeat(group, 1))


def windowed(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.concatenate([TRUE["attention"](q[t : t + 1], k[max(0, t - 3) : t + 1], v[max(0, t - 3) : t + 1])
                           for t in range(len(q))])  # fmt: skip


def vector(replace: Callable[[str, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda self, name, dtype: replace(name, TRUE["vector"](self, name, dtype))


def without(which: str) -> Callable[..., np.ndarray]:
    return vector(lambda name, values: values * 0 if name.endswith(f"attn_{which}.bias") else values)


def transposed(x: np.ndarray, weights: Weights, name: str, arith: Any) -> np.ndarray:
    if not name.endswith("attn_output.weight"):  # square in the built-in model: no shape complains
        return TRUE["linear"](x, weights, name, arith)
    return x @ weights.tensor(name).decode().astype(arith.dtype)


def swapped(x: np.ndarray, weights: Weights, name: str, arith: Any) -> np.ndarray:
    other = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}
    role = name.split(".")[-2]
    return TRUE["linear"](x, weights, name.replace(role, other.get(role, role)), arith)


TRUE: dict[str, Callable[..., np.ndarray]] = {
    name: getattr(assay.reference.model, name)
    for name in ("rotate", "rotation_angles", "attention", "rms_norm", "silu", "linear")
}
TRUE["vector"] = Weights.vector
FAULTS: dict[str, tuple[str, Callable[..., np.ndarray], Key]] = {
    "q bias dropped": ("vector", without("q"), ("q_bias", 0)),
    "k bias dropped": ("vector", without("k"), ("k_bias", 0)),
    "v bias dropped": ("vector", without("v"), ("v_bias", 0)),
    "rope on neighbours": ("rotate", interleaved, ("q_rope", 0)),
    "rope turned backwards": ("rotate", lambda x, angles: TRUE["rotate"](x, -angles), ("q_rope", 0)),
    "rope theta 1000000": ("rotation_angles", lambda p, d, theta: TRUE["rotation_angles"](p, d, 1e6), ("q_rope", 0)),
    "positions from 1": ("rotation_angles", lambda p, d, theta: TRUE["rotation_angles"](p + 1, d, theta),
                         ("q_rope", 0)),
    "eps 1e-5": ("rms_norm", lambda x, gain, eps: TRUE["rms_norm"](x, gain, 1e-5), ("attn_norm", 0)),
    "norm without gain": ("rms_norm", lambda x, gain, eps: TRUE["rms_norm"](x, gain * 0 + 1, eps), ("attn_norm", 0)),
    "gain 1 + w": ("rms_norm", lambda x, gain, eps: TRUE["rms_norm"](x, gain + 1, eps), ("attn_norm", 0)),
    "norm by deviation": ("rms_norm", lambda x, gain, eps: TRUE["rms_norm"](x - x.mean(-1, keepdims=True), gain, eps),
                          ("attn_norm", 0)),
    "kv heads tiled": ("attention", tiled, ("attention", 0)),
    "scale of 128": ("attention", lambda q, k, v: TRUE["attention"](q * q.dtype.type(0.5**0.5), k, v),
                     ("attention", 0)),
    "no scale": ("attention", lambda q, k, v: TRUE["attention"](q * 8, k, v), ("attention", 0)),
    "no mask": ("attention", unmasked, ("attention", 0)),
    "sliding window": ("attention", windowed, ("attention", 0)),
    "output transposed": ("linear", transposed, ("attn_out", 0)),
    "gate and up swapped": ("linear", swapped, ("ffn_gate", 0)),
    "gelu for silu": ("silu", lambda x: 0.5 * x * (1 + np.tanh(0.7978846 * (x + 0.044715 * x**3))), ("ffn_silu", 0)),
    "activations in f16": ("rms_norm", lambda *a: TRUE["rms_norm"](*a).astype(np.float16).astype(a[0].dtype),
                           ("attn_norm", 0)),
    "angles in f16": ("rotation_angles", lambda *a: TRUE["rotation_angles"](*a).astype(np.float16).astype(float),
                      ("q_rope", 0)),
}  # fmt: skip


@pytest.fixture(scope="module")
def truth_and_fast(builtin_f64: Any, builtin_accel: Any) -> tuple[dict[Key, np.ndarray], dict[Key, np.ndarray]]:
    return captured(builtin_f64, IDS), captured(builtin_accel, IDS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows_where_it_is_made(
    fault: str, truth_and_fast: tuple[dict[Key, np.ndarray], dict[Key, np.ndarray]], builtin_f32: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place, wrong, stage = FAULTS[fault]
    truth, fast = truth_and_fast
    owner = Weights if place == "vector" else assay.reference.model
    monkeypatch.setattr(owner, place, wrong)
    faulty = captured(builtin_f32, IDS)
    for right in (truth, fast):  # neither truth nor the other engine lets it pass
        beyond = first_beyond_rounding(faulty, right, builtin_f32.file.config)
        assert beyond is not None and beyond[0] == stage
    monkeypatch.undo()
    check(captured(builtin_f32, IDS), truth, builtin_f32.file.config)


def test_a_fault_in_the_rope_is_invisible_at_position_0(
    truth_and_fast: tuple[dict[Key, np.ndarray], dict[Key, np.ndarray]], builtin_f32: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The fingerprint by which a report can name the fault."""
    monkeypatch.setattr(assay.reference.model, "rotate", interleaved)
    wrong, right = captured(builtin_f32, IDS)["q_rope", 0], truth_and_fast[0]["q_rope", 0]
    assert relative(wrong[0], right[0]) < 1e-6 < 0.1 < relative(wrong[1:], right[1:])


# ---- generation ------------------------------


def same_text(a: Generation, b: Generation, config: Config) -> None:
    """The same ids; and numbers about them that are equal within rounding, seen as differences of logits."""
    parting = next((t for t, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), None)
    assert a.ids == b.ids, f"at token {parting} of {a.ids} and {b.ids}; margins {a.margins} and {b.margins}"
    assert (a.text, a.finish_reason, a.stopped_by) == (b.text, b.finish_reason, b.stopped_by)
    # A logit is off by rounding_bound times the typical logit (below 30 here, margins included); a log-probability
    # and a margin are differences of two such.
    near = 2 * 2 * 30 * rounding_bound(config, None)
    assert np.allclose(a.margins, b.margins, rtol=0, atol=near)
    assert np.allclose(a.logprobs, b.logprobs, rtol=0, atol=near)
    for x, y in zip(a.top_logprobs, b.top_logprobs, strict=True):
        assert [i for i, _ in x] == [i for i, _ in y]
        assert np.allclose([p for _, p in x], [p for _, p in y], rtol=0, atol=near)


def test_greedy_text_is_the_same_on_the_builtin_model(builtin_f64: Any, builtin_f32: Any, builtin_accel: Any) -> None:
    for prompt in ("class Stack:", "import os\nimport"):  # neither text is over within 32 tokens
        truth = reference.generate(builtin_f64, prompt, max_tokens=32, logprobs=3)
        assert len(truth.ids) == 32 and len(set(truth.ids)) > 8
        same_text(reference.generate(builtin_f32, prompt, max_tokens=32, logprobs=3), truth, builtin_f32.file.config)
        same_text(accel.generate(builtin_accel, prompt, max_tokens=32, logprobs=3), truth, builtin_f32.file.config)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATED)
def test_text_is_the_same_on_odd_models(
    name: str, odd: Callable[[str], Path], fast: Callable[[str], Any]
) -> None:
    oracle = reference.load(odd(name), cache_weights=True)
    # One token of prompt: the stages above came from the many-token products, here are the one-token ones.
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):  # drawn as well: greedy text may circle
        mine = reference.generate(oracle, [7], max_tokens=32, sampling=sampling)
        same_text(mine, accel.generate(fast(name), [7], max_tokens=32, sampling=sampling), oracle.file.config)
    assert len(set(mine.ids)) > 8  # a text, and not one token again and again


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, top_p=0.9, seed=2),
    Sampling(temperature=1.5, top_k=20, seed=3),
    Sampling(temperature=1.2, min_p=0.2, seed=2**64 - 1),
    Sampling(temperature=0.8, repeat_penalty=1.3, seed=5),
    Sampling(temperature=0.9, top_k=40, top_p=0.8, min_p=0.05, repeat_penalty=1.1, seed=6),
    Sampling(repeat_penalty=1.5),
    Sampling(temperature=1e-6, seed=8),
    Sampling(temperature=1e6, seed=9),
    Sampling(temperature=1.0, top_p=1e-6, seed=10),
    Sampling(repeat_penalty=1e-6, temperature=1.0, seed=11),
], ids=str)  # fmt: skip
def test_sampled_text_is_the_same(sampling: Sampling, builtin_f32: Any, builtin_accel: Any) -> None:
    prompt = "class Stack:"
    mine = reference.generate(builtin_f32, prompt, max_tokens=24, sampling=sampling, logprobs=3)
    same_text(mine, accel.generate(builtin_accel, prompt, max_tokens=24, sampling=sampling, logprobs=3),
              builtin_f32.file.config)  # fmt: skip


def test_padding_rows_are_never_chosen(tmp_path: Path) -> None:
    """10 of 272 rows are padding: 200 draws at a high temperature would meet them."""
    path = build(tmp_path / "m.gguf", Shape(n_padding=10, types={"token_embd": ["Q8_0"]}))
    settings = Sampling(temperature=50.0, seed=4)
    for engine in (reference, accel):
        model = engine.load(path, arith="f32")
        answers = [engine.generate(model, [len(TOKENS) + 3], max_tokens=50, sampling=settings) for _ in range(4)]
        assert max(i for answer in answers for i in answer.ids) < len(TOKENS)


# ---- refusals, the same on both ------------------------------


@pytest.fixture(params=["reference", "accel"])
def either(request: pytest.FixtureRequest, builtin_f32: Any, builtin_accel: Any) -> tuple[Any, Any]:
    return (reference, builtin_f32) if request.param == "reference" else (accel, builtin_accel)


@pytest.mark.parametrize(("prompt", "max_tokens"), [("", 4), ([], 4), ([2048], 4), ([-1], 4), ([1] * 2049, 0),
                                                    ([1] * 2000, 49), ("a", -1)])  # fmt: skip
def test_prompts_that_cannot_be_read(either: tuple[Any, Any], prompt: Any, max_tokens: int) -> None:
    engine, model = either
    with pytest.raises(InputError):
        engine.generate(model, prompt, max_tokens=max_tokens)


def test_no_tokens_asked_for_are_none(either: tuple[Any, Any]) -> None:
    engine, model = either
    answer = engine.generate(model, "a", max_tokens=0)
    assert (answer.ids, answer.text, answer.finish_reason) == ([], "", "length")


def test_more_log_probabilities_than_tokens_are_all_of_them(either: tuple[Any, Any]) -> None:
    engine, model = either
    (top,) = engine.generate(model, "a", max_tokens=1, logprobs=10**6).top_logprobs
    n_vocab = model.file.config.n_vocab
    assert len(top) == n_vocab and sum(np.exp([p for _, p in top])) == pytest.approx(1, abs=1e-5)  # f32 terms


def test_the_same_error_for_a_nan_on_the_way(either: tuple[Any, Any]) -> None:
    def spoil(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        return x * np.nan if (stage, layer) == ("v_bias", 1) else x

    with pytest.raises(NumericError, match="stage logits"):
        either[1].forward([1, 2], spoil)


def test_logits_that_overflow_stop_a_generation(tmp_path: Path) -> None:
    """Weights are finite, but their product is not: an error, not a token."""
    huge = np.full((len(TOKENS), 32), 3e38, np.float32)
    path = build(tmp_path / "m.gguf", Shape(tied=False), tensors={"output.weight": (huge, "F32")})
    for engine in (reference, accel):
        model = engine.load(path, arith="f32")
        with pytest.raises(NumericError):
            engine.generate(model, [1], max_tokens=2)


def test_fast_decoding_is_the_oracles_ggml_arithmetic(builtin_fast: Any) -> None:
    """Read one by one, both multiply the same integers. Sums in another order differ by some 1e-7, until one of them
    turns an 8-bit rounding (3e-3 of the largest activation of its block), as it does for 3 tokens in 40: so sequences
    of two are compared, and seven in ten positions must agree to 2e-6, where a wrong product would spoil all."""
    fast, oracle = builtin_fast, reference.load(BUILTIN, arith="ggml")
    errors = []
    for first in range(100, 2000, 100):
        mine, theirs = fast.new_cache(), oracle.new_cache()
        for token in (first, first + 1):
            ours, _ = fast.decode(token, mine)
            wanted, _ = oracle.decode(token, theirs)
            errors.append(relative(ours, wanted))
    assert np.mean(np.array(errors) < 2e-6) > 0.7, errors
    assert max(errors) < 0.05, errors  # a turned rounding or two, not another computation
