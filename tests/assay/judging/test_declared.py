"""What our engines' fingerprints declare; and that each matrix gets the noise of its own type, no more and no less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.accel.layout import LAYOUTS
from assay.formats import InputError, open_model
from assay.formats.contract.declaration import Declaration
from assay.formats.system.progress import quiet
from assay.goldens import BUILTIN
from assay.judging.declared import PACKED, declaration_of
from assay.judging.engines_under_test import UnderTest, engines_under_test
from assay.judging.judge import StageReport, judge_stages
from assay.parity import stages
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.precision import RoundedInputs, floats, in_blocks, precision
from assay.parity.verdict import Verdict
from tests.model_builder import Shape, build
from tests.planted import IDS, Planted

FILE = open_model(BUILTIN)
FAST = {"arith": "fast", "int8_up_to": 16, "cache": "f16"}
WIDE = Shape(hidden=256, n_heads=4, n_kv_heads=2, head_dim=64, ffn=256)


def test_the_packed_types_are_the_accelerated_engines() -> None:
    assert set(PACKED) == set(LAYOUTS)


def test_an_engine_that_does_not_say_how_it_computes_gets_no_verdict() -> None:
    for fingerprint in ({"engine": "somebody's"}, {"arith": "fp8"}, {"arith": "f32", "cache": "q4"},
                        {"arith": ["f32"], "cache": []}):  # fmt: skip
        assert declaration_of(fingerprint, FILE, 8) is None


@pytest.mark.parametrize(("fingerprint", "n", "name"), [
    ({"arith": "f32"}, 1, "f32"),
    ({"arith": "f64"}, 1, "f64"),
    ({"arith": "f32", "cache": "f32"}, 1, "f32"),
    ({"arith": "f32", "cache": "bf16"}, 1, "f32 products, bf16 cache"),
    ({"arith": "ggml"}, 100, "8-bit activations, f16 cache"),
    (FAST | {"dense": "bfloat16"}, 16, "8-bit activations, f16 cache"),
    (FAST | {"dense": "bfloat16"}, 17, "bf16 products, f16 cache"),
    (FAST | {"dense": "float32"}, 17, "f32 products, f16 cache"),
    (FAST | {"dense": "float32", "cache": "f32"}, 17, "f32"),
    ({"declaration": {"activations": "f16"}}, 1, "f16 products, f32 cache"),
    ({"declaration": {"results": "bf16"}, "arith": "f32"}, 1, "bf16 results, f32 products, f32 cache"),
])  # fmt: skip
def test_what_an_arithmetic_declares(fingerprint: dict[str, Any], n: int, name: str) -> None:
    declared = declaration_of(fingerprint, FILE, n)
    assert declared is not None and precision(declared, FILE.config).name == name
    with pytest.raises(InputError, match="declaration of the fingerprint"):
        declaration_of({"declaration": 3}, FILE, n)


def model(tmp_path: Path, types: Mapping[str, Sequence[str]]) -> UnderTest:
    """The oracle's ``ggml`` on a model of one layer whose matrices have these types."""
    shape = Shape(**{**vars(WIDE), "types": types})
    return engines_under_test(open_model(build(tmp_path / "m.gguf", shape)), "reference", "ggml")


def judged(under_test: UnderTest) -> StageReport:
    found = judge_stages(under_test, [i % 259 for i in IDS], "prefill", 4, quiet)
    assert found is not None
    return found


def test_each_matrix_has_the_rounding_of_its_own_type(tmp_path: Path) -> None:
    under_test = model(tmp_path, {"attn_q": ["Q4_K"], "attn_k": ["F16"], "attn_v": ["Q8_0"]})
    declared = under_test.declared(8)
    assert declared is not None and declared.declaration is not None
    said = declared.declaration.to_json()["activations"]
    assert (said["q"], said["k"], said["v"], said["up"]) == ("int8/256", "f16", "int8/32", "f32")
    inputs = {name.split(".")[2]: one for name, one in declared.inputs.items()}
    assert inputs == {"attn_q": (in_blocks(256), None), "attn_k": (floats(10), None), "attn_v": (in_blocks(32), None)}
    stages = {stage for stage, _ in declared.sums}
    assert "ffn_up" in stages and not stages & {"q_proj", "k_proj", "v_proj", "attention"}


def test_eight_bits_before_v_alone_are_forgiven(tmp_path: Path) -> None:
    """F16 q beside Q8_0 v got no 8-bit noise at all, and a right engine was a BUG."""
    found = judged(model(tmp_path, {"attn_q": ["F16"], "attn_v": ["Q8_0"]}))
    assert found.verdict == Verdict.DRIFT and max(found.finding.ratios.values()) < 0.9 * TOLERANCE_FACTOR
    floor = {stage: found.floor[stage, 0].relative_l2 for stage in ("q_proj", "k_proj", "v_proj")}
    assert floor["k_proj"] < 1e-6 < 1e-5 < floor["q_proj"] < 1e-3 < floor["v_proj"]


def test_eight_bits_before_q_do_not_forgive_v(tmp_path: Path) -> None:
    """Q4_K q beside F32 v had a floor of 8 bits for both: v could be wrong by a thousandth."""
    under_test = model(tmp_path, {"attn_q": ["Q4_K"]})
    assert judged(under_test).verdict == Verdict.DRIFT
    for stage, verdict in (("v_proj", Verdict.BUG), ("q_proj", Verdict.DRIFT)):
        wrong = Planted(under_test.candidate, (stage, 0), lambda x: x * 1.001)
        found = judged(UnderTest(under_test.baseline, wrong))
        assert found.verdict == verdict and found.finding.site in ((stage, 0), None)


def test_matrices_that_round_alike_share_the_draw() -> None:
    inputs = {"q": (in_blocks(32), None), "k": (in_blocks(32), None), "v": (in_blocks(32), floats(7)),
              "up": (floats(7), None)}  # fmt: skip
    noisy, x = RoundedInputs(inputs, 0), np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    q, k, v, up, other = (noisy(name, x) for name in ("q", "k", "v", "up", "none"))
    assert np.array_equal(q, k) and not np.array_equal(q, v) and other is x and q.dtype == v.dtype == np.float32
    assert 0 < np.abs(v - q).max() < 0.02 and 0 < np.abs(up - x).max() < 0.02
    assert not np.array_equal(noisy("q", x.copy()), q), "another activation, another draw"


def test_results_are_rounded_once_before_they_are_seen_and_once_where_they_are_fed() -> None:
    declared = precision(Declaration(results="bf16"), FILE.config)
    under_test = engines_under_test(FILE, "reference", "f32")
    truth = stages.capture(under_test.truth, IDS)
    floor = stages.noise_floor(under_test.oracle, IDS, truth, declared, runs=2)
    assert all(2e-4 < one.relative_l2 < 2e-2 for one in floor.values()), "2^-8 / sqrt(12) of each element, or twice"
    x = truth["ffn_up", 0]
    moved = [np.abs(declared.noise(0, fed=fed)("ffn_up", 0, x) - x).max() / np.abs(x).max() for fed in (True, False)]
    assert moved[0] > 1e-4 > 1e-6 > moved[1]
