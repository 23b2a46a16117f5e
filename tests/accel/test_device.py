"""Which type decoded matrices are multiplied in follows from what the processor says of itself."""

from __future__ import annotations

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
