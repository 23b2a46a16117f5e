"""``assay doctor``: the self-check, whatever becomes of its process, and what it shows of the machine."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import self_check
from assay.commands.doctor import OF_JAX
from assay.self_check import Check, Report
from tests.assay.command_line import assay

GOOD = Report(("cpu:cpu",), (("engine", "accel"),), (Check("fast: greedy ids", True, "28 of 28 as recorded"),))


def found(report: Report, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr("assay.commands.doctor.self_check", lambda: report)
    return assay("doctor", *arguments)


@pytest.mark.slow
def test_a_healthy_machine_passes() -> None:
    """The whole way: a process of its own, both arithmetics, the record and the oracle."""
    said = assay("doctor", "--json").json
    assert said["passed"] and said["error"] is None and len(said["checks"]) == 8
    assert all(check["passed"] for check in said["checks"])
    assert said["devices"] and said["fingerprint"]["engine"] == "accel"
    assert {"system", "processor", "python", "numpy", "jax", "jaxlib"} <= said["environment"].keys()


@pytest.mark.parametrize("report", [
    dataclasses.replace(GOOD, checks=(Check("fast: greedy ids", False, "3 of 28 as recorded"),)),
    dataclasses.replace(GOOD, error="no answer within 900 s"), Report(error="jax: JAX cannot start"), Report(),
])  # fmt: skip
def test_what_did_not_pass_is_exit_8(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((), ("--json",)):
        said = found(report, monkeypatch, *arguments)
        assert (said.code, said.err) == (8, "")
    assert found(GOOD, monkeypatch).code == 0


def test_what_is_shown(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OF_JAX):
            monkeypatch.delenv(name)
    monkeypatch.delenv("ASSAY_XLA_CACHE")
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "a b" / "assay"))
    programs = tmp_path / "a b" / "assay" / "xla"
    programs.mkdir(parents=True)
    (programs / "x.program").write_bytes(bytes(1500))
    text = found(GOOD, monkeypatch).out
    for part in ("28 of 28 as recorded", "1 file, 1.5 kB", f"rm -r '{programs}'", "not pulled",
                 "No environment variable", "in order"):  # fmt: skip
        assert part in text
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    assert "JAX_ENABLE_X64" in found(GOOD, monkeypatch).out
    said = found(GOOD, monkeypatch, "--json").json
    assert said["jax_settings"] == {"JAX_ENABLE_X64": "1"}
    (cache,) = [one for one in said["caches"] if one["name"] == "compiled programs"]
    assert (cache["files"], cache["bytes"], cache["folder"]) == (1, 1500, str(programs))
    assert {one["path"] for one in said["models"]} == {None} and len(said["models"]) >= 2


def stops(to: Any) -> None:
    os.abort()


def exits(to: Any) -> None:
    os._exit(3)


def hangs(to: Any) -> None:
    threading.Event().wait(100)


@pytest.mark.parametrize(("child", "error"), [(stops, "signal 6"), (exits, "exit code 3"), (hangs, "within 0.5 s")])
def test_whatever_becomes_of_the_process_is_reported(child: Any, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "answer", child)
    report = self_check.self_check(0.5 if child is hangs else 100)
    assert error in report.error and not report.passed


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), AssertionError()])
def test_what_the_engine_raises_is_the_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Report:
        raise error

    class Sent(list[Report]):
        send = list.append

    sent = Sent()
    monkeypatch.setattr(self_check, "checked", failing)
    self_check.answer(sent)  # type: ignore[arg-type]
    assert sent[0].error.startswith(type(error).__name__) and "\n" not in sent[0].error


def test_logits_count_at_every_position() -> None:
    exact = np.zeros((3, 4))
    assert self_check.close("x", exact.astype(np.float32), exact, 1e-4).passed
    off = exact.copy()
    off[1] = 1e-3
    assert not self_check.close("x", off, exact, 1e-4).passed
    assert not self_check.close("x", np.full((3, 4), np.nan), exact, 1e-4).passed
