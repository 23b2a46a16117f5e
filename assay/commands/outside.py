"""What others say of the file and of the truth: a second reader, an outside witness. Neither judges the candidate.

Both can accuse what every verdict rests on. So a difference takes the place of any verdict that rests on it, as
REFERENCE-SUSPECT; a second reader's, of any but BUG, which is a fault in whatever the file was taken to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from assay.commands import tables
from assay.formats.system.progress import Progress
from assay.judging.engines_under_test import UnderTest
from assay.judging.independent import SecondReading, check
from assay.judging.witness import WITNESSES, Evidence, demand, hear
from assay.parity.flips import Positions
from assay.parity.junit import Case, Outcome
from assay.parity.verdict import Verdict

Independent = Annotated[
    bool,
    typer.Option("--independent", help="Hold every decoded weight, too, against a second reader of the file (a 0.5B: "
                 "5 seconds). What else it says is compared in any case."),
]  # fmt: skip
Witness = Annotated[
    str | None,
    typer.Option(help=f"Also hold the truth against an outside engine on the same file: {', '.join(WITNESSES)} (extra "
                 "'peers')."),
]  # fmt: skip
OWN_NOISE = ": the oracle in f32 is wrong by itself; whether the candidate is right is not known"
"""What a REFERENCE-SUSPECT means that no other engine or reader gave."""


@dataclass(frozen=True)
class Outside:
    """What was heard; None of whom was not asked."""

    reading: SecondReading | None = None
    evidence: Evidence | None = None

    def over(self, verdict: Verdict) -> Verdict:
        """``verdict``, or REFERENCE-SUSPECT where what it rests on is in doubt."""
        misread = self.reading is not None and self.reading.differences and verdict != Verdict.BUG
        accused = self.evidence is not None and self.evidence.faults
        return Verdict.REFERENCE_SUSPECT if misread or accused else verdict

    def accusation(self) -> str:
        """What follows REFERENCE-SUSPECT."""
        if self.reading is not None and self.reading.differences:
            return (f": {self.reading.says}; every engine here was given Assay's reading, and it is not known which "
                    "is right")  # fmt: skip
        if self.evidence is not None and self.evidence.faults:
            return f": {self.evidence.says}; it is not known who is right"
        return OWN_NOISE

    def show(self) -> None:
        """A line for each that was asked."""
        for one in (self.reading, self.evidence):
            if one is not None:
                suspect = bool(one.faults if isinstance(one, Evidence) else one.differences or one.failed)
                tables.line((one.says, "yellow") if suspect else one.says)

    def facts(self) -> dict[str, Any]:
        """Of the ``--json`` object."""
        reading, evidence = self.reading, self.evidence
        return {
            "second_reading": reading and {
                **reading._asdict(), "differences": [one._asdict() for one in reading.differences],
                "failed": reading.failed or None},
            "witness": evidence and {
                "name": evidence.witness, "version": evidence.version, "faults": list(evidence.faults),
                "candidate": evidence.candidate or None, "flips": evidence.counted._asdict()},
        }  # fmt: skip

    def cases(self) -> list[Case]:
        """Test cases: what makes a verdict worthless is an error; a file that was not read a second time is skipped."""
        found = []
        if (reading := self.reading) is not None:
            outcome = (Outcome.ERROR if reading.differences else Outcome.SKIPPED if reading.failed else
                       Outcome.PASSED)  # fmt: skip
            found.append(Case("file", "read a second time", outcome, reading.says))
        if (evidence := self.evidence) is not None:
            outcome = Outcome.ERROR if evidence.faults else Outcome.PASSED
            found.append(Case("oracle", f"beside {evidence.witness}", outcome, evidence.says))
        return found


def asked_outside(judged: UnderTest, sample: Sequence[int], runs: int, seen: Positions | None, progress: Progress,
                  values: bool, witness: str | None) -> Outside:  # fmt: skip
    """Ask a second reader, of every weight with ``values``; and a witness, if one is named.

    ``seen``: what was found of the candidate's tokens.
    """
    reading = check(judged.file, values=values, progress=progress)
    evidence = hear(judged, witness, sample, runs, progress, seen) if witness is not None else None
    return Outside(reading, evidence)


def demand_witness(judged: UnderTest, witness: str | None) -> None:
    """Raise InputError, before any work is done, for a witness that cannot be heard."""
    if witness is not None:
        demand(judged, witness)
