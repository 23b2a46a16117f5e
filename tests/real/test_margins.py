"""What ``margins.py`` measures, by hand, and that no model it compares has an advantage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from assay.goldens import BUILTIN
from assay.goldens.training.train import library
from tests.real import margins as measured


def test_a_margin_is_the_distance_between_the_two_largest() -> None:
    assert measured.margins(np.array([[1.0, 5.0, 3.5], [2.0, 2.0, -7.0]])).tolist() == [1.5, 0]


def test_figures_of_four_margins() -> None:
    found = measured.figures(np.array([0.005, 0.05, 2.0, 4.0]))
    assert (found["positions"], found["median"], found["below_0.1"], found["below_0.01"]) == (4, 1.025, 0.5, 0.25)


@pytest.mark.slow
def test_the_code_was_held_out_and_both_kinds_fill_their_sequences() -> None:
    texts = measured.texts()
    assert set(texts) == {"code", "chat"} and not set(texts["code"]) & set(library()[0])
    found = measured.measure(BUILTIN)
    assert {kind: len(values) for kind, values in found.items()} == dict.fromkeys(
        texts, measured.LENGTH * measured.N_SEQUENCES)  # fmt: skip
    assert all((values >= 0).all() and values.max() > 1 for values in found.values())


def test_the_picture_has_a_panel_for_each_kind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = {kind: np.array([0.1, 1.0]) for kind in ("code", "chat")}
    measured.draw({"one": found, "two": found}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
