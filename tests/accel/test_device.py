"""Which type decoded matrices are multiplied in follows from what the processor says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from assay.accel import device


@pytest.mark.parametrize(("text", "has"), [
    ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 sse2\n", True),
    ("processor\t: 0\nflags\t\t: fpu avx2 avx512f sse2\n", False),
    ("flags\t\t: fpu amx_bf16\n", True),
    ("Features\t: fp asimd bf16 i8mm\n", True),
    ("Features\t: fp asimd\n", False),
    ("model name\t: bf16\n", False),
    ("", False),
])  # fmt: skip
def test_bf16_is_used_where_the_processor_has_it(text: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(device.platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    device.dense_type.cache_clear()
    try:
        assert device.multiplies_bf16() == has
        assert device.dense_type("fast").name == ("bfloat16" if has else "float32")
        assert device.dense_type("f32").name == "float32"
    finally:
        device.dense_type.cache_clear()


def test_other_devices_multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.jax, "default_backend", lambda: "gpu")
    assert device.multiplies_bf16()


def test_a_system_that_does_not_say_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, encoding: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(device.jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(Path, "read_text", missing)
    assert not device.multiplies_bf16()


ONE_PROCESSOR = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from assay import accel
from assay.formats.contract.engine import identity
from assay.goldens import BUILTIN
model = accel.load(BUILTIN, arith="f32")
for _ in range(3):
    model.forward([5, 6, 7, 8], identity)
print("threads", os.environ["NPROC"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot give a process one processor")
def test_taps_on_a_single_processor_do_not_wait_for_themselves() -> None:
    """They did, in one process of three or so; what keeps them from it is what can be tested."""
    done = subprocess.run([sys.executable, "-c", ONE_PROCESSOR], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["threads", "2"], done.stderr
