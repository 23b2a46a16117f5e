"""The plugin, in a project of somebody's: it passes, fails with verdict and site, and writes JUnit properties."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytest_plugins = ["pytester"]

PROJECT = """
import pytest
import assay
from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.pytest_plugin import assert_parity

IDS = [300, 12, 77, 410]


class Mine:
    def __init__(self, wrong=False):
        self.oracle, self.wrong = assay.load(engine="reference"), wrong

    def forward(self, ids, tap):
        def spoil(stage, layer, x):
            return tap(stage, layer, x * 1.01 if self.wrong and (stage, layer) == ("ffn_up", 1) else x)
        return self.oracle.forward(ids, spoil)


def test_right():
    assert assert_parity(Mine(), prompt=IDS, declaration={}, runs=2).verdict == "NOISE"


def test_wrong():
    assert_parity(Mine(wrong=True), prompt=IDS, declaration={}, runs=2)


def test_undeclared():
    assert_parity(Mine(), prompt=IDS, runs=2)


def test_properties(assay_judge):
    report = assay_judge(Mine(wrong=True), BUILTIN, IDS, declaration={"cache": "f16"}, runs=2)
    assert report.exit_code == 8
"""


def test_verdicts_are_failures_and_properties(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # only this one, whether or not it is installed
    pytester.makepyfile(PROJECT)
    done = pytester.runpytest_inprocess("-p", "assay.pytest_plugin", "--junitxml=out.xml", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=2, failed=2)
    done.stdout.fnmatch_lines(["BUG: stages by prefill: ffn_up of layer 1: its local error is *"])
    done.stdout.fnmatch_lines(["UNCALIBRATED: stages by prefill: *give a declaration"])
    cases = {one.get("name"): one for one in ET.parse(pytester.path / "out.xml").iter("testcase")}
    case = cases["test_properties"]
    found = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert (found["assay.verdict"], found["assay.site"]) == ("BUG", "ffn_up.1")
    assert found["assay.declared.1"] == "keys and values kept in f16" and "assay.model.sha256" in found


def test_it_is_cheap_where_nobody_uses_it() -> None:
    """Every pytest on the machine imports it: nothing of ours, and no NumPy, comes with it."""
    code = ("import sys; before = set(sys.modules); import pytest; mid = set(sys.modules); import assay.pytest_plugin; "
            "print(sorted(set(sys.modules) - mid))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.stdout.strip() == "['assay', 'assay.pytest_plugin']"


def test_pytest_finds_it() -> None:
    said = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nassay = "assay.pytest_plugin"\n' in said
