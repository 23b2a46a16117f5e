"""``assay validate``, ``tensors --stats`` and ``diff`` on the real models: what they say, and in how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real
MOST_RSS = 500_000_000
"""Bytes. The interpreter, NumPy and a vocabulary of 151,936 take 190 MB here; the chunks of two threads a few MB, and
of the mapped file 64 MB may be resident before they are given back. The larger file has 1.1 GB."""


WITH_PEAK = """
import runpy, sys
try:
    runpy.run_module("assay", run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as status:
        print(*(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)
"""
"""The command, and then the kilobytes it took at most. (What ``wait4`` tells of a child begins with its parent's.)"""


def measured(*arguments: str) -> tuple[int, dict[str, Any], int]:
    """(exit code, JSON, peak RSS in bytes) of one command, in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", WITH_PEAK, *arguments, "--json"], capture_output=True, text=True)
    peak = int(done.stderr.split()[-1]) * 1024
    print(f"assay {' '.join(arguments)}: {time.perf_counter() - started:.1f} s, peak RSS {peak / 1e6:.0f} MB")
    return done.returncode, json.loads(done.stdout), peak


@pytest.mark.parametrize("model", ["real_05b", "real_15b"])
def test_validate_passes_in_bounded_memory(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    code, facts, peak = measured("validate", str(path))
    assert code == 0
    unusual = {check["name"]: check["verdict"] for check in facts["checks"] if check["verdict"] != "PASS"}
    assert unusual == {"structure.checksum": "SKIPPED"}  # GGUF has none
    assert peak < MOST_RSS


@pytest.mark.parametrize("model", ["real_05b", "real_15b"])
def test_statistics_of_every_tensor_in_bounded_memory(model: str, request: pytest.FixtureRequest) -> None:
    code, facts, peak = measured("tensors", str(request.getfixturevalue(model)), "--stats")
    assert code == 0
    assert all(one["stats"]["nan"] == one["stats"]["dead_rows"] == 0 for one in facts["tensors"])
    assert peak < MOST_RSS


def test_two_models_are_different_and_one_is_itself(real_05b: Path, real_15b: Path) -> None:
    code, facts, _ = measured("diff", str(real_15b), str(real_15b))
    assert (code, facts["same_bytes"]) == (0, True)
    code, facts, peak = measured("diff", str(real_05b), str(real_15b))
    assert (code, facts["same"]) == (8, False)
    assert peak < MOST_RSS
