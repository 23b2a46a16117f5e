"""Statistics of tensors against NumPy's own on the whole array, and the chunks they are read in."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from assay.formats import blocks
from assay.formats.containers.opening import open_container
from assay.formats.inspection.row_chunks import matrix_shape, readable, row_chunks
from assay.formats.inspection.stats import Values, all_stats, stats_of
from tests.model_builder import Shape, build


def values_of(path: Path, name: str) -> Values:
    values = stats_of(open_container(path), name).values
    assert values is not None
    return values


def with_tensor(tmp_path: Path, array: np.ndarray) -> Path:
    """A model file whose output_norm.weight is ``array`` (of any shape; it need not be a model)."""
    return build(tmp_path / "model.gguf", tensors={"output_norm.weight": (array.astype(np.float32), "F32")})


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_K", "Q5_0", "Q6_K", "Q8_0"])
def test_statistics_are_those_of_the_decoded_array(kind: str, tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", Shape(hidden=256, types={"ffn_up": [kind]}))
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}["blk.0.ffn_up.weight"]
    x = quants.dequantize(reader.data, reader.tensor_type).astype(np.float64)
    stats = stats_of(open_container(path), "blk.0.ffn_up.weight")
    v = stats.values
    assert v is not None
    assert (v.n, v.min, v.max, v.abs_max) == (x.size, x.min(), x.max(), np.abs(x).max())
    # f64 sums of the same numbers in another order: n rounding errors of 2**-53 each, at worst.
    bound = x.size * 2.0**-53
    assert math.isclose(v.l2, np.linalg.norm(x), rel_tol=bound)
    assert abs(v.mean - x.mean()) <= bound * np.abs(x).max()
    assert math.isclose(v.std, x.std(), rel_tol=1e-9)
    assert (v.zeros, v.nan, v.inf) == (int((x == 0).sum()), 0, 0)
    assert stats.sha256 == hashlib.sha256(reader.data.tobytes()).hexdigest()


def test_what_is_not_finite_is_counted_apart(tmp_path: Path) -> None:
    x = np.array([[1, 2, np.nan], [np.inf, -np.inf, 0], [5, 5, 5]], np.float32)
    v = values_of(with_tensor(tmp_path, x), "output_norm.weight")
    assert (v.nan, v.inf, v.zeros) == (1, 2, 1)
    assert (v.min, v.max, v.mean) == (0, 5, 18 / 6)
    assert math.isclose(v.std, np.std([1, 2, 0, 5, 5, 5]), rel_tol=1e-12)
    assert (v.constant_rows, v.zero_rows) == (1, 0), "a row that lost its NaN is not a constant one"


def test_nothing_finite(tmp_path: Path) -> None:
    v = values_of(with_tensor(tmp_path, np.full((2, 4), np.nan)), "output_norm.weight")
    assert v.nan == 8
    assert all(math.isnan(number) for number in (v.min, v.max, v.mean, v.std))


def test_dead_rows(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.float32).reshape(8, 5)
    x[2], x[5], x[6] = 0, 7, -0.0
    v = values_of(with_tensor(tmp_path, x), "output_norm.weight")
    assert (v.n_rows, v.zero_rows, v.constant_rows, v.dead_rows) == (8, 2, 3, 3)
    column = values_of(with_tensor(tmp_path, np.array([[1], [0], [3]])), "output_norm.weight")
    assert column.dead_rows == 1, "one number is not a constant row unless it is 0"


def test_huge_values_do_not_overflow(tmp_path: Path) -> None:
    v = values_of(with_tensor(tmp_path, np.array([3e38, -3e38])), "output_norm.weight")
    assert math.isclose(v.l2, math.sqrt(2) * float(np.float32(3e38)), rel_tol=1e-12)


@pytest.mark.parametrize("elements", [1, 7, 32, 64, 1000, 1 << 17])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_lots_cover_the_tensor_once(elements: int, kind: str, tmp_path: Path) -> None:
    container = open_container(build(tmp_path / "model.gguf", Shape(hidden=64, types={"ffn_up": [kind]})))
    name = "blk.0.ffn_up.weight"
    whole = blocks.dequantize(kind, container.rows(name))
    seen = np.full(matrix_shape(container.tensors[name]), np.nan, np.float32)
    for chunk in row_chunks(container, name, elements):
        assert np.isnan(seen[chunk.rows, chunk.columns]).all()
        assert chunk.values.size <= max(elements, container.tensors[name].type.block_elements)
        seen[chunk.rows, chunk.columns] = chunk.values
    assert np.array_equal(seen, whole)


def test_a_vector_longer_than_a_lot(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(300_000)
    v = values_of(with_tensor(tmp_path, x), "output_norm.weight")
    assert (v.n, v.n_rows) == (300_000, 1)
    assert v.min == x.astype(np.float32).min()
    assert v.max == x.astype(np.float32).max()
    ones = values_of(with_tensor(tmp_path, np.ones(300_000)), "output_norm.weight")
    assert ones.constant_rows == 1


def test_all_tensors_whatever_the_number_of_threads(tmp_path: Path) -> None:
    container = open_container(build(tmp_path / "model.gguf", Shape(n_layers=3)))
    heard: list[tuple[int, int]] = []
    one = all_stats(container, threads=1, progress=lambda done, total, label: heard.append((done, total)))
    assert one == all_stats(container, threads=3)
    assert list(one) == list(container.tensors)
    assert heard[-1] == (sum(info.nbytes for info in container.tensors.values()),) * 2


def test_a_type_that_cannot_be_decoded_has_a_hash_only(tmp_path: Path) -> None:
    path = build(tmp_path / "model.gguf", tensors={"output_norm.weight": (np.zeros((2, 66), np.uint8), "IQ2_XXS")})
    container = open_container(path)
    assert not readable(container, "output_norm.weight")
    stats = stats_of(container, "output_norm.weight")
    assert stats.values is None
    assert stats.sha256 == hashlib.sha256(bytes(132)).hexdigest()


def test_an_interrupted_reading_stops_its_threads(tmp_path: Path) -> None:
    container = open_container(build(tmp_path / "model.gguf"))

    def interrupted(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        all_stats(container, progress=interrupted)
