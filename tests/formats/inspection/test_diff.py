"""Each accident that ``inspection.diff`` names, planted; and that two good files of any two formats are the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from assay.formats.containers.opening import open_container
from assay.formats.inspection.diff import Pair, Report, compare, same_file
from assay.formats.inspection.diff.prints import multipliers, permutation, prints_of
from tests import apr_builder, apr_files
from tests.model_builder import TOKENS, Shape, Stored, build, tensors_of

SHAPE = Shape(n_layers=2, hidden=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn=96)
UP, Q, SQUARE, BIAS = "blk.1.ffn_up.weight", "blk.1.attn_q.weight", "blk.1.attn_output.weight", "blk.1.attn_k.bias"


def matrix(name: str) -> np.ndarray:
    return tensors_of(SHAPE)[name][0].view(np.float32).copy()


def stored(x: np.ndarray, kind: str = "F32") -> Stored:
    raw = np.ascontiguousarray(x, np.float32)
    return raw if kind == "F32" else np.ascontiguousarray(quants.quantize(raw, GGMLQuantizationType[kind])), kind


def differences(tmp_path: Path, a: Mapping[str, Stored | None], b: Mapping[str, Stored | None]) -> Report:
    """What ``compare`` says of two models that differ in these tensors only."""
    paths = [build(tmp_path / f"{side}.gguf", SHAPE, tensors=tensors) for side, tensors in (("a", a), ("b", b))]
    return compare(*map(open_container, paths))


def the_pair(report: Report) -> Pair:
    (pair,) = [pair for pair in report.pairs if not pair.identical]
    return pair


def rows_of_heads(x: np.ndarray, head_dim: int) -> np.ndarray:
    """Llama's permutation of query rows, from rotated halves to neighbouring pairs."""
    heads = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
    return heads.swapaxes(1, 2).reshape(x.shape)


def other_order(x: np.ndarray) -> np.ndarray:
    return x[np.random.default_rng(5).permutation(len(x))]


