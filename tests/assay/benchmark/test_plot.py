"""The picture of ``assay bench``: what is drawn is what was measured."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from assay.benchmark.plot import draw, draw_panel, png, title_lines
from assay.formats import InputError


def speeds(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 1, "high": median + 2}


def facts(*, name: str = "a model", peer: bool = True) -> dict[str, Any]:
    theirs = {"b": speeds(10), "ratio": {"median": 2.5}} if peer else {}
    return {
        "model": {"name": name},
        "date": "2026-11-24T01:02:03+00:00",
        "machine": {"processor": "a processor", "system": "Linux", "threads": 2, "jax": "1.2", "numpy": "3.4"},
        "engine": {"engine": "a", "arith": "fast"},
        "peer": {"name": "b", "arith": "f64", "versions": {"b-package": "5.6"}} if peer else None,
        "rounds": 3,
        "results": [{"kind": kind, "size": n, "a": speeds(25), **theirs}
                    for kind in ("prefill", "decode", "batch") for n in (1, 4)],
    }  # fmt: skip


def test_bars_are_medians_whiskers_extremes_and_the_number_is_the_ratio() -> None:
    axis = Figure().subplots()
    draw_panel(axis, "decode", facts()["results"][2:4], ["a", "b"])
    assert [bar.get_height() for bar in axis.patches] == [25, 25, 10, 10]  # pyright: ignore[reportAttributeAccessIssue]
    (whiskers,) = (lines for lines in axis.containers[1:2])
    segments = whiskers[2][0].get_segments()  # pyright: ignore[reportAttributeAccessIssue]
    assert [segment[:, 1].tolist() for segment in segments] == [[24, 27], [24, 27]]
    assert [text.get_text() for text in axis.texts] == ["2.50×", "2.50×"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "4"]


def test_the_title_tells_model_machine_versions_and_date() -> None:
    text = "\n".join(title_lines(facts()))
    for word in ("a model", "fast; jax 1.2", "f64", "b-package 5.6", "2 threads", "2026-11-24", "3 rounds"):
        assert word in text
    assert "beside" not in "\n".join(title_lines(facts(peer=False)))


@pytest.mark.parametrize("name", ["$\\frac{$", "名前\x07", "x" * 100_000])
def test_a_name_is_data(name: str) -> None:
    assert png(facts(name=name)).startswith(b"\x89PNG")


@pytest.mark.parametrize("kinds", [(), ("batch",), ("prefill", "decode")])
def test_kinds_may_be_missing(kinds: tuple[str, ...]) -> None:
    some = facts(peer=False)
    some["results"] = [row for row in some["results"] if row["kind"] in kinds]
    assert png(some).startswith(b"\x89PNG")


def test_a_folder_that_refuses_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        draw(facts(), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
