"""One check's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PASS, WARN, FAIL, SKIPPED = "PASS", "WARN", "FAIL", "SKIPPED"


@dataclass(frozen=True)
class Check:
    """A verdict and what it rests on."""

    name: str
    """Stable: scripts may rely on it."""
    verdict: str
    measured: int | float | str | None
    limit: str
    why: str
    """Why the limit is what it is; for SKIPPED, why nothing could be measured."""
    culprits: tuple[str, ...] = ()
    """What broke the limit, worst first."""


def judged(name: str, measured: int | float | str, limit: str, why: str, *, fail: Sequence[str] = (),
           warn: Sequence[str] = ()) -> Check:  # fmt: skip
    """FAIL if there is a culprit in ``fail``, else WARN if in ``warn``, else PASS."""
    verdict = FAIL if fail else WARN if warn else PASS
    return Check(name, verdict, measured, limit, why, (*fail, *warn))


def skipped(name: str, limit: str, why: str) -> Check:
    """Nothing could be measured."""
    return Check(name, SKIPPED, None, limit, why)
