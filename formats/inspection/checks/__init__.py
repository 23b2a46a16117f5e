"""Is this file what it should be? Gates: each a stable name, a verdict, what was measured, the limit and its reason.

    report = validate(open_container("model.gguf"))
    report.verdict, report.exit_code              # "WARN", 0
    [gate for gate in report.gates if gate.verdict == "FAIL"]

Whether the bytes are a well-formed container at all is decided before: ``open_container`` raises FormatError. A gate
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
from assay.formats.inspection.checks.check import FAIL, PASS, SKIPPED, WARN, Gate
from assay.formats.inspection.stats import TensorStats, all_stats
from assay.formats.model_file import described
from assay.formats.qwen2.tensor_names import common_names
from assay.formats.system.atomic_file import Progress, quiet

__all__ = ["FAIL", "PASS", "SKIPPED", "WARN", "Gate", "Report", "validate"]

DAMAGED = ("structure.", "values.finite")
"""Gates whose failure means damaged bytes (exit code 3); of any other, not a model to run (4)."""


@dataclass(frozen=True)
class Report:
    """All gates of one file, in a fixed order."""

    gates: tuple[Gate, ...]
    stats: dict[str, TensorStats]

    def count(self, verdict: str) -> int:
        return sum(gate.verdict == verdict for gate in self.gates)

    @property
    def verdict(self) -> str:
        """The worst verdict; SKIPPED gates do not make it worse."""
        return next((v for v in (FAIL, WARN) if self.count(v)), PASS)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, 3 if the bytes are damaged, 4 if they are well-formed but no model to run."""
        failed = [gate.name for gate in self.gates if gate.verdict == FAIL]
        if any(name.startswith(DAMAGED) for name in failed):
            return FormatError.exit_code
        return ModelError.exit_code if failed else 0


@checked
def validate(container: Container, *, knows_template: Callable[[str], bool] | None = None,
             progress: Progress = quiet) -> Report:  # fmt: skip
    """Ask every gate; reads and decodes the whole file once, in bounded memory.

    ``knows_template`` tells whether a chat template is one that the oracle renders.
    """
    stats = all_stats(container, progress=progress)
    infos = common_names(container.tensors)
    common = {name: stats[info.name] for name, info in infos.items()}
    try:
        qwen2, refusal = described(container), ""
    except (ModelError, FormatError) as error:
        qwen2, refusal = None, error.what
    gates = [
        *structure.gates(container, progress),
        *values.gates(common, infos),
        *layers.gates(common),
        *model.gates(container, qwen2, refusal),
        *vocabulary.gates(qwen2, knows_template),
    ]
    return Report(tuple(gates), stats)
