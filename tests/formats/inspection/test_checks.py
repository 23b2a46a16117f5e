"""Every check passes a good model, and fails or warns of the one fault it is there for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from assay.formats.containers.opening import open_container
from assay.formats.inspection.checks import FAIL, PASS, SKIPPED, WARN, Report, validate, vocabulary
from assay.formats.model_file import described
from assay.goldens import BUILTIN
from tests import apr_builder, apr_files, gguf_files
from tests.model_builder import KINDS, MERGES, TOKENS, Shape, Stored, build, tensors_of

SHAPE = Shape(n_layers=5, hidden=64, ffn=96)
TEMPLATE = "{{ messages }}"


def judged(path: Path) -> Report:
    return validate(open_container(path), knows_template=lambda template: template == TEMPLATE)


def report_of(tmp_path: Path, *, metadata: Mapping[str, Any] | None = None,
              tensors: Mapping[str, Stored | None] | None = None) -> Report:  # fmt: skip
    metadata = {"tokenizer.chat_template": TEMPLATE, **(metadata or {})}
    return judged(build(tmp_path / "model.gguf", SHAPE, metadata=metadata, tensors=tensors))


def verdicts(report: Report) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def matrix(name: str) -> np.ndarray:
    """A tensor of the good model, f32, to be spoiled."""
    return tensors_of(SHAPE)[name][0].view(np.float32).copy()


def spoiled(name: str, place: Any, value: float) -> dict[str, Stored]:
    x = matrix(name)
    x[place] = value
    return {name: (x, "F32")}


def test_a_good_model_passes_every_gate(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert verdicts(report) == {
        name: SKIPPED if name == "structure.checksum" else PASS for name in verdicts(report)
    }  # fmt: skip
    assert (report.verdict, report.exit_code) == (PASS, 0)
    assert len(report.checks) == len({check.name for check in report.checks}) == 26


UP, EMBEDDING, GAIN, BIAS = "blk.2.ffn_up.weight", "token_embd.weight", "blk.2.attn_norm.weight", "blk.2.attn_k.bias"
VALUES = {
    "nan": (spoiled(UP, (3, 4), np.nan), "values.finite", FAIL, 3),
    "infinity": (spoiled(GAIN, 0, np.inf), "values.finite", FAIL, 3),
    "no numbers": (spoiled(BIAS, slice(None), 0), "values.norm", FAIL, 4),
    "gain of ones": (spoiled(GAIN, slice(None), 1), "values.constant", FAIL, 4),
    "half the embedding zero": (spoiled(EMBEDDING, np.s_[:, ::2], 0), "values.zeros.embedding", FAIL, 4),
    "weights of zeros": (spoiled(UP, np.s_[:, 10:], 0), "values.zeros.weights", FAIL, 4),
    "a dead embedding row": (spoiled(EMBEDDING, 7, 0.25), "values.dead-rows.embedding", WARN, 0),
    "a third of the embedding dead": (spoiled(EMBEDDING, np.s_[::3], 0.25), "values.dead-rows.embedding", FAIL, 4),
    "a dead row": (spoiled(UP, 5, 0), "values.dead-rows.weights", WARN, 0),
    "dead rows": (spoiled(UP, np.s_[:48], 0.5), "values.dead-rows.weights", FAIL, 4),
    "a layer twice": ({UP: (matrix("blk.1.ffn_up.weight"), "F32")}, "layers.duplicates", FAIL, 4),
    "a layer 20 times too large": ({UP: (20 * matrix(UP), "F32")}, "layers.outliers", WARN, 0),
    "a layer 200 times too large": ({UP: (200 * matrix(UP), "F32")}, "layers.outliers", FAIL, 4),
    "a layer 200 times too small": ({UP: (matrix(UP) / 200, "F32")}, "layers.outliers", FAIL, 4),
    "a bias missing": ({BIAS: None}, "model.tensors.missing", FAIL, 4),
    "a tensor more": ({"blk.2.attn_q_norm.weight": (np.arange(16, dtype=np.float32), "F32")},
                      "model.tensors.unexpected", FAIL, 4),
    "a shape turned": ({UP: (np.ascontiguousarray(matrix(UP).T), "F32")}, "model.tensors.shapes", FAIL, 4),
    "an unknown coding": ({UP: (np.ones((96, 66), np.uint8), "IQ2_XXS")}, "values.readable", WARN, 4),
}  # fmt: skip


@pytest.mark.parametrize("fault", VALUES)
def test_each_fault_of_the_numbers_trips_its_gate(fault: str, tmp_path: Path) -> None:
    tensors, check, verdict, code = VALUES[fault]
    report = report_of(tmp_path, tensors=tensors)
    found = verdicts(report)
    assert found[check] == verdict
    assert report.exit_code == code
    culprits = next(one.culprits for one in report.checks if one.name == check)
    assert culprits
    if check not in ("values.zeros.embedding", "values.dead-rows.embedding", "layers.duplicates"):
        assert any(name in culprit for name in tensors for culprit in culprits)


def test_a_gate_trips_alone(tmp_path: Path) -> None:
    """One NaN is not also a dead row, a constant or an outlier."""
    report = report_of(tmp_path, tensors=spoiled(UP, (3, 4), np.nan))
    assert [check.name for check in report.checks if check.verdict in (FAIL, WARN)] == ["values.finite"]


def some(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


IM_END = TOKENS.index("<|im_end|>")
METADATA = {
    "another architecture": ({"general.architecture": "llama"}, "model.qwen2", FAIL, 4),
    "no theta": ({"qwen2.rope.freq_base": None}, "model.qwen2", FAIL, 4),
    "theta of a lost config": ({"qwen2.rope.freq_base": 1e4, "qwen2.context_length": 4097},
                               "model.rope-theta", FAIL, 4),
    "theta of a distillate": ({"qwen2.rope.freq_base": 1e4, "qwen2.context_length": 4097,
                               "general.name": "DeepSeek R1 Distill Qwen 1.5B"}, "model.rope-theta", WARN, 0),
    "a large eps": ({"qwen2.attention.layer_norm_rms_epsilon": 1e-3}, "model.rms-norm-eps", WARN, 0),
    "a tiny eps": ({"qwen2.attention.layer_norm_rms_epsilon": 1e-10}, "model.rms-norm-eps", WARN, 0),
    "no context": ({"qwen2.context_length": 64}, "model.context-length", WARN, 0),
    "a byte missing": ({"tokenizer.ggml.tokens": some(TOKENS, 0, "other")}, "vocabulary.bytes", FAIL, 4),
    "a merge into nothing": ({"tokenizer.ggml.merges": [*MERGES, "q x"]}, "vocabulary.merges", FAIL, 4),
    "a merge of nothing": ({"tokenizer.ggml.merges": [*MERGES, "thee n"]}, "vocabulary.merges", FAIL, 4),
    "a merge twice": ({"tokenizer.ggml.merges": [*MERGES, MERGES[0]]}, "vocabulary.merges", WARN, 0),
    "im_end as text": ({"tokenizer.ggml.token_type": some(KINDS, IM_END, 1)}, "vocabulary.control", FAIL, 4),
    "im_end absent": ({"tokenizer.ggml.tokens": some(TOKENS, IM_END, "<|end|>")}, "vocabulary.control", WARN, 0),
    "an end that is text": ({"tokenizer.ggml.eos_token_id": 5}, "vocabulary.end", WARN, 0),
    "no end": ({"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.token_type": [1] * len(TOKENS)},
               "vocabulary.end", FAIL, 4),
    "no template": ({"tokenizer.chat_template": None}, "chat.template", WARN, 0),
    "another template": ({"tokenizer.chat_template": "{{ x }}"}, "chat.template", WARN, 0),
    "an unusual key": ({"Some.Key": "x"}, "structure.strict", WARN, 0),
}  # fmt: skip


@pytest.mark.parametrize("fault", METADATA)
def test_each_fault_of_the_metadata_trips_its_gate(fault: str, tmp_path: Path) -> None:
    metadata, check, verdict, code = METADATA[fault]
    report = report_of(tmp_path, metadata=metadata)
    assert verdicts(report)[check] == verdict
    assert report.exit_code == code
    assert next(one.culprits for one in report.checks if one.name == check)


def test_a_short_context_may_have_a_small_theta(tmp_path: Path) -> None:
    report = report_of(tmp_path, metadata={"qwen2.rope.freq_base": 1e4, "qwen2.context_length": 4096})
    assert (verdicts(report)["model.rope-theta"], report.exit_code) == (PASS, 0)


def test_no_merges(tmp_path: Path) -> None:
    qwen2 = described(open_container(build(tmp_path / "model.gguf")))
    without = replace(qwen2, vocabulary=replace(qwen2.vocabulary, merges=[]))
    found = {check.name: check.verdict for check in vocabulary.checks(without, None)}
    assert (found["vocabulary.merges"], found["chat.template"]) == (FAIL, WARN)


def test_too_many_rows_for_the_vocabulary(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", Shape(n_padding=2000))
    assert verdicts(judged(path))["vocabulary.rows"] == WARN
    assert verdicts(judged(build(path, Shape(n_padding=271))))["vocabulary.rows"] == PASS


def test_what_hides_in_the_padding(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", tensors={"output_norm.weight": (np.ones(33, np.float32), "F32")})
    container = open_container(path)
    ends = {info.offset + info.nbytes for info in container.tensors.values()}
    gap = next(end for end in sorted(ends) if end % 32)
    data = bytearray(path.read_bytes())
    data[gap] = 1
    path.write_bytes(data)
    report = judged(path)
    check = next(one for one in report.checks if one.name == "structure.padding")
    assert (check.verdict, check.measured) == (WARN, 1)
    assert str(gap) in check.culprits[0]


def test_the_checksum_of_an_apr_file(tmp_path: Path) -> None:
    path = apr_builder.build(tmp_path / "model.apr", SHAPE, metadata={"chat_template": TEMPLATE})
    report = judged(path)
    assert verdicts(report)["structure.checksum"] == PASS
    assert set(verdicts(report).values()) == {PASS}, [check for check in report.checks if check.verdict != PASS]
    info = open_container(path).tensors["model.layers.2.mlp.up_proj.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset] ^= 1  # the last bit of a weight: no other check can see it
    path.write_bytes(data)
    report = judged(path)
    assert [check.name for check in report.checks if check.verdict == FAIL] == ["structure.checksum"]
    assert report.exit_code == 3
    path.write_bytes(data[:-4])
    assert verdicts(judged(path))["structure.checksum"] == SKIPPED


def test_gates_of_an_apr_file_see_the_same_faults(tmp_path: Path) -> None:
    x = matrix(UP)
    x[0, 0] = np.nan
    tensor = apr_files.Tensor("model.layers.2.mlp.up_proj.weight", x.shape, apr_files.F32, x.tobytes())
    path = apr_builder.build(tmp_path / "model.apr", SHAPE, tensors={UP: tensor})
    report = judged(path)
    assert [check.name for check in report.checks if check.verdict == FAIL] == ["values.finite"]
    assert any(UP in culprit for check in report.checks for culprit in check.culprits)


def test_a_file_that_is_no_qwen2_is_judged_as_far_as_it_goes(tmp_path: Path) -> None:
    report = report_of(tmp_path, metadata={"general.architecture": "llama"}, tensors=spoiled(UP, (0, 0), np.nan))
    found = verdicts(report)
    assert (found["values.finite"], found["model.qwen2"]) == (FAIL, FAIL)
    assert all(v == SKIPPED for name, v in found.items()
               if name.startswith(("vocabulary.", "chat.", "model.")) and name != "model.qwen2")  # fmt: skip
    assert report.exit_code == 3


def test_an_empty_container_skips_what_it_cannot_ask(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(bytes(gguf_files.File()))
    report = judged(path)
    assert report.exit_code == 4
    assert verdicts(report)["values.finite"] == verdicts(report)["layers.outliers"] == SKIPPED


def test_two_layers_are_too_few_to_tell_an_outlier(tmp_path: Path) -> None:
    assert verdicts(judged(build(tmp_path / "model.gguf", Shape(n_layers=2))))["layers.outliers"] == SKIPPED


def test_quantised_nan_is_found(tmp_path: Path) -> None:
    raw = quants.quantize(matrix(UP), GGMLQuantizationType.Q8_0)
    raw[9, 0:2] = np.array([np.nan], np.float16).view(np.uint8)
    assert verdicts(report_of(tmp_path, tensors={UP: (raw, "Q8_0")}))["values.finite"] == FAIL


def test_the_builtin_model_passes() -> None:
    from assay.commands.validate import oracle_knows

    report = validate(open_container(BUILTIN), knows_template=oracle_knows)
    assert report.count(FAIL) == 0
    assert [check.name for check in report.checks if check.verdict == WARN] == []
