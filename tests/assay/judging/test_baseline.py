"""Floors are kept and found again, by what makes them; a damaged one is measured anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.judging.baseline import Baseline, code
from assay.judging.engines_under_test import UnderTest, engines_under_test
from tests.planted import IDS


class Counting:
    """The oracle, and how often it was asked."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.asked = engine, 0

    def forward(self, ids: Any, tap: Any = None) -> np.ndarray:
        self.asked += 1
        return self.engine.forward(ids, tap)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ASSAY_FLOORS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "assay" / "floors"


def of_another_day(judged: UnderTest) -> tuple[Baseline, Counting]:
    counting = Counting(judged.oracle)
    return Baseline(judged.truth, counting), counting


def test_a_floor_is_measured_once(cached: Path) -> None:
    judged = engines_under_test(open_model(BUILTIN), "reference", "f32")
    declared = judged.declared(len(IDS))
    assert declared is not None
    first, counting = of_another_day(judged)
    floor, predicted = first.noise_floor(IDS, declared, 2), first.prediction(IDS, declared, 2)
    assert counting.asked == 4 and first.noise_floor(IDS, declared, 2) is floor
    second, counting = of_another_day(judged)
    assert second.noise_floor(IDS, declared, 2) == floor and counting.asked == 0
    again = second.prediction(IDS, declared, 2)
    assert again.freedom == predicted.freedom and again.floor and predicted.floor and counting.asked == 0
    assert all(map(np.array_equal, (*again[:5], again.floor.flat()), (*predicted[:5], predicted.floor.flat())))
    second.noise_floor(IDS[:-1], declared, 2)
    second.noise_floor(IDS, declared, 4)
    second.prediction(IDS, declared, 2, seed=1)
    second.noise_floor(IDS, declared._replace(name="other"), 2)
    assert counting.asked == 2 + 4 + 2 + 2 and len(list(cached.iterdir())) == 6


@pytest.mark.parametrize("changed", ["weights", "source"])
def test_of_other_weights_or_by_other_code_it_is_another_floor(cached: Path, changed: str,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    judged = engines_under_test(open_model(BUILTIN), "reference", "f32")
    declared = judged.declared(len(IDS))
    assert declared is not None
    judged.baseline.noise_floor(IDS, declared, 2)
    other, counting = of_another_day(judged)
    if changed == "weights":
        assert judged.file.sha256 != "0" * 64
        monkeypatch.setitem(judged.file.__dict__, "sha256", "0" * 64)
    else:
        monkeypatch.setattr("assay.judging.baseline.code", lambda: "0" * 64)
    other.noise_floor(IDS, declared, 2)
    assert counting.asked == 2 and len(list(cached.iterdir())) == 2


@pytest.mark.parametrize("name", [
    "formats.blocks.reassemble", "formats.blocks.q4_k.unpack", "formats.blocks.q4_k.HALVES_AT",
    "reference.model.rotate", "reference.attention.softmax", "reference.block_dot.round_to_even",
    "parity.distance.over", "parity.precision.EXPONENT",
])  # fmt: skip
def test_code_that_makes_a_floor_counts_as_it_is_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle that was changed in a running process left its floor to the healthy one."""
    before = code()
    monkeypatch.setattr(f"assay.{name}", lambda *arguments: arguments[0])
    assert code() not in (None, before)
    monkeypatch.undo()
    assert code() == before


@pytest.mark.parametrize("damage", [b"", b"no array", b"\x93NUMPY\x01\x00\xff\xff"])
def test_a_damaged_floor_is_measured_anew(cached: Path, damage: bytes) -> None:
    judged = engines_under_test(open_model(BUILTIN), "reference", "f32")
    declared = judged.declared(len(IDS))
    assert declared is not None
    floor = judged.baseline.noise_floor(IDS, declared, 2)
    (path,) = cached.iterdir()
    whole = path.read_bytes()
    for data in (damage, whole[:-8], whole[:80] + whole[80:].replace(whole[-8:], np.float64(np.nan).tobytes())):
        path.write_bytes(data)
        baseline, counting = of_another_day(judged)
        assert baseline.noise_floor(IDS, declared, 2) == floor and counting.asked == 2 and path.read_bytes() == whole


def test_nothing_is_kept_where_nothing_can_be_written(cached: Path) -> None:
    cached.parent.mkdir(parents=True)
    cached.write_text("a file where the folder should be")
    judged = engines_under_test(open_model(BUILTIN), "reference", "f32")
    declared = judged.declared(len(IDS))
    assert declared is not None and judged.baseline.noise_floor(IDS, declared, 2)
