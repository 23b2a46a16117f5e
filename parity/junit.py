"""What was found as JUnit XML, which CI servers read: a test case for every stage of every layer, and for the tokens.

A comparison that was not made is an error there, or skipped, and never passes. Drawn from plain data, as the page is.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from assay.formats.system.printable import printable
from assay.parity.bisect import Finding
from assay.parity.distance import Distance
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.verdict import Verdict

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""
UNCALIBRATED = f"{Verdict.UNCALIBRATED}: the engine does not say how it computes"


class Outcome(StrEnum):
    """What became of a test case; the value is the name of the element that says so."""

    PASSED = "passed"
    FAILED = "failure"
    ERROR = "error"
    SKIPPED = "skipped"


class Case(NamedTuple):
    """One test case."""

    classname: str
    name: str
    outcome: Outcome
    message: str = ""


def junit(name: str, cases: Sequence[Case], properties: Mapping[str, str]) -> bytes:
    """The file: one suite of these cases, with what it was made of as its properties."""
    count = {outcome: str(sum(case.outcome == outcome for case in cases)) for outcome in Outcome}
    totals = {"tests": str(len(cases)), "failures": count[Outcome.FAILED], "errors": count[Outcome.ERROR],
              "skipped": count[Outcome.SKIPPED]}  # fmt: skip
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", {"name": text(name)} | totals)
    listed = ET.SubElement(suite, "properties")
    for key, value in properties.items():
        ET.SubElement(listed, "property", name=text(key), value=text(value))
    for case in cases:
        one = ET.SubElement(suite, "testcase", classname=text(case.classname), name=text(case.name))
        if case.outcome != Outcome.PASSED:
            ET.SubElement(one, case.outcome, message=text(case.message)).text = text(case.message)
    ET.indent(root)
    return ET.tostring(root, "utf-8", xml_declaration=True) + b"\n"


def text(given: str) -> str:
    """Text as XML can hold it and a CI server's log can show it; what XML cannot hold becomes U+FFFD."""
    return NO_XML.sub("\ufffd", printable(given, keep="\n\t"))


def stage_cases(found: Finding | None, verdict: Verdict) -> list[Case]:
    """A case for every stage of every layer, failed where its local error is beyond the floor.

    ``found`` None: there was no floor, which is an error. So is whatever else makes ``verdict`` red or undecided
    though no stage is wrong: an oracle that is not to be trusted.
    """
    undecided = Case("stages", "every stage", Outcome.ERROR, str(verdict))
    if found is None:
        return [undecided._replace(message=UNCALIBRATED)]
    cases = [] if verdict.green or verdict == Verdict.BUG else [undecided]
    for (stage, layer), one in found.local.items():
        name = "whole model" if layer is None else f"layer {layer}"
        wrong = (stage, layer) in found.wrong
        cases.append(Case(f"stages.{stage}", name, Outcome.FAILED if wrong else Outcome.PASSED,
                          beyond(one, found.tests[stage, layer]) if wrong else ""))  # fmt: skip
    return cases


def beyond(own: Distance, tests: Mapping[str, float]) -> str:
    """A wrong stage's error in words, by the test that is furthest beyond the floor."""
    worst = max(tests, key=tests.__getitem__)
    return (f"local error {own.relative_l2:.3g}; {worst}: {tests[worst]:.3g} floors, "
            f"{TOLERANCE_FACTOR:g} are allowed; worst position {own.position}, worst channel {own.channel}"
            f"{f'; {own.n_bad} elements are NaN or infinite' if own.n_bad else ''}")  # fmt: skip


def token_case(verdict: Verdict, says: str, name: str = "flips") -> Case:
    """The case of the tokens; ``verdict``: that on them alone; ``says``: what was counted, if anything was."""
    if verdict == Verdict.UNCALIBRATED:
        return Case("tokens", name, Outcome.ERROR, UNCALIBRATED)
    if verdict == Verdict.SKIPPED:
        return Case("tokens", name, Outcome.SKIPPED, f"{verdict}: the tokens were not compared")
    if verdict == Verdict.DOUBTFUL:
        return Case("tokens", name, Outcome.ERROR, f"{verdict}: the file leaves in doubt what was read")
    return Case("tokens", name, Outcome.PASSED) if verdict.green else Case("tokens", name, Outcome.FAILED, says)
