"""Is this file what it should be? Checks: each a stable name, a verdict, what was measured, the limit and its reason.

    report = validate(open_container("model.gguf"))
    report.verdict, report.exit_code              # "WARN", 0
    [check for check in report.checks if check.verdict == "FAIL"]

Whether the bytes are a well-formed container at all is decided before: ``open_container`` raises FormatError. A check
that could not be asked is SKIPPED, which is never counted as passed. The limits stand in the modules of this package
beside what they were derived from: a file with 94.5 % zeros once passed every structural check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from assay.formats.containers.base import Container
from assay.formats.contract.arguments import checked
from assay.formats.errors import FormatError, ModelError
from assay.formats.inspection.checks import layers, model, structure, values, vocabulary
from assay.formats.inspection.checks.check import FAIL, PASS, SKIPPED, WARN, Check
from assay.formats.inspection.stats import TensorStats, all_stats
from assay.formats.model_file import described
from assay.formats.qwen2.tensor_names import common_names
from assay.formats.system.progress import Progress, quiet

__all__ = ["FAIL", "PASS", "SKIPPED", "WARN", "Check", "Report", "validate"]

DAMAGED = ("structure.", "values.finite")
"""Checks whose failure means damaged bytes (exit code 3); of any other, not a model to run (4)."""


@dataclass(frozen=True)
class Report:
    """All checks of one file, in a fixed order."""

    checks: tuple[Check, ...]
    stats: dict[str, TensorStats]

    def count(self, verdict: str) -> int:
        return sum(check.verdict == verdict for check in self.checks)

    @property
    def verdict(self) -> str:
        """The worst verdict; SKIPPED checks do not make it worse."""
        return next((v for v in (FAIL, WARN) if self.count(v)), PASS)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, 3 if the bytes are damaged, 4 if they are well-formed but no model to run."""
        failed = [check.name for check in self.checks if check.verdict == FAIL]
        if any(name.startswith(DAMAGED) for name in failed):
            return FormatError.exit_code
        return ModelError.exit_code if failed else 0


@checked
def validate(container: Container, *, knows_template: Callable[[str], bool] | None = None,
             progress: Progress = quiet) -> Report:  # fmt: skip
    """Ask every check; reads and decodes the whole file once, in bounded memory.

    ``knows_template`` tells whether a chat template is one that the oracle renders.
    """
    stats = all_stats(container, progress=progress)
    infos = common_names(container.tensors)
    common = {name: stats[info.name] for name, info in infos.items()}
    try:
        qwen2, refusal = described(container), ""
    except (ModelError, FormatError) as error:
        qwen2, refusal = None, error.what
    checks = [
        *structure.checks(container, progress),
        *values.checks(common, infos),
        *layers.checks(common),
        *model.checks(container, qwen2, refusal),
        *vocabulary.checks(qwen2, knows_template),
    ]
    return Report(tuple(checks), stats)
