"""What a comparison amounts to.

    BIT-EQUAL          the logits are the oracle's, bit for bit
    NOISE              differences, none beyond the floor of f32 rounding
    DRIFT              differences that a declared, coarser rounding explains; its name is given
    BUG                a stage computes something that no declared rounding explains; its site is given
    REFERENCE-SUSPECT  the f32 oracle is beyond the floor of its own noise; or, which the face finds out, a second
                       reader of the file or an outside witness contradicts what the comparison rests on
    UNCALIBRATED       there is no floor, so no number means anything
    DOUBTFUL           nothing is wrong but the sample: the file does not let both sides read what the model was
                       trained with
    SKIPPED            the comparison did not take place

Only the first three are green.
"""

from __future__ import annotations

from enum import StrEnum

from assay.parity.bisect import TOLERANCE_FACTOR, Finding
from assay.parity.flips import Account
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


def of_stages(finding: Finding, declared: Precision | None, *, equal: bool = False, reference: float = 0.0) -> Verdict:
    """The verdict on stages. ``reference``: the worst of the oracle's local errors in its own floors.

    ``equal``: whether the candidate's logits are the reference's, bit for bit.
    """
    if declared is None:
        return Verdict.UNCALIBRATED
    if reference > TOLERANCE_FACTOR:
        return Verdict.REFERENCE_SUSPECT
    if finding.site is not None:
        return Verdict.BUG
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
