"""A fault on an axis, on two together, or two faults: each is attributed to what it is."""

from __future__ import annotations

from itertools import product

import pytest

from assay.parity.attribution import attribute

AXES = {"prompt": ("raw", "chat", "ids"), "container": ("gguf", "apr"), "path": ("prefill", "decode", "batch")}
CELLS = [dict(zip(AXES, levels, strict=True)) for levels in product(*AXES.values())]


@pytest.mark.parametrize("faults", [
    [], [{}], [{"path": "decode"}], [{"prompt": "chat"}], [{"container": "apr", "path": "decode"}],
    [{"path": "batch"}, {"prompt": "chat"}], [{"prompt": "raw", "container": "gguf", "path": "prefill"}],
])  # fmt: skip
def test_conditions_are_recovered(faults: list[dict[str, str]]) -> None:
    cells = [(cell, any(fault.items() <= cell.items() for fault in faults)) for cell in CELLS]
    assert sorted(attribute(cells), key=str) == sorted(faults, key=str)


def test_an_axis_of_which_one_cell_passes_is_not_to_blame() -> None:
    spared = {"prompt": "ids", "container": "gguf", "path": "decode"}
    found = attribute([(cell, cell["path"] == "decode" and cell != spared) for cell in CELLS])
    assert {"path": "decode"} not in found and len(found) == 3


def test_no_cells_and_cells_that_do_not_exist() -> None:
    assert attribute([]) == []
    some = [cell for cell in CELLS if cell["container"] == "gguf" or cell["path"] == "prefill"]
    assert attribute([(cell, cell["path"] == "batch") for cell in some]) == [{"path": "batch"}]
