"""What judging an engine amounts to: a verdict, the parts that it was made of, and what was found on the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.formats.contract.declaration import Declaration
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.formats.system.finite import finite
from assay.formats.system.printable import printable
from assay.judging.judge import StageReport
from assay.parity.flips import Account
from assay.parity.floor import MAGNITUDES
from assay.parity.free_run import FreeRun
from assay.parity.over_declaration import declared_more
from assay.parity.precision import Key
from assay.parity.sample import place
from assay.parity.verdict import Verdict, faults_of

ORDER = (Verdict.REFERENCE_SUSPECT, Verdict.BUG, Verdict.UNCALIBRATED, Verdict.DOUBTFUL, Verdict.DRIFT, Verdict.NOISE,
         Verdict.BIT_EQUAL, Verdict.SKIPPED)  # fmt: skip
"""The verdict on all parts is the first of these that any part has."""


@dataclass(frozen=True)
class Part:
    """One thing that was judged, or that was not."""

    name: str
    """``"stages by prefill"``, ``"tokens by decode"``, ``"writing by itself"``, ``"tokenizer"`` .."""
    verdict: Verdict
    reason: str
    """What the verdict rests on; of SKIPPED, why nothing was judged."""
    stages: StageReport | None = None
    tokens: Account | FreeRun | None = None


@dataclass(frozen=True)
class Report:
    """The answer of :func:`assay.judge`, :func:`assay.flips` and :func:`assay.bisect`."""

    parts: tuple[Part, ...]
    candidate: dict[str, Any]
    """The engine's fingerprint."""
    model: dict[str, Any]
    """Path, name and SHA-256 of the file."""
    ids: tuple[int, ...]
    """What was read."""
    declared: Declaration | None = None
    notes: tuple[str, ...] = ()
    """What the verdict takes on trust, and what the engine does not offer."""
    doubts: tuple[str, ...] = ()
    """Why a chat with this file says nothing; empty unless a chat was judged."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the parts' verdicts; DOUBTFUL in a green one's place where the file leaves a chat in doubt.

        A part in which the engine computed nothing, its tokenizer's say, can make it worse and not green.
        """
        counts = {part.verdict for part in self.parts if part.stages or part.tokens or not part.verdict.green}
        found = next((verdict for verdict in ORDER if verdict in counts), Verdict.SKIPPED)
        return Verdict.DOUBTFUL if found.green and self.doubts else found

    @property
    def exit_code(self) -> int:
        """What the commands end with: 0 for green, 8 for a fault, 10 where nothing was decided."""
        return exit_code(self.verdict)

    @property
    def stages(self) -> StageReport | None:
        """The first judgement of stages, if there is one."""
        return next((part.stages for part in self.parts if part.stages), None)

    @property
    def flips(self) -> Account | FreeRun | None:
        """The first count of tokens, if there is one."""
        return next((part.tokens for part in self.parts if part.tokens), None)

    @property
    def site(self) -> Key | None:
        """Stage and layer of the first stage that is wrong by itself."""
        return next((part.stages.finding.site for part in self.parts if part.stages and part.stages.finding.site), None)

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """Everything to be said beside the verdict: roundings declared and not used, what was not judged, notes."""
        more = [line for part in self.parts if (one := part.stages)
                for line in declared_more(one.declared, one.finding.local, one.floor)]  # fmt: skip
        skipped = [f"{part.name}: not judged: {part.reason}" for part in self.parts if part.verdict == Verdict.SKIPPED]
        return tuple(dict.fromkeys((*more, *skipped, *self.notes, *self.doubts)))

    @property
    def forgives(self) -> list[str]:
        """What the declaration forgives, in words."""
        return self.declared.describe() if self.declared else []

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: infinities and NaN as their names."""
        return finite({
            "verdict": str(self.verdict), "exit_code": self.exit_code, "site": self.site, "findings": self.findings,
            "model": self.model, "candidate": self.candidate, "ids": self.ids, "forgives": self.forgives,
            "declared": self.declared.to_json() if self.declared else None,
            "parts": [{"name": part.name, "verdict": str(part.verdict), "reason": part.reason,
                       "tokens": _tokens(part.tokens), "stages": stage_facts(part.stages)} for part in self.parts],
        })  # fmt: skip

    def __str__(self) -> str:
        worst = next((part for part in self.parts if part.verdict == self.verdict), None)
        lines = [f"{self.verdict}{f': {worst.name}: {worst.reason}' if worst else ''}"]
        if len(self.parts) > 1:
            width = max(len(part.name) for part in self.parts)
            lines += [f"  {part.name:{width}}  {part.verdict:13}  {part.reason}" for part in self.parts]
        lines += [f"  declared: {line}" for line in self.forgives]
        lines += [f"  note: {line}" for line in self.findings]
        return printable("\n".join(lines), keep="\n")


def exit_code(verdict: Verdict) -> int:
    """0 for green, ``DIFFERENT`` for a fault that was found, ``UNDECIDED`` where nothing was decided."""
    if verdict.green:
        return 0
    return DIFFERENT if verdict in (Verdict.BUG, Verdict.REFERENCE_SUSPECT) else UNDECIDED


def said_of_stages(found: StageReport) -> str:
    """What a verdict on stages rests on, in a line."""
    finding = found.finding
    if found.suspect is not None:
        return f"the oracle in f32 is wrong by itself at {place(*found.suspect)}"
    if finding.site is not None:
        tests = finding.tests[finding.site]
        name = max(tests, key=tests.__getitem__)
        what = "local error" if name in MAGNITUDES else name.replace("_", " ")
        more = f", and {len(finding.wrong) - 1} more are wrong" if len(finding.wrong) > 1 else ""
        return f"{place(*finding.site)}: its {what} is {finding.ratio:.3g} floors{more}"
    if found.disturbed:
        return (f"taps move the logits by {found.untouched:.1e}, so the stages are not those of the program that "
                "generates")  # fmt: skip
    return f"no stage is beyond {finding.ratio:.2f} floors of {found.declared.name}"


def said_of_tokens(counted: Account | FreeRun) -> str:
    """What a verdict on tokens rests on, in a line."""
    n = counted.positions if isinstance(counted, Account) else len(counted.answer)
    line = f"{counted.observed} of {n:,} tokens flipped, {counted.expected:.2f} expected"
    return "; ".join([*faults_of(counted), line])


def stage_facts(found: StageReport | None) -> list[dict[str, Any]]:
    """Every stage that was judged, with its errors and its floor."""
    return [] if found is None else [
        {"stage": stage, "layer": layer, "over_floor": found.finding.ratios[stage, layer],
         "tests": found.finding.tests[stage, layer], "local": one.figures(),
         "floor": found.floor[stage, layer].magnitudes(), "visible": found.visible[stage, layer]._asdict(),
         "accumulated": found.finding.accumulated[stage, layer].figures()}
        for (stage, layer), one in found.finding.local.items()
    ]  # fmt: skip


def _tokens(counted: Account | FreeRun | None) -> dict[str, Any] | None:
    if counted is None:
        return None
    names = ("expected", "observed", "p_value", "noise")
    both = {name: getattr(counted, name) for name in names}
    return counted._asdict() if isinstance(counted, Account) else both | {"tokens": list(counted.answer)}
