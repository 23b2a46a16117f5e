"""What a comparison amounts to.

    BIT-EQUAL          the logits are the oracle's, bit for bit
    NOISE              differences, none beyond the floor of f32 rounding
    DRIFT              differences that a declared, coarser rounding explains; its name is given
    BUG                a stage computes something that no declared rounding explains; its site is given
    REFERENCE-SUSPECT  the oracle is not to be trusted: in f32 it is further from itself in f64 than rounding can be
    UNCALIBRATED       there is no floor, so no number means anything
    DOUBTFUL           nothing is wrong but the sample: the file does not let both sides read what the model was
                       trained with
    SKIPPED            the comparison did not take place

Only the first three are green.
"""

from __future__ import annotations

from enum import StrEnum

from assay.parity.bisect import Finding
from assay.parity.flips import Account
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.free_run import FreeRun
from assay.parity.precision import Precision

SIGNIFICANT = 1e-3
"""Flips too many or too few by chance in one correct comparison of a thousand."""


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
    """The verdict on tokens: a bug is a flip that the floor does not explain, too many of those that it does, or logit
    gaps that moved by more than ``TOLERANCE_FACTOR`` floors, whether or not a token flipped for it."""
    if found is None:
        return Verdict.SKIPPED
    if declared is None:
        return Verdict.UNCALIBRATED
    return Verdict.BUG if faults_of(found) else _of_rounding(declared)


def faults_of(found: Account | FreeRun) -> list[str]:
    """What about the tokens the floor does not explain, in words; empty where it explains everything."""
    faults = {
        f"{len(found.unexplained)} flips unexplained": bool(found.unexplained),
        "too many flips": found.p_value < SIGNIFICANT and found.observed > found.expected,
        f"logit gaps moved {found.noise:.3g} times the predicted noise": found.noise > TOLERANCE_FACTOR,
    }
    return [fault for fault, there in faults.items() if there]


def _of_rounding(declared: Precision) -> Verdict:
    """The verdict where all that differs is what was declared."""
    return Verdict.NOISE if declared.name in ("f32", "f64") else Verdict.DRIFT
