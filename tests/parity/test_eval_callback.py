"""llama-eval-callback's output: a real one, planted faults in its form, and what is not of that form.

``eval_callback.txt.gz`` is what the program of llama.cpp (in llama-cpp-python 0.3.36) printed for the built-in model:
``llama-eval-callback -m goldens/builtin.gguf -p "def f(" -t 1``, from "number of input tokens" on, times removed.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.engines import load
from assay.formats import FormatError, InputError, SampleError
from assay.judging.engines_under_test import UnderTest
from assay.judging.printed import Judged, judge_printed
from assay.parity.eval_callback import read
from assay.parity.precision import Key
from assay.parity.stages import capture
from assay.parity.verdict import Verdict
from tests.assay.command_line import assay
from tests.planted import FAULTS, IDS, Planted

REAL = gzip.decompress((Path(__file__).parent / "eval_callback.txt.gz").read_bytes()).decode()
MADE_BY = {
    "embedding": ("embd", "GET_ROWS", "token_embd.weight", "inp_tokens"),
    "attn_norm": ("attn_norm-{}", "MUL", "norm-{}", "blk.{}.attn_norm.weight"),
    "q_proj": ("Qcur-{}", "MUL_MAT", "blk.{}.attn_q.weight", "attn_norm-{}"),
    "k_proj": ("Kcur-{}", "MUL_MAT", "blk.{}.attn_k.weight", "attn_norm-{}"),
    "v_proj": ("Vcur-{}", "MUL_MAT", "blk.{}.attn_v.weight", "attn_norm-{}"),
    "q_bias": ("Qcur-{}", "ADD", "Qcur-{}", "blk.{}.attn_q.bias"),
    "k_bias": ("Kcur-{}", "ADD", "Kcur-{}", "blk.{}.attn_k.bias"),
    "v_bias": ("Vcur-{}", "ADD", "Vcur-{}", "blk.{}.attn_v.bias"),
    "q_rope": ("Qcur-{}", "ROPE", "Qcur-{}", "inp_pos"),
    "k_rope": ("Kcur-{}", "ROPE", "Kcur-{}", "inp_pos"),
    "attention": ("kqv_out-{}", "RESHAPE", "node_1", ""),
    "attn_out": ("node_2", "MUL_MAT", "blk.{}.attn_output.weight", "kqv_out-{}"),
    "attn_residual": ("ffn_inp-{}", "ADD", "node_2", "embd"),
    "ffn_norm": ("ffn_norm-{}", "MUL", "norm-{}", "blk.{}.ffn_norm.weight"),
    "ffn_gate": ("ffn_gate-{}", "MUL_MAT", "blk.{}.ffn_gate.weight", "ffn_norm-{}"),
    "ffn_up": ("ffn_up-{}", "MUL_MAT", "blk.{}.ffn_up.weight", "ffn_norm-{}"),
    "ffn_silu": ("ffn_silu-{}", "UNARY", "ffn_gate-{}", ""),
    "ffn_swiglu": ("ffn_swiglu-{}", "SWIGLU", "ffn_gate-{}", "ffn_up-{}"),
    "ffn_out": ("ffn_out-{}", "MUL_MAT", "blk.{}.ffn_down.weight", "ffn_swiglu-{}"),
    "ffn_residual": ("l_out-{}", "ADD", "ffn_out-{}", "ffn_inp-{}"),
    "final_norm": ("result_norm", "MUL", "norm", "output_norm.weight"),
    "logits": ("result_output", "MUL_MAT", "token_embd.weight", "result_norm"),
}


def printed(shown: Mapping[Key, np.ndarray], ids: list[int], prefix: str = "common_debug_cb_eval") -> str:
    """Activations in the program's form."""
    lines = [f"0.01 I number of input tokens = {len(ids)}", *(f"0.01 I   {i}" for i in ids)]
    for (stage, layer), x in shown.items():
        name, op, left, right = (part.format(layer) for part in MADE_BY[stage])
        cube = np.asarray(x, np.float32)
        cube = cube if cube.ndim == 3 else cube.reshape(1, len(cube), -1)
        last, middle, width = cube.shape
        lines.append(f"{prefix}: {name:>24} = (f32) {op:>10}({left}{{9, 9, 1, 1}}, "
                     f"{right + '{9, 1, 1, 1}' if right else ''}}}) = {{{width}, {middle}, {last}, 1}}")  # fmt: skip
        for k in edges(last):
            for j in edges(middle):
                numbers = [f"{cube[k, j, i]:12.4f}" for i in edges(width)]
                lines.append(f"            [{', '.join(numbers)}  ],")
        lines.append(f"    sum = {float(cube.sum(dtype=np.float64)):f}")
    return "\n".join(lines) + "\n"


def edges(n: int) -> list[int]:
    return list(range(n)) if n <= 6 else [0, 1, 2, n - 3, n - 2, n - 1]


@pytest.fixture(scope="module")
def engine(judged: UnderTest) -> Any:
    """A right engine that computes as llama.cpp does."""
    return load(judged.file, engine="reference", arith="ggml", cache_weights=True)


@pytest.fixture(scope="module")
def right(engine: Any) -> Mapping[Key, np.ndarray]:
    """What it shows."""
    return capture(engine, IDS)


@pytest.fixture
def verdict_on(judged: UnderTest, tmp_path: Path) -> Callable[[str], Judged]:
    def judge(text: str) -> Judged:
        path = tmp_path / "log.txt"
        path.write_text(text)
        log = read(path)
        assert log.ids is not None
        return judge_printed(judged.baseline, log, log.ids, "ggml", runs=4)

    return judge


