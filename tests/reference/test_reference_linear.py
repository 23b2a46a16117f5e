"""Matrix products of the oracle: integer block dots are exact, and cutting a matrix into rows changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

import assay.reference.weights
from assay.formats import InputError, Tensor, blocks, open_model
from assay.formats.blocks.ggml_types import BY_NAME
from assay.reference.arithmetic import ARITHMETICS, arithmetic
from assay.reference.block_dot import (
    ACTIVATION_TYPE,
    Activations,
    block_dot,
    quantize_activations,
    quantize_q8_0,
    quantize_q8_1,
    quantize_q8_k,
    round_to_bf16,
)
from assay.reference.linear import linear
from assay.reference.weights import Weights, row_slices
from tests.model_builder import TOKENS, Shape, build, random_rows

N_TOKENS, N_ROWS, N_COLUMNS = 3, 5, 1024
U32 = 2.0**-24


def random_tensor(type_name: str) -> Tensor:
    rows = random_rows(np.random.default_rng(3), type_name, (N_ROWS, N_COLUMNS), 1.0)
    return Tensor("w", BY_NAME[type_name], (N_ROWS, N_COLUMNS), Path("none"), lambda which: rows[which])


def activations() -> np.ndarray:
    """Like real ones: most small, a few channels large, one block all zero."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((N_TOKENS, N_COLUMNS)).astype(np.float32)
    x[:, 17] *= 50
    x[1, 256:512] = 0
    return x


def restored(x: Activations | np.ndarray) -> np.ndarray:
    """The activations that the integers stand for, f64 [n_tokens, n_columns]."""
    if isinstance(x, np.ndarray):
        return x.astype(np.float64)
    return (x.q.astype(np.float64) * x.d[..., None]).reshape(len(x.q), -1)


