"""The safetensors reader on good files and on files made to fool it, and the writer against both."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.base import Stored
from assay.formats.containers.opening import open_container
from assay.formats.containers.safetensors import read_safetensors
from assay.formats.containers.safetensors_writer import write_safetensors, write_shards
from assay.formats.errors import FormatError, InputError
from tests import safetensors_files as raw
from tests.examples import examples
from tests.safetensors_files import entry, whole

GOOD = raw.packed({
    "b": ("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
    "a": ("BF16", (4,), bytes(range(8))),
    "empty": ("I64", (0, 7), b""),
    "scalar": ("U8", (), b"\x07"),
}, {"format": "pt"})  # fmt: skip


@pytest.fixture
def refuse(tmp_path: Path):
    """``refuse(content, code)``: the bytes as a file, refused in one line, at once, at no cost."""

    def _refuse(content: bytes, code: str | None = None) -> FormatError:
        path = tmp_path / "hostile.safetensors"
        path.write_bytes(content)
        tracemalloc.start()
        begin = time.process_time()
        try:
            with pytest.raises(FormatError) as caught:
                read_safetensors(path)
            seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert code in (None, caught.value.code), str(caught.value)
        assert seconds < 2 and peak < 200 << 20
        text = str(caught.value)
        assert text.isprintable() and len(text) < 2000 and caught.value.remedy and caught.value.field
        return caught.value

    return _refuse


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    file = open_container(path)  # told by its content: the format has no magic number
    assert file.format == "safetensors" and dict(file.metadata) == {"format": "pt"}
    assert {name: (t.type.name, t.shape) for name, t in file.tensors.items()} == {
        "b": ("F32", (2, 3)), "a": ("BF16", (4,)), "empty": ("I64", (0, 7)), "scalar": ("U8", ())}  # fmt: skip
    np.testing.assert_array_equal(file.raw("b").view("<f4"), np.arange(6))
    assert bytes(file.raw("a")) == bytes(range(8)) and bytes(file.raw("scalar")) == b"\x07"
    assert len(file.raw("empty")) == 0


def test_trailing_spaces_belong_to_the_header(tmp_path: Path) -> None:
    path = tmp_path / "spaces.safetensors"
    path.write_bytes(whole(json.dumps({"x": entry("I8", [3])}).encode() + b"   ", b"abc"))
    assert bytes(read_safetensors(path).raw("x")) == b"abc"


X8 = entry("I8", [8])
HOSTILE = {
    "an empty file": ("empty-file", b""),
    "half a size": ("truncated", b"\x08\0\0"),
    "a header that the file does not have": ("truncated", whole(b"{}", size=3)),
    "a header of 2**64 - 1 bytes": ("header-too-large", whole(b"{}", size=2**64 - 1)),
    "a header of 100 MB, which the format allows": ("header-too-large", whole(b"{}", size=100_000_000)),
    "no JSON": ("bad-json", whole(b"{not json")),
    "a list": ("bad-header", whole(b"[]")),
    "a space before the brace": ("bad-header", whole(b" {}")),
    "no UTF-8": ("bad-json", whole(b'{"\xff": 1}')),
    "half of a surrogate pair": ("bad-json", whole(rb'{"\ud800": {"dtype":"I8","shape":[8],"data_offsets":[0,8]}}')),
    "a tensor twice": ("bad-json", whole(b'{"x": %b, "x": %b}' % (json.dumps(X8).encode(), json.dumps(X8).encode()),
                                         bytes(8))),
    "a field twice": ("bad-json", whole(b'{"x": {"dtype":"I8","dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
                                        bytes(8))),
    "NaN": ("bad-json", whole(b'{"x": NaN}')),
    "an integer of 5,000 digits": ("bad-json", whole(b'{"x": %s}' % (b"9" * 5000))),
    "100,000 brackets": ("bad-json", whole(b'{"x":' + b"[" * 100_000)),
    "100,000 brackets, closed": ("bad-json", whole(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "40 levels": ("bad-json", whole(b'{"x":' + b"[" * 40 + b"]" * 40 + b"}")),
    "16 MB of empty lists": ("bad-json", whole(b'{"x":[' + b"[]," * 5_000_000 + b"[]]}")),
    "metadata that is a list": ("bad-header", whole({"__metadata__": ["x"]})),
    "metadata with a number": ("bad-header", whole({"__metadata__": {"x": 1}})),
    "an empty name": ("bad-name", whole({"": X8}, bytes(8))),
    "a name with a NUL": ("bad-name", whole({"a\0b": X8}, bytes(8))),
    "a name of 257 bytes": ("bad-name", whole({"x" * 257: X8}, bytes(8))),
    "an entry without offsets": ("bad-header", whole({"x": {"dtype": "I8", "shape": [8]}}, bytes(8))),
    "an entry with one field more": ("bad-header", whole({"x": {**X8, "extra": 1}}, bytes(8))),
    "an entry that is a list": ("bad-header", whole({"x": [1, 2]}, bytes(8))),
    "an unknown dtype": ("bad-tensor-type", whole({"x": {**X8, "dtype": "Q4_K"}}, bytes(8))),
    "a dtype that is a number": ("bad-tensor-type", whole({"x": {**X8, "dtype": 8}}, bytes(8))),
    "a negative dim": ("bad-shape", whole({"x": {**X8, "shape": [-8]}}, bytes(8))),
    "a dim that is a float": ("bad-shape", whole({"x": {**X8, "shape": [8.0]}}, bytes(8))),
    "a dim that is true": ("bad-shape", whole({"x": {**X8, "shape": [True, 8]}}, bytes(8))),
    "nine dims": ("bad-shape", whole({"x": {**X8, "shape": [1] * 8 + [8]}}, bytes(8))),
    "2**64 elements": ("bad-shape", whole({"x": {**X8, "shape": [2**32, 2**32]}}, bytes(8))),
    "2**62 elements hidden behind a zero": ("bad-shape", whole({"x": entry("F64", [0, 2**31, 2**31])})),
    "dims whose product is 4 modulo 2**64": ("bad-shape", whole({"x": {
        **X8, "shape": [4194305, 4194305, 211106198978564], "data_offsets": [0, 4]}}, bytes(4))),
    "too few bytes for the shape": ("bad-size", whole({"x": {**X8, "data_offsets": [0, 7]}}, bytes(7))),
    "offsets that run backwards": ("bad-header", whole({"x": {**X8, "data_offsets": [8, 0]}}, bytes(8))),
    "a negative offset": ("bad-header", whole({"x": {**X8, "data_offsets": [-8, 0]}}, bytes(8))),
    "three offsets": ("bad-header", whole({"x": {**X8, "data_offsets": [0, 8, 8]}}, bytes(8))),
    "data beyond the end": ("out-of-file", whole({"x": X8}, bytes(7))),
    "an offset of 2**64": ("out-of-file", whole({"x": {**X8, "data_offsets": [2**64, 2**64 + 8]}}, bytes(8))),
    "an offset whose sum Python would not print": ("out-of-file", whole(
        {"x": entry("I8", [0], 10**4300 - 1, 10**4300 - 1)}, bytes(8))),
    "two tensors on one range": ("overlap", whole({"x": X8, "y": X8}, bytes(8))),
    "two tensors that share a byte": ("overlap", whole({"x": X8, "y": entry("I8", [8], 7)}, bytes(15))),
    "an empty tensor inside another": ("overlap", whole({"x": X8, "y": entry("I8", [0], 4)}, bytes(8))),
    "a hole": ("hole", whole({"x": X8, "y": entry("I8", [8], 9)}, bytes(17))),
    "a hole at the front": ("hole", whole({"x": entry("I8", [8], 1)}, bytes(9))),
    "a byte more": ("trailing-bytes", whole({"x": X8}, bytes(9))),
    "a zip file behind": ("trailing-bytes", whole({}, b"PK\3\4")),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(refuse, case: str) -> None:
    code, content = HOSTILE[case]
    refuse(content, code)


def test_cut_at_every_byte(refuse) -> None:
    for length in range(len(GOOD)):
        refuse(GOOD[:length])


@examples(300)
@given(st.data())
def test_changed_bytes_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    """A few bytes changed: either still a file, every tensor inside it, or a FormatError."""
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content)
    try:
        file = read_safetensors(path)
    except FormatError:
        return
    assert sum(len(file.raw(name)) for name in file.tensors) + 8 + int.from_bytes(content[:8], "little") == len(content)


def test_a_pickle_is_refused_by_its_own_name(tmp_path: Path) -> None:
    for content in (b"PK\3\4 torch zip", b"\x80\2}q\0."):
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            open_container(path)
        assert caught.value.code == "pickle" and "safetensors" in caught.value.remedy


def tensors_to_write() -> list[Stored]:
    arrays = {"half": ("F16", (3, 5), 30), "single": ("F32", (7,), 28), "odd": ("I8", (3,), 3),
              "brain": ("BF16", (4,), 8)}
    return [Stored(name, BY_NAME[kind], shape, lambda n=n: np.arange(n, dtype=np.uint8) * np.uint8(37))
            for name, (kind, shape, n) in arrays.items()]  # fmt: skip


def test_what_is_written_is_read_and_aligned(tmp_path: Path) -> None:
    tensors = tensors_to_write()
    path = tmp_path / "out.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    file = read_safetensors(path)
    assert {t.name: t.shape for t in tensors} == {name: info.shape for name, info in file.tensors.items()}
    for tensor in tensors:
        info = file.tensors[tensor.name]
        np.testing.assert_array_equal(file.raw(tensor.name), tensor.read())
        assert info.offset % info.type.block_bytes == 0 and info.type is tensor.type
    assert file.metadata == {"format": "pt"}


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    write_shards(tmp_path, tensors_to_write(), {}, shard_bytes=30)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = {file: read_safetensors(tmp_path / file).tensors for file in set(index["weight_map"].values())}
    assert len(shards) > 1 and {name: file for file, held in shards.items() for name in held} == index["weight_map"]
    assert index["metadata"]["total_size"] == 69
    assert not [name for name in os.listdir(tmp_path) if "unfinished" in name]


def test_the_writer_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    def write(name: str, kind: str, nbytes: int) -> None:
        tensor = Stored(name, BY_NAME[kind], (256,), lambda: np.zeros(nbytes, np.uint8))
        write_safetensors(tmp_path / "x", [tensor], {})

    for name, kind, code in (("x", "Q4_K", "no type Q4_K"), ("", "F32", "name"), ("__metadata__", "F32", "name")):
        with pytest.raises(InputError, match=code):
            write(name, kind, 1024)
    with pytest.raises(InputError, match="takes 1024 bytes, not 1000"):
        write("x", "F32", 1000)
    assert not os.listdir(tmp_path)
