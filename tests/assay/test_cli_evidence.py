"""What ``assay parity``, ``flips`` and ``bisect`` leave for others: JUnit XML for CI servers, and a script as proof."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.formats import SampleError
from assay.formats.contract.engine import Prompt
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.parity.dump import MANIFEST
from assay.reference import linear
from assay.reference import model as reference_model
from tests.assay.command_line import assay
from tests.model_builder import build

ORACLE = ("--engine", "reference", "--arith", "ggml")
TEXT = "def fib(n):\n    return"
N_STAGES = 3 + 19 * 4
OTHER_SAMPLE = SampleError.exit_code


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix of one layer a tenth too large: in the ggml arithmetic only."""
    right = linear.block_dot

    def wrong(quantized: Any, tensor: Any, rows: slice) -> np.ndarray:
        return right(quantized, tensor, rows) * (1.1 if tensor.name == "blk.2.ffn_up.weight" else 1)

    monkeypatch.setattr(linear, "block_dot", wrong)


def suite_of(file: Path) -> ET.Element:
    """The suite in a file."""
    (suite,) = ET.parse(file).getroot()
    return suite


def not_passed(suite: ET.Element) -> list[tuple[str, str, str]]:
    """Class, name and outcome of the cases that did not pass."""
    cases = [case for case in suite.iter("testcase") if len(case)]
    return [(case.attrib["classname"], case.attrib["name"], case[0].tag) for case in cases]


@pytest.mark.parametrize(("command", "cases"), [("parity", N_STAGES + 2), ("bisect", N_STAGES), ("flips", 2)])
def test_a_right_engine_passes_every_case(command: str, cases: int, tmp_path: Path) -> None:
    target = tmp_path / "results.xml"
    asked = (command, TEXT, *ORACLE, "--junit", str(target))
    assert assay(*asked).code == 0
    suite = suite_of(target)
    assert suite.attrib["name"] == f"assay {command}" and suite.attrib["tests"] == str(cases) and not not_passed(suite)
    properties = {one.attrib["name"]: one.attrib["value"] for one in suite.iter("property")}
    assert len(properties["model.sha256"]) == 64 and properties["candidate.arith"] == "ggml"
    assert properties["truth.arith"] == "f64" and properties["command"].startswith(f"assay {command} 'def fib")
    assert properties["verdict"] == "DRIFT"
    assert assay(*asked).is_refusal(2) and assay(*asked, "--force").code == 0
    assert assay(command, TEXT, *ORACLE, "--junit", str(tmp_path / "none" / "x.xml"), "--json").is_refusal(2)


@pytest.mark.usefixtures("fault")
def test_a_fault_fails_the_case_of_its_site(tmp_path: Path) -> None:
    target = tmp_path / "results.xml"
    assert assay("bisect", TEXT, *ORACLE, "--junit", str(target)).code == DIFFERENT
    assert not_passed(suite_of(target)) == [("stages.ffn_up", "layer 2", "failure")]
    assert assay("parity", TEXT, *ORACLE, "--junit", str(target), "--force").code == DIFFERENT
    assert [one for one in not_passed(suite_of(target)) if one[0] != "tokens"] == [
        ("stages.ffn_up", "layer 2", "failure")
    ]


def test_tokens_that_a_fault_flips_fail_their_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = linear.quantize_activations
    monkeypatch.setattr(linear, "quantize_activations", lambda x, weights: right(-x, weights))
    said = assay("flips", TEXT, *ORACLE, "--free", "4", "--junit", str(tmp_path / "results.xml"), "--json")
    assert said.code == DIFFERENT
    read, written, _ = suite_of(tmp_path / "results.xml").iter("testcase")
    assert read[0].tag == written[0].tag == "failure" and "writing by itself" in written[0].attrib["message"]
    at = ", ".join(map(str, json.loads(said.out)["unexplained"]))
    assert at and f"unexplained at positions {at}" in read[0].attrib["message"]


