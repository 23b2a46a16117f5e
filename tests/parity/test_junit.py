"""JUnit XML: well-formed whatever the text, counts that fit, and nothing undecided passes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from assay.formats.system.printable import OBEYED
from assay.judging.engines_under_test import UnderTest
from assay.parity import stages
from assay.parity.bisect import bisect
from assay.parity.floor import NoiseFloor
from assay.parity.junit import Case, Outcome, junit, stage_cases, token_case
from assay.parity.verdict import Verdict
from tests.planted import FAULTS, IDS, Planted

OUTCOMES = [outcome for times, outcome in enumerate(Outcome, start=1) for _ in range(times)]
CASES = [Case("stages.q_proj", f"layer {i}", outcome, "why") for i, outcome in enumerate(OUTCOMES)]
HOSTILE = "a<b>&\"' ]]> \x00\x01\x0b\x1b \ud800 \ufffe \x7f ü 𝄞\r\n\t"


def parsed(file: bytes) -> ET.Element:
    """The suite, its counts held against its cases."""
    root = ET.fromstring(file)
    (suite,) = root
    assert (root.tag, suite.tag, suite[0].tag) == ("testsuites", "testsuite", "properties")
    cases = suite.findall("testcase")
    assert len(cases) == len(suite) - 1 == int(suite.attrib["tests"])
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert len(suite.findall(f"testcase/{tag}")) == int(suite.attrib[count]) == int(root.attrib[count])
    return suite


def test_every_outcome_is_counted_as_what_it_is() -> None:
    suite = parsed(junit("assay parity", CASES, {"command": "assay parity"}))
    tags = [[child.tag for child in case] for case in suite.findall("testcase")]
    assert tags == [[], *[["failure"]] * 2, *[["error"]] * 3, *[["skipped"]] * 4]
    assert [case.attrib for case in suite.findall("testcase")][1] == {"classname": "stages.q_proj", "name": "layer 1"}
    assert suite.find("testcase/failure").attrib == {"message": "why"}  # pyright: ignore[reportOptionalMemberAccess]


def test_any_text_makes_a_well_formed_file() -> None:
    file = junit(HOSTILE, [Case(HOSTILE, HOSTILE, Outcome.FAILED, HOSTILE)], {HOSTILE: HOSTILE})
    suite = parsed(file)
    kept = "a<b>&\"' ]]> \\u0000\\u0001\\u000b\\u001b \\ud800 � \\u007f ü 𝄞\\r\n\t"
    case = suite.find("testcase")
    assert case is not None and suite.attrib["name"] == case.attrib["name"] == case[0].attrib["message"] == kept
    assert suite[0][0].attrib == {"name": kept, "value": kept} and file.decode("utf-8").startswith("<?xml")


def test_no_character_there_is_breaks_the_file() -> None:
    """All of them that are shown: what comes back is the character, or U+FFFD where XML 1.0 has no way to write it."""
    every = "".join(chr(code) for code in range(0x110000) if not OBEYED.match(chr(code)) or chr(code) in "\n\t")
    case = parsed(junit("x", [Case("x", "x", Outcome.ERROR, every)], {})).find("testcase/error")
    assert case is not None
    back = case.attrib["message"]
    assert len(back) == len(every)
    lost = {given: found for given, found in zip(every, back, strict=True) if given != found}
    assert lost == dict.fromkeys("\ufffe\uffff", "\ufffd")


@pytest.mark.parametrize("name", ["a gain too large by a hundred-thousandth", "an infinity", "one vocabulary row"])
def test_a_planted_fault_fails_at_its_site_only(
    name: str, judged: UnderTest, truth: stages.Activations, limits: NoiseFloor
) -> None:
    (stage, layer), change = FAULTS[name]
    finding = bisect(Planted(judged.candidate, (stage, layer), change), IDS, truth, limits)
    suite = parsed(junit("x", stage_cases(finding, Verdict.BUG), {}))
    assert suite.attrib["tests"] == str(len(truth)) and suite.attrib["errors"] == suite.attrib["skipped"] == "0"
    (case,) = (case for case in suite.findall("testcase") if len(case))
    assert case.attrib["classname"] == f"stages.{stage}"
    assert case.attrib["name"] == ("whole model" if layer is None else f"layer {layer}")
    own, message = finding.local[stage, layer], case[0].attrib["message"]
    assert f"position {own.position}, worst channel {own.channel}" in message and f"{finding.ratio:.3g} fl" in message
    assert ("infinite" in message) == (name == "an infinity")


def test_what_was_not_decided_never_passes(
    judged: UnderTest, truth: stages.Activations, limits: NoiseFloor
) -> None:
    right = bisect(judged.candidate, IDS, truth, limits)
    assert {case.outcome for case in stage_cases(right, Verdict.NOISE)} == {Outcome.PASSED}
    suspect = stage_cases(right, Verdict.REFERENCE_SUSPECT)
    assert [case for case in suspect if case.outcome != Outcome.PASSED] == [
        Case("stages", "every stage", Outcome.ERROR, "REFERENCE-SUSPECT")
    ]
    (uncalibrated,) = stage_cases(None, Verdict.UNCALIBRATED)
    assert uncalibrated.outcome == Outcome.ERROR and "UNCALIBRATED" in uncalibrated.message
    outcomes = {verdict: token_case(verdict, "2 flips").outcome for verdict in Verdict}
    assert outcomes == {
        Verdict.BIT_EQUAL: Outcome.PASSED, Verdict.NOISE: Outcome.PASSED, Verdict.DRIFT: Outcome.PASSED,
        Verdict.BUG: Outcome.FAILED, Verdict.REFERENCE_SUSPECT: Outcome.FAILED,
        Verdict.UNCALIBRATED: Outcome.ERROR, Verdict.DOUBTFUL: Outcome.ERROR, Verdict.SKIPPED: Outcome.SKIPPED,
    }  # fmt: skip
    assert token_case(Verdict.BUG, "2 flips").message == "2 flips"