def test_what_llama_cpp_printed_is_right(tmp_path: Path) -> None:
    """An outside witness: its own activations of the built-in model, all 75 of its stages."""
    path = tmp_path / "log.txt"
    path.write_text(REAL)
    found = assay("trace", "--eval-callback", str(path), "--json").json
    assert found["verdict"] == "DRIFT" and found["first"] is None and len(found["stages"]) == 75
    worst = max(max(one["over_floor"], one["sum_over_floor"]) for one in found["stages"])
    assert 0.5 < worst < 3, "1.5 when it was recorded"
    path.write_text(REAL.replace("      0.0", "      0.1", 40))
    wrong = assay("trace", "--eval-callback", str(path))
    assert wrong.code == 8 and "BUG: embedding is inf floors off" in wrong.out


def test_a_right_engine_and_the_older_prefix(right: Mapping[Key, np.ndarray],
                                             verdict_on: Callable[[str], Judged]) -> None:  # fmt: skip
    found = verdict_on(printed(right, IDS, "ggml_debug"))
    assert found.verdict == Verdict.DRIFT and found.first is None and found.stages.keys() == right.keys()


@pytest.mark.parametrize("name", ["two heads exchanged", "gate and up exchanged"])
def test_planted_faults(name: str, engine: Any, verdict_on: Callable[[str], Judged]) -> None:
    site, change = FAULTS[name]
    found = verdict_on(printed(capture(Planted(engine, site, change), IDS), IDS))
    assert found.verdict == Verdict.BUG and found.first == site


def test_the_sum_sees_what_is_not_printed(right: Mapping[Key, np.ndarray],
                                          verdict_on: Callable[[str], Judged]) -> None:  # fmt: skip
    shown = {key: x.copy() for key, x in right.items()}
    shown["ffn_up", 1][:, 20:40] += 1
    found = verdict_on(printed(shown, IDS))
    assert found.first == ("ffn_up", 1)
    assert found.stages["ffn_up", 1].over_floor < 4 < found.stages["ffn_up", 1].sum_over_floor


def test_stages_of_the_last_token_only(right: Mapping[Key, np.ndarray], verdict_on: Callable[[str], Judged]) -> None:
    """llama.cpp drops the other rows in the last layer: only the last one's logits are wanted."""
    shown = {key: x[-1:] if key[0] in ("final_norm", "logits") else x for key, x in right.items()}
    found = verdict_on(printed(shown, IDS))
    assert found.first is None and found.stages["logits", None].elements == 6


def test_another_model_and_other_tokens(right: Mapping[Key, np.ndarray], judged: UnderTest, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(printed(right, IDS))
    with pytest.raises(SampleError):
        judge_printed(judged.baseline, read(path), IDS[:5], "ggml")
    with pytest.raises(InputError):
        judge_printed(judged.baseline, read(path), IDS, "fp8")
    path.write_text(path.read_text().replace("= {256, 12, 1, 1}", "= {512, 12, 1, 1}"))
    with pytest.raises(SampleError):
        judge_printed(judged.baseline, read(path), IDS, "ggml")


HEAD = "common_debug_cb_eval: embd = (f32) GET_ROWS(token_embd.weight{8, 9, 1, 1}, inp{2, 1, 1, 1}}) = {%s}\n"
BROKEN = {
    "nothing": ("", "empty-file"),
    "another text": ("hello\n", "no-stages"),
    "cut": (HEAD % "2, 1, 1, 1", "bad-tensor"),
    "too few numbers": (HEAD % "3, 1, 1, 1" + "[ 1.0000, 2.0000 ],\nsum = 3.0\n", "bad-tensor"),
    "too many": (HEAD % "1, 1, 1, 1" + "[ 1.0000, 2.0000 ],\nsum = 3.0\n", "bad-tensor"),
    "no sum": (HEAD % "1, 1, 1, 1" + "[ 1.0000 ],\nsum = what\n", "bad-tensor"),
    "four dimensions": (HEAD % "1, 1, 1, 2" + "[ 1.0000, 1.0000 ],\nsum = 2.0\n", "bad-tensor"),
    "no elements": (HEAD % "0, 1, 1, 1" + "sum = 0.0\n", "bad-tensor"),
    "huge": (HEAD % "999999999, 1, 1, 1" + "[ 1.0000 ],\nsum = 1.0\n", "bad-tensor"),
    "beyond all bounds": (HEAD % f"{10**30}, 1, 1, 1" + "[ 1.0000 ],\nsum = 1.0\n", "no-stages"),
    "no end": (HEAD % "1, 1, 1, 1" + "x\n" * 1000, "bad-tensor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str, tmp_path: Path) -> None:
    text, code = BROKEN[name]
    path = tmp_path / "log.txt"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert caught.value.code == code and caught.value.remedy


def test_ids_that_are_no_ids(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("number of input tokens = 3\n 1\n x\n" + HEAD % "1, 1, 1, 1" + "[ 1.0000 ],\nsum = 1.0\n")
    assert read(path).ids is None
    path.write_text(f"number of input tokens = {10**40}\n" + HEAD % "1, 1, 1, 1" + "[ 1.0000 ],\nsum = 1.0\n")
    assert read(path).ids is None


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(REAL)
    refused = ["trace", "--eval-callback", str(path)]
    for more in (("text",), ("--out", "x"), ("--engine", "reference"), ("--compare", "a", "b"), ("--force",)):
        assert assay(*refused, *more).is_refusal(2)
    assert assay(*refused, "--ids", "1,2,3").is_refusal(9)
    assert assay(*refused, "--arith", "fp8").is_refusal(2)
    path.write_text(REAL[REAL.index("common_debug") :])
    assert assay(*refused).is_refusal(2)
