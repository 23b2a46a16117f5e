"""Both engines on an APR model that GGUF cannot hold: rows of Q4_K and Q6_K that end in padding, and APR's own types.

What padding decodes to is noise: an engine that let it count would be far off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from assay.formats import open_model
from assay.formats.contract.engine import Sampling
from tests import apr_builder, model_builder
from tests import apr_files as raw
from tests.apr_builder import hf_name, padded_matrix
from tests.model_builder import TOKENS, Shape, tensors_of
from tests.stages import captured, first_beyond_rounding, relative

pytestmark = pytest.mark.usefixtures("nothing_prepared")
# 96 and 160 are not multiples of 256; every matrix that multiplies is padded or of an APR type.
SHAPE = Shape(n_layers=2, hidden=96, n_heads=6, n_kv_heads=2, head_dim=16, ffn=160)
KINDS = {"token_embd": ["Q6_K"], "attn_q": ["Q4_K", "Q6_K"], "attn_k": ["Q4_K", "Q4_K"], "attn_v": ["Q6_K", "APR_Q8"],
         "attn_output": ["Q4_K", "APR_Q4"], "ffn_gate": ["Q4_K", "Q4_K"], "ffn_up": ["APR_Q4", "Q4_K"],
         "ffn_down": ["Q6_K", "Q4_K"]}  # fmt: skip
IDS = [5, 3, 77, 259, 3, 3, 250, 19, 260, 9, 8, 7]


def own_type(name: str, n_rows: int, n_columns: int, kind: str, seed: int) -> tuple[raw.Tensor, np.ndarray]:
    """A matrix in one of APR's own types, and its values by the format's definition."""
    rng, n = np.random.default_rng(seed), n_rows * n_columns
    if kind == "APR_Q8":
        q, scale = rng.integers(-127, 128, n, dtype=np.int8), np.float32(0.002)
        return (raw.Tensor(name, (n_rows, n_columns), raw.APR_Q8, scale.tobytes() + q.tobytes()),
                (q * scale).reshape(n_rows, n_columns))  # fmt: skip
    q = rng.integers(0, 16, (n // 32, 32), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.03, (n // 32, 1)).astype(np.float16)
    blocks = np.concatenate([scales.view(np.uint8), q[:, 0::2] | q[:, 1::2] << 4], axis=1)
    values = scales.astype(np.float32) * (q.astype(np.float32) - 8)
    return raw.Tensor(name, (n_rows, n_columns), raw.APR_Q4, blocks.tobytes()), values.reshape(n_rows, n_columns)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model as APR; and as GGUF, its matrices written as the F32 values that they stand for."""
    folder = tmp_path_factory.mktemp("padded")
    packed: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for seed, (name, (rows, _)) in enumerate(tensors_of(SHAPE).items()):
        *layer, role = name.removeprefix("blk.").split(".")[:-1]
        if role not in KINDS or rows.ndim == 1:
            continue
        kind, n_columns = KINDS[role][int(*layer)], rows.shape[1] // 4
        make = own_type if kind.startswith("APR") else padded_matrix
        packed[name], values = make(hf_name(name), len(rows), n_columns, kind, seed)
        plain[name] = (np.ascontiguousarray(values, np.float32), "F32")
    return (apr_builder.build(folder / "m.apr", SHAPE, tensors=packed),
            model_builder.build(folder / "m.gguf", SHAPE, tensors=plain))  # fmt: skip


def test_the_model_is_what_it_is_meant_to_be(models: tuple[Path, Path]) -> None:
    file = open_model(models[0])
    assert set(file.census()) == {"F32", "Q4_K", "Q6_K", "APR_Q4", "APR_Q8"}
    padded = [t.name for t in file.tensors.values() if t.row_elements > t.shape[-1]]
    assert len(padded) == 12 and "token_embd.weight" in padded
    for name, tensor in open_model(models[1]).tensors.items():
        assert np.array_equal(tensor.decode(), file.tensors[name].decode()), name


@pytest.mark.parametrize("cached", [False, True])
def test_the_oracle_computes_the_same_from_either_file(models: tuple[Path, Path], cached: bool) -> None:
    for arith in ("f64", "f32"):
        apr, gguf = (reference.load(path, arith=arith, cache_weights=cached).forward(IDS) for path in models)
        assert np.array_equal(apr, gguf)  # the same numbers in the same order: not a bit differs


def test_both_engines_agree_on_it(models: tuple[Path, Path]) -> None:
    config = open_model(models[1]).config
    truth = captured(reference.load(models[1], arith="f64"), IDS)
    for engine in (reference.load(models[0]), accel.load(models[0], arith="f32")):
        assert first_beyond_rounding(captured(engine, IDS), truth, config) is None


def test_both_generate_the_same(models: tuple[Path, Path]) -> None:
    drawn = Sampling(temperature=1.0, seed=3)  # greedy text of such a model goes in circles
    oracle = reference.generate(reference.load(models[1], arith="f64"), [7], max_tokens=24, sampling=drawn)
    assert len(set(oracle.ids)) > 12 and max(oracle.ids) < len(TOKENS)
    assert reference.generate(reference.load(models[0]), [7], max_tokens=24, sampling=drawn).ids == oracle.ids
    fast = accel.load(models[0], arith="f32")
    assert accel.generate(fast, [7], max_tokens=24, sampling=drawn).ids == oracle.ids


def test_fast_decoding_is_the_oracles_ggml_arithmetic(models: tuple[Path, Path]) -> None:
    """As in test_engines_agree.py: the integers are the same, and padded activations are zeros."""
    fast, oracle = accel.load(models[0]), reference.load(models[0], arith="ggml")
    mine, theirs = fast.new_cache(), oracle.new_cache()
    for token in IDS[:4]:
        ours, _ = fast.decode(token, mine)
        wanted, _ = oracle.decode(token, theirs)
        assert relative(ours, wanted) < 2e-6


def test_fast_reading_of_many_tokens_is_near_the_truth(models: tuple[Path, Path]) -> None:
    """bf16 products: 2**-9 for each of the operands, and some for luck; noise let in would be of the order of 1."""
    ids = (IDS * 3)[:32]
    logits, _ = accel.load(models[0]).prefill(ids)
    truth = reference.load(models[1], arith="f64").forward(ids)[-1]
    assert relative(logits, truth) < 0.05
