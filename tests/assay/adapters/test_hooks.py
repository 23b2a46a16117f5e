"""The torch adapter's hooks, on modules that have the library's names and none of its code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import assay
from assay.adapters.torch import TransformersEngine
from assay.formats import InputError, open_model
from assay.formats.contract.config import STAGES
from assay.goldens import BUILTIN
from assay.parity import stages
from assay.parity.verdict import Verdict
from tests.assay.adapters import stand_in
from tests.assay.adapters.stand_in import CausalLM, NumpyArrays
from tests.planted import IDS

FILE = open_model(BUILTIN)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(FILE)


def engine(model: Any, **options: Any) -> TransformersEngine:
    return TransformersEngine(model, arrays=NumpyArrays(), **options)


def test_every_stage_but_three_is_shown_and_the_hooks_are_taken_off(model: CausalLM, builtin_f64: Any) -> None:
    rotate = stand_in.apply_rotary_pos_emb
    shown = stages.capture(engine(model), IDS)
    truth = stages.capture(builtin_f64, IDS)
    assert {stage for stage, _ in truth.keys() - shown.keys()} == {"q_proj", "k_proj", "v_proj"}
    assert shown.keys() <= truth.keys() and all(shown[key].size == truth[key].size for key in shown)
    assert not list(model.hooks()) and stand_in.apply_rotary_pos_emb is rotate


def test_it_is_judged_in_full(model: CausalLM) -> None:
    found = assay.judge(engine(model), FILE, IDS, runs=2)
    assert found.verdict == Verdict.NOISE, str(found)
    assert found.stages and found.stages.untouched == 0
    counted = assay.flips(engine(model), FILE, IDS[:6], path="decode", free=2, runs=2)
    assert counted.verdict == Verdict.NOISE and len(counted.parts) == 2


@pytest.mark.parametrize("stage", [stage for stage in STAGES if not stage.endswith("_proj")])
def test_what_a_tap_returns_is_gone_on_with(stage: str, model: CausalLM, builtin_f32: Any) -> None:
    """At each stage alone: another number there, and the logits are the oracle's with that number."""
    site = (stage, None if stage in ("embedding", "final_norm", "logits") else 1)

    def tap(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        return x * np.float32(1.5) if (stage, layer) == site else x

    mine, theirs, plain = (one.forward(IDS[:5], which) for one, which in (
        (engine(model), tap), (builtin_f32, tap), (builtin_f32, None)))  # fmt: skip
    assert np.abs(theirs - plain).max() > 1e-2
    np.testing.assert_allclose(mine, theirs, atol=2e-4)


def test_a_fault_in_a_module_is_named_also_where_it_hides_stages(model: CausalLM) -> None:
    class Fused(stand_in.Module):
        def __init__(self, of: stand_in.MLP) -> None:
            self.of = [of]

        def forward(self, x: np.ndarray) -> np.ndarray:
            return self.of[0].forward(x) * np.float32(1.001)

    layer = model.model.layers[2]
    original, layer.mlp = layer.mlp, Fused(layer.mlp)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        found = assay.bisect(engine(model), FILE, IDS, runs=2)
    finally:
        layer.mlp = original
    assert found.verdict == Verdict.BUG and found.site == ("ffn_out", 2)


def test_what_it_declares() -> None:
    model = CausalLM(FILE)
    kinds = {"float32": assay.Declaration(), "float64": assay.Declaration(results="f64", accumulation="f64"),
             "bfloat16": assay.Declaration(weights="bf16", cache="bf16", results="bf16", scores="bf16"),
             "int8": None}  # fmt: skip
    for kind, declared in kinds.items():
        model.dtype = f"torch.{kind}"  # pyright: ignore[reportAttributeAccessIssue]
        assert engine(model).fingerprint()["declaration"] == (declared and declared.to_json())
    model.config._attn_implementation = "sdpa"
    model.dtype = "torch.float16"  # pyright: ignore[reportAttributeAccessIssue]
    assert engine(model).fingerprint()["declaration"]["scores"] == "f32"
    eight = assay.Declaration("int8")
    assert engine(model, declaration=eight).fingerprint()["declaration"] == eight.to_json()


def test_what_is_no_such_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"no model\.embed_tokens"):
        engine(object())
    model = CausalLM(FILE)
    model.training = True
    with pytest.raises(InputError, match="being trained"):
        engine(model)
