"""The pytest plugin (entry point ``pytest11``): an engine's parity as a test.

    from assay.pytest_plugin import assert_parity

    def test_my_engine():
        assert_parity(MyEngine(), "model.gguf", declaration={"activations": "bf16", "weights": "bf16"})

    def test_my_engine_with_properties(assay_judge):              # JUnit: verdict, site, model, what was declared
        report = assay_judge(MyEngine(), "model.gguf", tier="full")
        assert report.exit_code == 0, report

Every run of pytest imports this file, in projects that do not use it, too: it imports nothing of ours until it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from assay.judging.report import Report


def assert_parity(engine: Any, model: Any = "builtin", prompt: Any = None, *, tier: str = "quick",
                  **options: Any) -> Report:  # fmt: skip
    """Fail the test unless :func:`assay.judge` is green; the message is the verdict with its site. Returns the report.

    Arguments as of ``assay.judge``; ``declaration`` may be JSON. UNCALIBRATED and SKIPPED fail as well: a test in which
    nothing was decided has not passed. Raises the errors of ``assay.judge``.
    """
    __tracebackhide__ = True
    report = judged(engine, model, prompt, tier=tier, **options)
    if report.exit_code:
        pytest.fail(str(report), pytrace=False)
    return report


@pytest.fixture
def assay_judge(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """``assay.judge``, whose report also becomes properties of the test in a JUnit file."""
    # What the fixture record_property does, without its warning that a schema, xunit2, has no properties of a test.
    noted: list[tuple[str, object]] = request.node.user_properties

    def judge(engine: Any, model: Any = "builtin", prompt: Any = None, **options: Any) -> Report:
        report = judged(engine, model, prompt, **options)
        for name, value in properties(report).items():
            noted.append((f"assay.{name}", value))
        return report

    return judge


def judged(engine: Any, model: Any, prompt: Any, **options: Any) -> Report:
    """``assay.judge``, imported now, with a declaration that may be JSON."""
    import assay

    if isinstance(options.get("declaration"), dict):
        options["declaration"] = assay.Declaration.from_json(options["declaration"])
    return assay.judge(engine, model, prompt, **options)


def properties(report: Report) -> dict[str, str]:
    """What a CI server is to show of a report."""
    site = "" if report.site is None else report.site[0] + ("" if report.site[1] is None else f".{report.site[1]}")
    said = {"verdict": str(report.verdict), "site": site, "model": report.model["path"],
            "model.sha256": report.model["sha256"], "engine": str(report.candidate.get("engine", ""))}  # fmt: skip
    said |= {f"declared.{i}": line for i, line in enumerate(report.forgives, 1)}
    said |= {f"finding.{i}": line for i, line in enumerate(report.findings, 1)}
    return {name: value for name, value in said.items() if value}
