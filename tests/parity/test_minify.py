"""The repro: a short script and its arrays, which show the wrong number without Assay."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.formats.contract.config import STAGES
from assay.judging.engines_under_test import UnderTest
from assay.parity import stages
from assay.parity.floor import TOLERANCE_FACTOR, Floor, NoiseFloor
from assay.parity.minify import Fault, Repro, alone, repro_of, worst
from tests.planted import FAULTS, IDS, Planted

LINES = 40


def run(repro: Repro, folder: Path) -> tuple[int, dict[str, float]]:
    """The exit code of the script in a process without this project, and the numbers it names."""
    script = folder / "repro.py"
    script.write_text(repro.script, encoding="utf-8")
    np.savez(folder / "repro.npz", **repro.arrays)  # pyright: ignore[reportArgumentType]
    done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.stderr == ""
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return done.returncode, {name: float(said[name]) for name in ("right", "wrong")}


def imports(script: str) -> set[str]:
    """The modules that a script imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_shown_by_its_script(
    name: str, judged: UnderTest, truth: stages.Activations, limits: NoiseFloor, tmp_path: Path
) -> None:
    site, change = FAULTS[name]
    found = alone(Planted(judged.candidate, site, change), IDS, truth, site)
    fault = worst(site, found, truth[site], limits[site])
    assert fault is not None
    repro = repro_of(judged.file, IDS, truth, fault, name)
    code, said = run(repro, tmp_path)
    true = truth[site].reshape(len(IDS), -1)[fault.position, fault.channel]
    assert code == 1 and said["right"] == pytest.approx(true, rel=1e-6)
    assert np.array_equal(said["wrong"], found[fault.position, fault.channel], equal_nan=True)
    assert len(repro.script.splitlines()) <= LINES and imports(repro.script) == {"sys", "pathlib", "numpy"}
    unspoiled = alone(judged.candidate, IDS, truth, site)[fault.position, fault.channel]
    code, said = run(repro_of(judged.file, IDS, truth, fault._replace(wrong=float(unspoiled)), name), tmp_path)
    assert code == 0 and said["wrong"] == unspoiled


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_the_equation_of_every_stage_is_the_oracles(
    stage: str, layer: int, judged: UnderTest, truth: stages.Activations
) -> None:
    """Element by element, in this process: both halves of a head, several heads, first and last position."""
    site = (stage, layer) if (stage, layer) in truth else (stage, None)
    flat = truth[site].reshape(len(IDS), -1)
    for position in (0, len(IDS) - 1):
        head_dim = judged.file.config.head_dim
        for channel in (0, 1, head_dim // 2 + 1, head_dim + 2, flat.shape[1] - 1):
            fault = Fault(site, position, channel, float("nan"), 0.0)
            repro = repro_of(judged.file, IDS, truth, fault, "")
            names: dict[str, object] = {"np": np, "data": repro.arrays, "CHANNEL": channel, "POSITION": position}
            lines = repro.script.splitlines()
            first, last = (next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("data", "err"))
            exec("\n".join(lines[first + 1 : last]), names)
            assert names["right"] == pytest.approx(flat[position, channel], rel=1e-9, abs=1e-12)
            assert sum(array.size for array in repro.arrays.values()) <= 2 * judged.file.config.ffn_size


def test_numbers_that_are_none_come_first_and_the_pair_is_one_elements() -> None:
    truth = np.array([[1.0, -1.0, 1.0], [100.0, 100.0, -100.0]])
    limits = Floor(1e-9, 2e-9, 3e-9)
    found = truth + np.array([[0, 0.01, 0], [0.1, 0, 0]])  # 0.1 is more, but less of its position
    fault = worst(("q_proj", 0), found, truth, limits)
    assert fault is not None and fault[1:] == (0, 1, found[0, 1], TOLERANCE_FACTOR * 3e-9)
    found[1, 2] = np.nan
    fault = worst(("q_proj", 0), found, truth, limits)
    assert fault is not None and fault[1:3] == (1, 2)
    assert worst(("q_proj", 0), truth + 1e-10, truth, limits) is None, "nothing that one number shows"


def test_an_error_that_only_the_whole_shows_is_beyond_the_elements_limit() -> None:
    """Every element off by little: no channel is beyond its floor, and still the worst element is beyond the limit."""
    truth = np.random.default_rng(0).choice([-1.0, 1.0], (8, 64))
    limits = Floor(1e-7, 1e-6, 1e-5)
    found = truth * (1 + 5e-7)
    fault = worst(("q_proj", 0), found, truth, limits)
    assert fault is not None and fault.limit == TOLERANCE_FACTOR * 1e-7
    assert fault.limit < abs(fault.wrong - truth[fault.position, fault.channel])


def test_an_earlier_fault_is_not_in_the_number(judged: UnderTest, truth: stages.Activations) -> None:
    (earlier, change), (site, _) = FAULTS["a bias lost"], FAULTS["one block of a row too large by a thousandth"]
    both = alone(Planted(judged.candidate, earlier, change), IDS, truth, site)
    assert np.array_equal(both, alone(judged.candidate, IDS, truth, site))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_wrong(wrong: float, judged: UnderTest, truth: stages.Activations, tmp_path: Path) -> None:
    code, said = run(repro_of(judged.file, IDS, truth, Fault(("ffn_up", 1), 3, 17, wrong, 1e-9), ""), tmp_path)
    assert code == 1 and np.array_equal(said["wrong"], wrong, equal_nan=True)


def test_no_origin_can_become_code(judged: UnderTest, truth: stages.Activations, tmp_path: Path) -> None:
    fault = Fault(("ffn_up", 1), 3, 17, float(truth["ffn_up", 1][3, 17]), 1e-9)
    assert run(repro_of(judged.file, IDS, truth, fault, '"""\nraise SystemExit(9)\udcff\\'), tmp_path)[0] == 0
