"""Which type decoded matrices are multiplied in follows from what the processor says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from assay.accel import device
from assay.accel.jax_settings import own_settings
from assay.accel.programs import compiler_options


class FakeDevice(NamedTuple):
    """As much of a device as is asked; JAX takes one for a device by its name."""

    platform: str


CPU: Any = FakeDevice("cpu")
GPU: Any = FakeDevice("gpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What the processor says of itself is kept; not what a test makes it say."""
    device.instructions.cache_clear()
    yield
    device.instructions.cache_clear()


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
    monkeypatch.setattr(device.platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert device.multiplies_bf16(CPU) == has
    assert device.dense_type("fast", CPU).name == ("bfloat16" if has else "float32")
    assert device.dense_type("f32", CPU).name == "float32"


def test_the_engines_device_is_asked_not_jaxs_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine on the processor beside a GPU that JAX prefers, and the other way round."""
    monkeypatch.setattr(device, "instructions", frozenset)
    for default in ("gpu", "cpu"):
        monkeypatch.setattr(device.jax, "default_backend", lambda name=default: name)
        assert device.dense_type("fast", GPU).name == "bfloat16" and device.dense_type("fast", CPU).name == "float32"
        assert device.read_bandwidth(CPU) is None
        assert compiler_options(GPU) == {} and compiler_options(CPU) == {"xla_cpu_prefer_vector_width": 512}


def test_code_that_is_traced_finds_the_engines_device() -> None:
    with own_settings(jax.devices()[0]):
        assert device.computing_on() is jax.devices()[0]
        with jax.default_device(GPU):
            assert device.computing_on() is GPU
    assert device.computing_on() is jax.devices()[0]


def test_a_system_that_does_not_say_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, encoding: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert not device.multiplies_bf16(CPU)