CASES = {
    "shape only": (UP, lambda x: stored(x.reshape(x.shape[::-1])), "shape-only", "dims are reversed"),
    "transposed": (UP, lambda x: stored(x.T), "transposed", "B[j, i] = A[i, j]"),
    "transposed square": (SQUARE, lambda x: stored(x.T), "transposed", "both [64, 64]"),
    "rope pairs": (Q, lambda x: stored(rows_of_heads(x, 16)), "permuted", "rope pairs"),
    "rope pairs of the bias": (BIAS, lambda x: stored(rows_of_heads(x, 16)), "permuted", "rope pairs"),
    "whole heads": (Q, lambda x: stored(np.roll(x, 16, axis=0)), "permuted", "whole heads of 16"),
    "rows": (UP, lambda x: stored(other_order(x)), "permuted", "rows in another order: "),
    "columns": (UP, lambda x: stored(other_order(x.T).T), "permuted", "columns in another order: "),
    "sign": (UP, lambda x: stored(-x), "sign-flipped", "B = -A"),
    "sign, rounded": (UP, lambda x: stored(-x, "Q8_0"), "sign-flipped", "up to rounding"),
    "scaled": (UP, lambda x: stored(2 * x), "scaled", "B = 2 A"),
    "scaled a little": (UP, lambda x: stored(1.001 * x), "scaled", "B = 1.001 A"),
    "scaled, rounded": (UP, lambda x: stored(8 * x, "F16"), "scaled", "B = 8"),
    "gains less one": ("blk.1.attn_norm.weight", lambda x: stored(x - 1), "shifted", "B = A + -1"),
    "zeroed bias": (BIAS, lambda x: stored(0 * x), "zeroed", "bias lost: all zero in B"),
    "zeroed": (UP, lambda x: stored(0 * x), "zeroed", "values lost: all zero in B"),
    "other type": (UP, lambda x: stored(x, "F16"), "other-type", "rounded into another type: F32 in A, F16 in B"),
    "4 bits": (UP, lambda x: stored(x, "Q4_0"), "other-type", "F32 in A, Q4_0 in B"),
    "last bits": (UP, lambda x: stored(x * (1 + 1e-7 * (np.arange(64) % 2))), "rounded", "rounded differently"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_accident_is_named(case: str, tmp_path: Path) -> None:
    name, accident, code, text = CASES[case]
    report = differences(tmp_path, {name: stored(matrix(name))}, {name: accident(matrix(name))})
    pair = the_pair(report)
    assert pair.name == name
    assert [one.code for one in pair.diagnoses] == [code]
    assert text in pair.diagnoses[0].text
    assert ("rounding" in pair.diagnoses[0].text) == (case == "sign, rounded")
    assert not report.same()


def test_an_unknown_difference_is_measured_and_not_named(tmp_path: Path) -> None:
    x, y = matrix(UP), np.random.default_rng(1).standard_normal((96, 64)).astype(np.float32)
    pair = the_pair(differences(tmp_path, {UP: stored(x)}, {UP: stored(y)}))
    assert pair.diagnoses == ()
    m = pair.measures
    assert m is not None
    p, q = x.astype(np.float64), y.astype(np.float64)
    assert m.n_different == np.count_nonzero(x != y)
    assert m.max_abs == np.abs(q - p).max() == abs(q - p)[m.worst]
    assert m.relative_rms == pytest.approx(np.linalg.norm(q - p) / np.linalg.norm(p), rel=1e-12)
    assert m.cosine == pytest.approx((p * q).sum() / np.linalg.norm(p) / np.linalg.norm(q), rel=1e-12)


def test_the_first_difference_is_where_it_is(tmp_path: Path) -> None:
    x = stored(matrix(UP), "Q8_0")
    y = x[0].copy(), "Q8_0"
    y[0].reshape(-1)[34 * 7 + 20] ^= 1
    report = differences(tmp_path, {UP: x}, {UP: y})
    at = the_pair(report).first_difference
    assert at is not None
    assert (at["byte"], at["block"]) == (34 * 7 + 20, 7)
    a, b = (open_container(tmp_path / f"{side}.gguf") for side in "ab")
    assert at["offset_a"] == a.tensors[UP].offset + at["byte"]
    bytes_there = a.path.read_bytes()[at["offset_a"]], b.path.read_bytes()[at["offset_b"]]
    assert bytes_there[0] ^ bytes_there[1] == 1


def test_the_same_values_in_another_type(tmp_path: Path) -> None:
    coarse = stored(matrix(UP), "Q8_0")
    exact = quants.dequantize(coarse[0], GGMLQuantizationType.Q8_0)
    report = differences(tmp_path, {UP: coarse}, {UP: stored(exact)})
    pair = the_pair(report)
    assert pair.diagnoses[0] == ("other-type", "same values, other type: Q8_0 in A, F32 in B")
    assert pair.same_values()
    assert not report.same()
    assert report.same(values_only=True)


def test_a_tolerance_is_a_relative_rms(tmp_path: Path) -> None:
    report = differences(tmp_path, {UP: stored(matrix(UP))}, {UP: stored(matrix(UP), "Q8_0")})
    m = the_pair(report).measures
    assert m is not None
    assert not report.same(values_only=True)
    assert report.same(values_only=True, tolerance=m.relative_rms)
    assert not report.same(values_only=True, tolerance=m.relative_rms * 0.99)


def test_nan_is_never_the_same_by_tolerance(tmp_path: Path) -> None:
    y = matrix(UP)
    y[1, 2] = np.nan
    report = differences(tmp_path, {UP: stored(matrix(UP))}, {UP: stored(y)})
    assert not report.same(tolerance=5)
    m = the_pair(report).measures
    assert m is not None
    assert (m.not_finite, m.n_different) == (1, 1)


def test_biases_lost(tmp_path: Path) -> None:
    lost = {name: None for name in tensors_of(SHAPE) if name.endswith(".bias")}
    report = differences(tmp_path, {}, lost)
    assert [info.name for info in report.only_a] == list(lost)
    (one,) = report.diagnoses
    assert one == ("biases-lost", "biases lost: B lacks 6 that A has, such as blk.0.attn_q.bias")
    assert not report.same(values_only=True)


def test_a_tied_output_loses_nothing_and_another_one_does(tmp_path: Path) -> None:
    copy = {"output.weight": stored(matrix("token_embd.weight"))}
    assert [one.code for one in differences(tmp_path, copy, {}).diagnoses] == ["tied"]
    other = {"output.weight": stored(-matrix("token_embd.weight"))}
    assert [one.code for one in differences(tmp_path, other, {}).diagnoses] == []


def test_values_under_another_name(tmp_path: Path) -> None:
    gate = "blk.1.ffn_gate.weight"
    report = differences(tmp_path, {}, {UP: stored(matrix(gate)), gate: stored(matrix(UP))})
    assert {one.text for one in report.diagnoses if one.code == "moved"} == {
        f"the values of A's {UP} are those of B's {gate}", f"the values of A's {gate} are those of B's {UP}",
    }  # fmt: skip


def test_a_file_and_itself(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", SHAPE)
    a, b = open_container(path), open_container(path)
    assert same_file(a, b)
    report = compare(a, b)
    assert report.same()
    assert (report.changes, report.diagnoses) == ((), ())


def test_metadata_changes(tmp_path: Path) -> None:
    tokens = [*TOKENS[:7], "seven", *TOKENS[8:]]
    paths = [
        build(tmp_path / "a.gguf", SHAPE, metadata={"general.name": "one", "only.a": 1, "a.nan": float("nan")}),
        build(tmp_path / "b.gguf", SHAPE, metadata={"general.name": "two", "only.b": [1, 2], "a.nan": float("nan"),
                                                    "tokenizer.ggml.tokens": tokens}),
    ]  # fmt: skip
    report = compare(*map(open_container, paths))
    assert [(change.key, change.kind) for change in report.changes] == [
        ("general.name", "changed"), ("only.a", "removed"), ("only.b", "added"), ("tokenizer.ggml.tokens", "changed"),
    ]  # fmt: skip
    assert report.changes[-1].b == f"{len(TOKENS)} items, 1 differ, [7] = 'seven'"
    assert not report.same()
    assert report.same(values_only=True)


def test_gguf_against_apr_with_hugging_face_names(tmp_path: Path) -> None:
    a = build(tmp_path / "a.gguf", SHAPE, metadata={"general.name": "test"})
    b = apr_builder.build(tmp_path / "b.apr", SHAPE)
    report = compare(open_container(a), open_container(b))
    assert report.naming == ("GGUF", "Hugging Face")
    assert [one.code for one in report.diagnoses] == ["naming"]
    assert all(pair.identical for pair in report.pairs)
    assert len(report.pairs) == len(tensors_of(SHAPE))
    assert report.changes == ()
    assert report.same()


def test_gguf_against_apr_sees_a_fact_that_changed(tmp_path: Path) -> None:
    a = build(tmp_path / "a.gguf", SHAPE, metadata={"general.name": "test", "qwen2.rope.freq_base": 1e4})
    b = apr_builder.build(tmp_path / "b.apr", SHAPE)
    report = compare(open_container(a), open_container(b))
    assert [tuple(change) for change in report.changes] == [("config.rope_theta", "10000.0", "1000000.0")]


def test_gguf_against_apr_with_a_turned_matrix(tmp_path: Path) -> None:
    x = np.ascontiguousarray(matrix(UP).T)
    turned = apr_files.Tensor("model.layers.1.mlp.up_proj.weight", x.shape, apr_files.F32, x.tobytes())
    b = apr_builder.build(tmp_path / "b.apr", SHAPE, tensors={UP: turned})
    report = compare(open_container(build(tmp_path / "a.gguf", SHAPE)), open_container(b))
    assert [one.code for one in the_pair(report).diagnoses] == ["transposed"]


def test_prints_do_not_depend_on_the_lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = open_container(build(tmp_path / "a.gguf", SHAPE))
    info = container.tensors[UP]
    bits = matrix(UP).view(np.uint32).astype(np.uint64)
    rows = (bits * multipliers(0, 64)).sum(axis=1, dtype=np.uint64)
    columns = (bits * multipliers(0, 96)[:, None]).sum(axis=0, dtype=np.uint64)
    for elements in (1 << 17, 100, 10):
        monkeypatch.setattr("assay.formats.inspection.row_chunks.row_chunks.__defaults__", (elements,))
        prints = prints_of(container, info)
        assert np.array_equal(prints.rows, rows)
        assert np.array_equal(prints.columns, columns)


def test_permutations() -> None:
    a = np.array([5, 3, 3, 9], np.uint64)
    order = np.array([3, 1, 0, 2])
    found = permutation(a, a[order])
    assert found is not None
    assert np.array_equal(a[found], a[order])
    assert permutation(a, np.array([5, 3, 4, 9], np.uint64)) is None
    assert permutation(a, np.array([5, 5, 3, 9], np.uint64)) is None