@pytest.mark.parametrize(("command", "cases"), [("parity", 2), ("bisect", 1), ("flips", 1)])
def test_no_floor_is_an_error_and_no_pass(
    command: str, cases: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("assay.judging.engines_under_test.precision", lambda *_: None)
    assert assay(command, TEXT, *ORACLE, "--junit", str(tmp_path / "results.xml")).code == UNDECIDED
    suite = suite_of(tmp_path / "results.xml")
    judging = [case for case in suite.iter("testcase") if case.attrib["classname"] != "file"]
    assert len(judging) == cases and suite.attrib["errors"] == str(cases)


@pytest.mark.parametrize("command", ["parity", "bisect", "flips"])
def test_another_sample_is_an_error_and_no_pass(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The oracle is asked first; the candidate then reads a template of its own."""
    right, asked = reference_model.Model.chat_prompt, []

    def other(model: Any, messages: Any) -> Prompt:
        asked.append(model)
        return Prompt(right(model, messages).text + "\n" * (len(asked) - 1))

    monkeypatch.setattr(reference_model.Model, "chat_prompt", other)
    found = assay(command, TEXT, *ORACLE, "--chat", "--junit", str(tmp_path / "results.xml"))
    assert found.is_refusal(OTHER_SAMPLE)
    suite = suite_of(tmp_path / "results.xml")
    assert not_passed(suite) == [("sample", "both sides read the same", "error")] and suite.attrib["tests"] == "1"
    (case,) = suite.iter("testcase")
    assert "rendered prompt" in case[0].attrib["message"]


def test_tokens_of_logits_that_are_no_numbers_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = linear.quantize_activations
    monkeypatch.setattr(linear, "quantize_activations", lambda x, weights: right(x + np.inf, weights))
    assert assay("parity", TEXT, *ORACLE, "--junit", str(tmp_path / "results.xml")).code == DIFFERENT
    outcomes = not_passed(suite_of(tmp_path / "results.xml"))
    assert ("tokens", "flips", "skipped") in outcomes and ("stages.q_proj", "layer 0", "failure") in outcomes


@pytest.mark.usefixtures("fault")
def test_a_wrong_stage_comes_as_a_script_that_shows_it(tmp_path: Path) -> None:
    script, arrays = tmp_path / "repro.py", tmp_path / "repro.npz"
    asked = ("bisect", TEXT, *ORACLE, "--minify", str(script))
    shown = assay(*asked)
    assert shown.code == DIFFERENT and f"wrote {script} and {arrays}" in shown.out
    done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, cwd="/", timeout=60)
    assert done.returncode == 1 and done.stdout.startswith("stage ffn_up, layer 2, position ") and not done.stderr
    right, wrong = (float(line.split()[1]) for line in done.stdout.splitlines()[1:3])
    assert wrong / right == pytest.approx(1.1, rel=0.05)
    assert arrays.stat().st_size < 20_000 and len(script.read_text(encoding="utf-8").splitlines()) <= 40
    assert assay(*asked).is_refusal(2)
    script.unlink()
    assert assay(*asked).is_refusal(2) and not script.exists()  # its arrays are not overwritten either
    assert json.loads(assay(*asked, "--force", "--json").out)["minified"] == str(script) and script.exists()


def test_where_nothing_is_wrong_there_is_no_script(tmp_path: Path) -> None:
    asked = ("bisect", TEXT, *ORACLE, "--minify", str(tmp_path / "repro.py"))
    assert "was not written" in assay(*asked).out
    assert assay(*asked, "--json").json["minified"] is None and not list(tmp_path.iterdir())
    assert assay("bisect", TEXT, *ORACLE, "--minify", str(tmp_path / "repro.txt")).is_refusal(2)
    (tmp_path / "repro.npz").touch()
    assert assay(*asked).is_refusal(2)  # before anything is known


def test_nothing_that_is_read_is_overwritten_by_what_is_found(tmp_path: Path) -> None:
    model, prompt, dump = build(tmp_path / "model.gguf"), tmp_path / "prompt.txt", tmp_path / "dump"
    prompt.write_text("abc")
    linked = tmp_path / "linked.xml"
    linked.hardlink_to(model)
    common = ("-f", str(prompt), "-m", str(model), *ORACLE, "--force")
    assert assay("trace", "abc", "-m", str(model), *ORACLE, "--out", str(dump)).code == 0
    before = {path: path.read_bytes() for path in (model, prompt, dump / MANIFEST)}
    for arguments in (("parity", "--report", str(model)), ("parity", "--junit", str(prompt)),
                      ("flips", "--junit", str(linked)), ("bisect", "--junit", str(model)),
                      ("parity", "--dump", str(dump), "--report", str(dump / MANIFEST))):  # fmt: skip
        rest = [part for part in common if part not in ORACLE] if "--dump" in arguments else common
        assert assay(*arguments, *rest).is_refusal(2), arguments
    same = str(tmp_path / "same")
    assert assay("parity", "--report", same, "--junit", same, *common).is_refusal(2)
    script = str(tmp_path / "x.npz")
    assert assay("bisect", "--minify", str(tmp_path / "x.py"), "--junit", script, *common).is_refusal(2)
    assert {path: path.read_bytes() for path in before} == before
