"""What a comparison amounts to.

    BIT-EQUAL          the logits are the oracle's, bit for bit
    NOISE              differences, none beyond the floor of f32 rounding
    DRIFT              differences that a declared, coarser rounding explains; its name is given
    BUG                a stage computes something that no declared rounding explains; its site is given
    REFERENCE-SUSPECT  in f32 the oracle is further from f64 than f32 can be, or than its own floor allows; or, which
                       the face finds out, a second reader of the file or an outside witness contradicts what the
                       comparison rests on
    UNCALIBRATED       there is no floor, so no number means anything
    DOUBTFUL           nothing is wrong but the sample: the file does not let both sides read what the model was
                       trained with
    SKIPPED            the comparison did not take place

Only the first three are green.
"""

from __future__ import annotations

from enum import StrEnum

from assay.parity.bisect import Finding
from assay.parity.distance import over
from assay.parity.flips import Account
from assay.parity.free_run import FreeRun
from assay.parity.limits import CHANCE, Measure
from assay.parity.precision import Precision


class Verdict(StrEnum):
    """The closed set of answers."""

    BIT_EQUAL = "BIT-EQUAL"
    NOISE = "NOISE"
    DRIFT = "DRIFT"
    BUG = "BUG"
    REFERENCE_SUSPECT = "REFERENCE-SUSPECT"
    UNCALIBRATED = "UNCALIBRATED"
    DOUBTFUL = "DOUBTFUL"
    SKIPPED = "SKIPPED"

    @property
    def green(self) -> bool:
        """Whether a user may go on."""
        return self in (Verdict.BIT_EQUAL, Verdict.NOISE, Verdict.DRIFT)


def of_stages(finding: Finding, declared: Precision | None, *, equal: bool = False, suspect: bool = False,
              disturbed: bool = False, measured: bool = True) -> Verdict:  # fmt: skip
    """The verdict on stages.

    ``equal``: whether the candidate's logits are the reference's, bit for bit. ``suspect``: whether the oracle's own
    errors are beyond what f32 can do, or beyond its floor. ``disturbed``: whether taps change what the candidate
    computes, so that the stages are not those of the program that generates. ``measured``: whether every stage has a
    floor.
    """
    if declared is None:
        return Verdict.UNCALIBRATED
    if suspect:
        return Verdict.REFERENCE_SUSPECT
    if finding.site is not None or disturbed:
        return Verdict.BUG
    if not measured:
        return Verdict.UNCALIBRATED
    if equal:
        return Verdict.BIT_EQUAL
    return _of_rounding(declared)


def of_flips(found: Account | FreeRun | None, declared: Precision | None) -> Verdict:
    """The verdict on tokens: a bug is whatever ``faults_of`` finds, whether or not a token flipped for it."""
    if found is None:
        return Verdict.SKIPPED
    if declared is None:
        return Verdict.UNCALIBRATED
    return Verdict.BUG if faults_of(found) else _of_rounding(declared)


def faults_of(found: Account | FreeRun) -> list[str]:
    """What about the tokens the floor does not explain, in words; empty where it explains everything."""
    faults = {
        f"{len(found.unexplained)} flips unexplained": bool(found.unexplained),
        "too many flips": found.p_value < CHANCE and found.observed > found.expected,
    }
    if isinstance(found, FreeRun):
        faults |= dict.fromkeys(found.wrong, True)
    beyond = sorted((one for one in found.measures if one.beyond), key=lambda one: -over(abs(one.value), one.limit))
    more = [f"{len(beyond) - SAID} more measures"] if len(beyond) > SAID else []
    return [fault for fault, there in faults.items() if there] + [said(one) for one in beyond[:SAID]] + more


SAID = 3
"""Measures that are told in words, the furthest beyond their limits first; ``--json`` has all of them."""
UNITS = {"logit gaps": "times the predicted noise", "error": "times the predicted noise",
         "kl": "times the predicted"}  # fmt: skip


def said(measure: Measure) -> str:
    """A measure beyond its limit, in words."""
    name = measure.name.replace("kl", "KL").removesuffix(" at a position")
    at = "" if measure.at is None else f" at position {measure.at}" if name != "row" else f" {measure.at}"
    if unit := UNITS.get(measure.name.removesuffix(" at a position")):
        verb = "moved" if name == "logit gaps" else "is"
        return f"{name}{at} {verb} {measure.value:.3g} {unit} (at most {measure.limit:.3g})"
    if name == "row":
        return f"logits of token{at} are off by {measure.value:+.3g} on average (at most {measure.limit:.2g})"
    return f"{name}{at} is off by {measure.value:+.3%} (at most {measure.limit:.2g})"


def remarks_of(found: Account | FreeRun, declared: Precision) -> list[str]:
    """What is no fault but should be known: the engine declares more rounding than it uses, so less is seen than could
    be. Of f32 nothing is said: what the order of a sum may change is bounded there, not known."""
    if declared.name in ("f32", "f64"):
        return []
    remarks = []
    if found.p_value < CHANCE and found.observed < found.expected:
        remarks.append(f"{found.observed} flips where {found.expected:.1f} were expected")
    sizes = {measure.name: measure for measure in found.measures}
    size = sizes.get("error", sizes.get("logit gaps"))
    if size and size.value < 1 / size.limit:
        remarks.append(f"logits moved {size.value:.2g} times the predicted noise")
    return remarks and [f"the engine declares more rounding than it uses: {'; '.join(remarks)}"]


def _of_rounding(declared: Precision) -> Verdict:
    """The verdict where all that differs is what was declared."""
    return Verdict.NOISE if declared.name in ("f32", "f64") else Verdict.DRIFT