@pytest.mark.parametrize("type_name", blocks.DECODABLE)
def test_an_integer_dot_is_the_exact_dot_of_what_was_rounded(type_name: str) -> None:
    tensor, x = random_tensor(type_name), quantize_activations(activations(), type_name)
    y = block_dot(x, tensor, slice(0, N_ROWS))
    w = tensor.decode().astype(np.float64)
    xr = restored(x)
    exact = xr @ w.T
    quantised = blocks.unpack(type_name, tensor.raw()) if isinstance(x, Activations) else None
    if ACTIVATION_TYPE[type_name] == "Q8_1" and isinstance(x, Activations) and quantised and quantised.dmin is not None:
        # the min meets the stored sum f16(d·Σq) instead of Σ x: replace that part of the exact product
        sums = x.group_sums[..., 0] * x.sum_scale
        exact -= (sums - xr.reshape(N_TOKENS, -1, 32).sum(-1)) @ quantised.dmin.astype(np.float64).T
    # Integers are exact. What rounds is f32: decoding w (1), the integer sum (1), d·dx (1), their product (1), each
    # at most U of Σ|w·x| with the min's part counted apart (W = |d·q| + |min| <= 3|w|_max), and the sum of blocks.
    span = np.abs(w)
    if quantised and quantised.min is not None and quantised.dmin is not None:
        low = np.abs(quantised.dmin[..., None] * quantised.min.astype(np.float64))
        span = span + 2 * np.repeat(low, N_COLUMNS // low[0].size, axis=-1).reshape(w.shape)
    n_sums = 2 * x.d.shape[1] if isinstance(x, Activations) else N_COLUMNS
    bound = (4 + n_sums) * U32 * (np.abs(xr) @ span.T)
    assert y.dtype == np.float32 and y.shape == (N_TOKENS, N_ROWS)
    assert (np.abs(y - exact) <= bound).all()
    assert (bound < 1e-3 * np.abs(exact).max()).all()  # the bound is not so wide that anything passes


@pytest.mark.parametrize("type_name", [t for t in blocks.DECODABLE if t not in ("F32", "F16", "BF16")])
def test_the_integers_differ_from_the_f32_product_by_the_rounding_of_x(type_name: str) -> None:
    tensor, x = random_tensor(type_name), activations()
    rounded = block_dot(quantize_activations(x, type_name), tensor, slice(0, N_ROWS))
    plain = x @ tensor.decode().T
    error = np.linalg.norm(rounded - plain) / np.linalg.norm(plain)
    # x moves by at most half a step of max/127 in each block; blocks with the channel of 50 lose most
    assert 1e-4 < error < 0.1


def away_from_ties(rng: np.random.Generator, n_blocks: int) -> np.ndarray:
    """Blocks of 32 in which no x/d comes near k + 1/2, where rint and C's roundf part."""
    x = rng.standard_normal((n_blocks, 32)).astype(np.float32)
    d = np.abs(x).max(-1, keepdims=True) / 127
    ties = np.abs(np.abs(x / d) % 1 - 0.5) < 1e-3
    return np.where(ties, x + d * 0.01, x).astype(np.float32)


def test_q8_0_activations_are_those_of_the_gguf_package() -> None:
    x = away_from_ties(np.random.default_rng(5), 400).reshape(4, -1)
    x[2, :32] = 0
    ours = quantize_q8_0(x)
    theirs = quants.quantize(x, GGMLQuantizationType.Q8_0).reshape(4, -1, 34)
    assert np.array_equal(ours.q.astype(np.int8), theirs[..., 2:].view(np.int8))
    assert np.array_equal(ours.d, theirs[..., :2].copy().view(np.float16)[..., 0].astype(np.float32))
    assert np.array_equal(ours.group_sums[..., 0], ours.q.sum(-1))


def test_bf16_activations_are_those_of_the_gguf_package() -> None:
    x = np.random.default_rng(6).standard_normal((8, 256)).astype(np.float32)
    x[0, :3] = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)]  # ties: to even
    theirs = quants.dequantize(quants.quantize(x, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
    assert np.array_equal(round_to_bf16(x), theirs)
    assert round_to_bf16(x)[0, :3].tolist() == [1, 1 + 2**-6, -1]


def test_q8_k_puts_the_largest_at_minus_127() -> None:
    x = np.zeros((1, 512), np.float32)
    x[0, :4] = [1.0, -2.0, 0.5, 2.0]  # of equals in magnitude the first counts
    a = quantize_q8_k(x)
    assert a.q[0, 0, :4].tolist() == [64, -127, 32, 127]  # 63.5 is a tie: to even
    assert a.d[0].tolist() == [np.float32(1) / np.float32(63.5), 0]
    assert not a.q[0, 1].any() and np.array_equal(a.group_sums[0, 0], [64 - 127 + 32 + 127, *[0] * 15])


def test_q8_1_keeps_the_sum_as_f16_of_the_unrounded_scale() -> None:
    x = np.random.default_rng(7).standard_normal((2, 2048)).astype(np.float32)
    a, plain = quantize_q8_1(x), quantize_q8_0(x)
    assert np.array_equal(a.q, plain.q) and np.array_equal(a.d, plain.d)
    d = np.abs(x.reshape(2, 64, 32)).max(-1) / np.float32(127)
    expected = (d * plain.q.sum(-1)).astype(np.float16).astype(np.float64)
    assert np.array_equal(a.group_sums[..., 0] * a.sum_scale, expected)
    # 33 roundings of half a step, and f16's 2^-11 of a sum below 32·max
    assert np.allclose(expected, x.reshape(2, 64, 32).sum(-1), rtol=0, atol=16 * float(d.max()) + 0.05)


def test_every_decodable_type_has_an_activation_type() -> None:
    assert set(ACTIVATION_TYPE) == set(blocks.DECODABLE)


# ---- linear ------------------------------


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(hidden=256, head_dim=128, ffn=48, n_padding=3, tied=False,
                  types={"ffn_up": ["Q4_K"], "attn_q": ["Q6_K"], "output": ["Q8_0"], "token_embd": ["F16"]})
    return build(tmp_path_factory.mktemp("linear") / "m.gguf", shape)


@pytest.mark.parametrize("arith", ARITHMETICS)
@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "blk.0.attn_q.weight", "output.weight", "token_embd.weight"])
def test_row_blocks_and_caching_change_nothing(
    name: str, arith: str, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, kind = open_model(model_path), arithmetic(arith)
    x = np.random.default_rng(8).standard_normal((4, 256)).astype(kind.dtype)
    whole = linear(x, Weights(file), name, kind)
    cached = linear(x, Weights(file, cache=True), name, kind)
    monkeypatch.setattr(assay.reference.weights, "ROW_BLOCK_ELEMENTS", 7 * 256)
    cut = linear(x, Weights(file), name, kind)
    assert whole.dtype == kind.dtype and whole.shape == (4, file.tensors[name].shape[0])
    span = np.abs(x) @ np.abs(file.tensors[name].decode().astype(kind.dtype)).T
    unit = 2.0**-53 if arith == "f64" else U32
    rounded = arith == "ggml"  # the activations, to what the weights' type asks for
    if rounded and file.tensors[name].type.block_elements > 1:
        assert np.array_equal(whole, cut) and np.array_equal(whole, cached)  # integers: not a bit may change
        return
    for other in (cached, cut):  # BLAS may order a sum of 256 by the matrix's height: 256·u of Σ|w·x|
        assert (np.abs(whole - other) <= 256 * unit * span).all()
    if not rounded:
        exact = x.astype(np.float64) @ file.tensors[name].decode().astype(np.float64).T
        assert (np.abs(whole - exact) <= 256 * unit * span).all()


@pytest.mark.parametrize("n_rows", [1, 6, 7, 8, 100])
def test_row_slices_cover_every_row_once(n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assay.reference.weights, "ROW_BLOCK_ELEMENTS", 7 * 16)
    slices = list(row_slices((n_rows, 16)))
    assert [i for s in slices for i in range(n_rows)[s]] == list(range(n_rows))
    assert all(s.stop - s.start <= 7 for s in slices)
    assert len(list(row_slices((3, 1 << 20)))) == 3  # a row longer than a block is still a row


def test_a_matrix_meets_unit_vectors_as_its_columns(model_path: Path) -> None:
    weights = Weights(open_model(model_path))
    y = linear(np.eye(256), weights, "blk.0.ffn_up.weight", ARITHMETICS["f64"])
    assert np.array_equal(y.T, weights.tensor("blk.0.ffn_up.weight").decode())


def test_the_cache_decodes_once(model_path: Path) -> None:
    weights = Weights(open_model(model_path), cache=True)
    first, second = (next(iter(weights.row_blocks("output.weight")))[1] for _ in range(2))
    assert first is second


def test_an_embedding_is_the_rows_of_its_tokens(model_path: Path) -> None:
    weights = Weights(open_model(model_path))
    ids = np.array([5, 0, 5, len(TOKENS) + 2])
    rows = weights.embedding(ids, np.dtype(np.float64))
    assert rows.dtype == np.float64
    assert np.array_equal(rows, weights.tensor("token_embd.weight").decode()[ids])


def test_an_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(InputError, match="f64, f32, ggml"):
        arithmetic("f16")
