"""The GGUF writer: what was read comes out byte for byte, any reader reads it, and what cannot be held is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from assay.formats import InputError
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import Stored, stored
from assay.formats.containers.gguf import GGUF, read_gguf
from assay.formats.containers.gguf_metadata import Value, typed
from assay.formats.containers.gguf_writer import write_gguf
from assay.formats.containers.opening import open_container
from assay.goldens import BUILTIN
from tests import gguf_files as raw
from tests.gguf_files import File


def rewritten(path: Path, to: Path) -> bytes:
    """The bytes of the file at ``path`` after reading and writing it."""
    gguf = read_gguf(path)
    write_gguf(to, gguf.metadata.stored, [stored(gguf, name) for name in gguf.tensors], version=gguf.version)
    return to.read_bytes()


def f32(name: str, *values: float) -> Stored:
    return Stored(name, BY_NAME["F32"], (len(values),), lambda: np.array(values, "<f4"))


def test_the_builtin_model_comes_out_byte_for_byte(tmp_path):
    assert rewritten(BUILTIN, tmp_path / "m.gguf") == BUILTIN.read_bytes()


@pytest.mark.parametrize("content", [
    raw.small_file(), bytes(File()), bytes(File(raw.random_pairs(seed=2), raw.random_tensors(seed=2))),
    bytes(File([raw.alignment_pair(64)], raw.random_tensors(seed=3), alignment=64)),
    bytes(File([raw.alignment_pair(1)], raw.random_tensors(seed=4), alignment=1)),
    bytes(File([raw.alignment_pair(64)], raw.random_tensors(seed=3), alignment=64, version=2)),
], ids=["small", "empty", "random", "alignment 64", "alignment 1", "version 2"])  # fmt: skip
def test_any_file_comes_out_byte_for_byte(tmp_path, content):
    """Random bools that are neither 0 nor 1 and strings that are not UTF-8 included; the last padding is added."""
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    again, gguf = rewritten(path, tmp_path / "b.gguf"), read_gguf(path)
    expected = bytearray(content[: gguf.data_start].ljust(len(again), b"\0"))  # the test's padding is not zeros
    for info in gguf.tensors.values():
        expected[info.offset : info.offset + info.nbytes] = gguf.raw(info.name).tobytes()
    assert again == expected and 0 <= len(again) - len(content) < 64


@pytest.mark.parametrize("version", [0, 1, 4, -1, 2.0, True, "3", None])
def test_a_version_that_no_reader_would_take_is_refused(tmp_path, version):
    with pytest.raises(InputError, match="version"):
        write_gguf(tmp_path / "x.gguf", {}, [], version=version)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.real
@pytest.mark.parametrize("model", ["real_05b", "real_15b"])
def test_real_models_come_out_byte_for_byte(tmp_path, model, request):
    path, out = request.getfixturevalue(model), tmp_path / "out.gguf"
    gguf = read_gguf(path)
    write_gguf(out, gguf.metadata.stored, [stored(gguf, name) for name in gguf.tensors])
    with path.open("rb") as a, out.open("rb") as b:
        while piece := a.read(1 << 24):
            assert piece == b.read(1 << 24)
        assert not b.read(1)


TYPED: dict[str, Any] = {
    "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
    "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 1e300, "bool": True, "string": "Ġä😀",
    "array of uint8": [0, 255], "array of int32": [-1, 2], "array of float32": [0.25], "array of bool": [True, False],
    "array of string": ["", "a", "ü"], "array of uint64": [2**64 - 1, 0], "array of float64": [],
}  # fmt: skip


def test_every_type_of_value(tmp_path):
    path = tmp_path / "m.gguf"
    metadata = {f"key.{i}": typed(kind, value) for i, (kind, value) in enumerate(TYPED.items())}
    write_gguf(path, {"general.architecture": typed("string", "test"), **metadata}, [f32("t", 1, 2)])
    ours, theirs = read_gguf(path, strict=True), GGUFReader(path)
    for i, (kind, value) in enumerate(TYPED.items()):
        found = ours.metadata[f"key.{i}"]
        assert ours.metadata.type_of(f"key.{i}") == kind
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value, kind
        if value != []:
            field = theirs.get_field(f"key.{i}")
            assert field is not None and field.contents() == value, kind


@pytest.mark.parametrize(("kind", "value"), [
    ("uint8", 256), ("uint8", -1), ("int8", 128), ("uint32", 2**32), ("uint64", -1), ("uint64", 2**64),
    ("uint32", 1.0), ("uint32", 1.5), ("uint32", True), ("uint32", "1"), ("uint32", None), ("uint32", [1]),
    ("float32", "1.5"), ("float32", True), ("float32", None), ("float32", 1e300), ("bool", 1), ("bool", "x"),
    ("string", 1), ("string", b"x"), ("string", "\ud800"), ("array of string", ["a", 1]), ("array of uint8", [1, 300]),
    ("array of bool", [True, 1]), ("array of int32", [1, 1.5]), ("text", "x"), ("array of array of uint8", [[1]]),
])  # fmt: skip
def test_a_value_that_is_not_of_its_type_is_refused(kind, value):
    with pytest.raises(InputError) as caught:
        typed(kind, value)
    assert str(caught.value).isprintable() and kind in str(caught.value)


def test_tensors_lie_packed_in_the_order_given(tmp_path):
    path = tmp_path / "m.gguf"
    block = Stored("q", BY_NAME["Q4_K"], (2, 256), lambda: np.arange(288, dtype=np.uint8).reshape(2, 144))
    write_gguf(path, {}, [f32("z", 1, 2, 3), block, f32("a", 4)])
    gguf = read_gguf(path, strict=True)
    assert list(gguf.tensors) == ["z", "q", "a"] and gguf.tensors["q"].shape == (2, 256)
    assert gguf.raw("q").tobytes() == bytes(i % 256 for i in range(288))
    theirs = GGUFReader(path).tensors
    assert [(t.name, t.data.tobytes()) for t in theirs] == [(n, gguf.raw(n).tobytes()) for n in gguf.tensors]


def stored_as(kind: str, *shape: int, name: str = "t", nbytes: int = 0) -> Stored:
    return Stored(name, BY_NAME[kind], shape, lambda: np.zeros(nbytes, np.uint8))


REFUSED: dict[str, tuple[dict[str, Value], list[Stored], str]] = {
    "name too long": ({}, [f32("n" * 64, 1)], "1 to 63 bytes"),
    "no name": ({}, [f32("", 1)], "1 to 63 bytes"),
    "NUL in a name": ({}, [f32("a\0b", 1)], "1 to 63 bytes"),
    "same name twice": ({}, [f32("a", 1), f32("a", 2)], "two tensors"),
    "5 axes": ({}, [stored_as("F32", 1, 1, 1, 1, 1)], "5 axes"),
    "no axis": ({}, [stored_as("F32")], "0 axes"),
    "padded rows": ({}, [stored_as("Q4_K", 4, 896)], "not whole Q4_K blocks"),
    "too few bytes": ({}, [stored_as("F32", 2, nbytes=7)], "takes 8 bytes, not 7"),
    "empty key": ({"": typed("uint8", 1)}, [], "cannot be a key"),
    "key too long": ({"k" * 65536: typed("uint8", 1)}, [], "cannot be a key"),
    "alignment 3": ({"general.alignment": typed("uint32", 3)}, [], "general.alignment"),
    "alignment as u64": ({"general.alignment": typed("uint64", 32)}, [], "general.alignment"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_cannot_hold_is_refused(tmp_path, case):
    metadata, tensors, complaint = REFUSED[case]
    with pytest.raises(InputError) as caught:
        write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert complaint in str(caught.value) and str(caught.value).isprintable() and caught.value.remedy
    assert os.listdir(tmp_path) == []


def test_a_type_of_another_format_is_refused(tmp_path):
    from assay.formats.containers.apr_types import APR_Q4

    with pytest.raises(InputError, match="no type APR_Q4"):
        write_gguf(tmp_path / "m.gguf", {}, [Stored("t", APR_Q4, (32,), lambda: np.zeros(18, np.uint8))])


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, [f32("a", 1)])
    with pytest.raises(InputError, match="--force"):
        write_gguf(path, {}, [f32("b", 1)])
    write_gguf(path, {}, [f32("b", 1)], force=True)
    assert list(open_container(path).tensors) == ["b"]


def test_no_more_than_one_tensor_is_asked_for_at_a_time(tmp_path):
    """Each array is let go before the next is asked for."""
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.append(-1)

    def read() -> np.ndarray:
        assert sum(alive) == 0
        alive.append(1)
        return np.zeros(4, np.uint8).view(Counted)

    write_gguf(tmp_path / "m.gguf", {}, [Stored(f"t{i}", BY_NAME["F32"], (1,), read) for i in range(3)])
    assert alive.count(1) == 3


def test_progress_ends_at_the_total(tmp_path):
    seen: list[tuple[int, int]] = []
    write_gguf(tmp_path / "m.gguf", {}, [f32("a", 1), f32("b", 1, 2)],
               progress=lambda done, total, label: seen.append((done, total)))  # fmt: skip
    assert seen == [(4, 12), (12, 12)]


def test_an_open_file_may_be_replaced_by_its_own_copy(tmp_path):
    """Its map keeps the old bytes alive until it is closed."""
    path = tmp_path / "m.gguf"
    path.write_bytes(BUILTIN.read_bytes())
    gguf = open_container(path)
    assert isinstance(gguf, GGUF)
    write_gguf(path, gguf.metadata.stored, [stored(gguf, name) for name in gguf.tensors], force=True)
    assert path.read_bytes() == BUILTIN.read_bytes()
