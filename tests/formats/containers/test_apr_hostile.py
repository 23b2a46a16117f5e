"""The APR reader on files made to crash, hang, exhaust or fool it: each refused in one line, at once, at no cost."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assay.formats.containers.apr import read_apr
from assay.formats.containers.opening import open_container
from assay.formats.errors import FormatError
from assay.formats.model_file import tensor_of
from tests import apr_files as raw
from tests.apr_files import File, Tensor, resealed
from tests.examples import examples
from tests.formats.containers.refusal import refused

U64_MAX = 2**64 - 1


@pytest.fixture
def refuse(tmp_path: Path):
    """``refuse(content, code, **options)``: the bytes as a file, refused."""

    def _refuse(content: File | bytes, code: str | None = None, **options: bool) -> FormatError:
        path = tmp_path / "hostile.apr"
        path.write_bytes(bytes(content))
        return refused(path, code, read_apr, **options)

    return _refuse


GOOD = raw.small_file()
TWO = [Tensor("a"), Tensor("b")]


def flagged(flag: int) -> File:
    return File({}, [Tensor()], flags=raw.ROW_MAJOR | flag)


HEADER = {
    "empty file": ("empty-file", b""),
    "three bytes": ("truncated", b"APR"),
    "magic alone": ("truncated", b"APR\0"),
    "63 bytes": ("truncated", GOOD[:63]),
    "v1, APRN": ("bad-version", File(magic=b"APRN")),
    "legacy name APR1": ("bad-magic", File(magic=b"APR1")),
    "legacy name APR2": ("bad-magic", File(magic=b"APR2")),
    "a stage dump, APRT": ("bad-magic", File(magic=b"APRT")),
    "a Git LFS pointer": ("git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\n"),
    **{f"version {v}": ("bad-version", File(version=v)) for v in ((0, 0), (1, 0), (2, 1), (3, 0), (0, 2))},
    "header CRC": ("bad-checksum", File(header_checksum=0)),
    "a flipped bit in the reserved bytes": ("bad-checksum", GOOD[:63] + b"\1" + GOOD[64:]),
    "column-major": ("column-major", flagged(raw.COLUMN_MAJOR)),
    "column-major alone": ("column-major", File(flags=raw.COLUMN_MAJOR)),
    "LZ4": ("unsupported", flagged(0x0001)),
    "Zstandard": ("unsupported", flagged(0x0002)),
    "encrypted": ("unsupported", flagged(0x0004)),
    "sharded": ("unsupported", flagged(0x0010)),
}  # fmt: skip

SECTIONS = {
    "metadata inside the header": ("bad-section", File({}, metadata_offset=0)),
    "metadata at 63": ("bad-section", File({}, metadata_offset=63)),
    "metadata beyond the end": ("truncated", File({}, metadata_offset=2**40, index_offset=2**41, data_offset=2**42)),
    "metadata at the end of u64": ("truncated", File({}, metadata_offset=U64_MAX)),
    "metadata size + offset wraps": ("metadata-too-large", File({}, metadata_size=2**32 - 1)),
    "metadata above 16 MiB": ("metadata-too-large", File(b"{}".ljust((16 << 20) + 1))),
    "metadata size runs into the index": ("bad-section", File({}, [Tensor()], metadata_size=100)),
    "index before the metadata": ("bad-section", File({}, index_offset=64)),
    "index at 0": ("bad-section", File({}, index_offset=0)),
    "index beyond the end": ("truncated", File({}, [Tensor()], index_offset=2**40, data_offset=2**41)),
    "index at the end of u64": ("truncated", File({}, [Tensor()], index_offset=U64_MAX)),
    "data before the index": ("bad-section", File({}, [Tensor()], data_offset=64)),
    "data inside the index": ("bad-section", File({}, [Tensor(), Tensor("n" * 200)], data_offset=192)),
    "data beyond the end": ("truncated", File({}, [Tensor()], data_offset=2**62)),
    "data at the end of u64": ("truncated", File({}, [Tensor()], data_offset=U64_MAX)),
    "no data section": ("truncated", File({}, data=b"", footer=b"", data_offset=192)),
}  # fmt: skip

COUNTS = {
    "one tensor more than there is": ("bad-name", File({}, [Tensor()], n_tensors=2)),
    "as many tensors as fit 21 bytes each": ("bad-count", File({}, [Tensor()], n_tensors=4)),
    "2**32 - 1 tensors": ("bad-count", File({}, [Tensor()], n_tensors=2**32 - 1)),
    "2**16 + 1 tensors in a file with room": ("bad-count", File(
        {}, n_tensors=2**16 + 1, data_offset=2 << 20, data=bytes(2 << 20))),
    "tensors in no index": ("bad-count", File({}, n_tensors=1)),
}  # fmt: skip

INDEX = {
    "name of no bytes": ("bad-name", File({}, [Tensor("")])),
    "name of 257 bytes": ("bad-name", File({}, [Tensor("n" * 257)])),
    "name length lies": ("bad-name", File({}, [Tensor("n", name_length=2**16 - 1)])),
    "name not UTF-8": ("bad-name", File({}, [Tensor(b"\xff")])),
    "name cut inside a character": ("bad-name", File({}, [Tensor("ä", name_length=1)])),
    "name with NUL": ("bad-name", File({}, [Tensor("a\0b")])),
    "same name twice": ("duplicate-tensor", File({}, [Tensor("a"), Tensor("a")])),
    "unsorted": ("unsorted", File({}, [Tensor("b"), Tensor("a")], sort=False)),
    "sorted as text, not as bytes": ("unsorted", File({}, [Tensor("\U00010000"), Tensor("\uffff")], sort=False)),
    **{f"type {t}": ("bad-tensor-type", File({}, [Tensor(type=t)])) for t in (2, 10, 11, 13, 15, 31, 127, 130, 255)},
    "9 dims": ("bad-shape", File({}, [Tensor(dims=(1,) * 9)])),
    "255 dims": ("bad-shape", File({}, [Tensor(n_dims=255)])),
    "two dims of 2**40": ("bad-shape", File({}, [Tensor(dims=(2**40, 2**40), data=b"")])),
    "a zero dim beside absurd ones": ("bad-shape", File({}, [Tensor(dims=(2**62, 2**62, 0), data=b"")])),
    "2**63 elements of no bytes": ("bad-shape", File({}, [Tensor(dims=(0, 2**63), data=b"")])),
    "2**61 f64": ("bad-shape", File({}, [Tensor(dims=(2**61,), type=raw.F64, data=b"", size=U64_MAX)])),
    "2**55 rows of one element, padded": ("bad-shape", File({}, [
        Tensor(dims=(2**58, 1), type=raw.Q4_K, data=b"", size=0)])),
    "a size one too small": ("bad-size", File({}, [Tensor(size=31)])),
    "a size one too large": ("bad-size", File({}, [Tensor(size=33)])),
    "the padded size": ("bad-size", File({}, [Tensor(size=64)])),
    "Q4_K rows packed flat": ("bad-size", File({}, [Tensor(dims=(2, 128), type=raw.Q4_K, size=144)])),
    "Q6_K rows packed flat": ("bad-size", File({}, [Tensor(dims=(4, 64), type=raw.Q6_K, size=210)])),
    "APR_Q8 without its scale": ("bad-size", File({}, [Tensor(type=raw.APR_Q8, size=8)])),
    "APR_Q8 with a scale for nothing": ("bad-size", File({}, [Tensor(dims=(0,), type=raw.APR_Q8, size=4)])),
    "APR_Q4 padded by row": ("bad-size", File({}, [Tensor(dims=(2, 16), type=raw.APR_Q4, size=36)])),
    "ggml's Q8_0 under its own number": ("bad-size", File({}, [Tensor(dims=(32,), type=8, size=34)])),
    "misaligned by 1": ("misaligned", File({}, [Tensor(offset=1)])),
    "misaligned by 32, GGUF's alignment": ("misaligned", File({}, [Tensor(offset=32)])),
    "a data section that is misaligned": ("misaligned", File({}, [Tensor()], data_offset=200)),
    "same data twice": ("overlap", File({}, [Tensor("a"), Tensor("b", offset=0)])),
    "overlap of a long one": ("overlap", File({}, [Tensor("a", (100,)), Tensor("b", offset=256)])),
    "just beyond the end": ("out-of-file", File({}, [Tensor("a"), Tensor("b", offset=128)])),
    "far beyond the end": ("out-of-file", File({}, [Tensor(offset=2**62)])),
    "offset + size wraps": ("out-of-file", File({}, [Tensor(offset=2**64 - 64)])),
    "an empty tensor beyond the end": ("out-of-file", File({}, [Tensor(dims=(0,), offset=2**40)])),
}  # fmt: skip


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"a":' + opening * depth + b"1" + closing * depth + b"}"


JSON: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\x80\x81",
    "MessagePack": b"\x81\xa4name\xa1x",
    "not UTF-8": b'{"a":"\xff"}',
    "an array": b"[]",
    "a string": b'"a"',
    "null": b"null",
    "cut short": b'{"a":1',
    "two objects": b"{}{}",
    "zeros after it": b"{}\0",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":[1,Infinity]}',
    "-Infinity": b'{"a":-Infinity}',
    "a number beyond f64": b'{"a":1e999}',
    "an integer of 5,000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "an integer of 15 million digits": b'{"a":' + b"9" * 15_000_000 + b"}",
    "half of a surrogate pair": b'{"a":"\\ud800"}',
    "half of one as a key": b'{"\\udfff":1}',
    "a control character": b'{"a":"\x01"}',
    "33 deep": nested(32),
    "1,000 deep": nested(1000),
    "100,000 deep": nested(100_000),
    "objects 50,000 deep": nested(50_000, b'{"a":', b"}"),
    "never closed, 16 MiB of it": b'{"a":' + b"[" * ((16 << 20) - 5),
    "five million empty arrays": b'{"a":[' + b"[]," * 5_000_000 + b"0]}",
    "millions of keys": b"{" + b",".join(b'"%d":0' % i for i in range(1_200_000)) + b"}",
}
CASES: dict[str, tuple[str, Any]] = {
    **HEADER, **SECTIONS, **COUNTS, **INDEX, **{f"metadata: {k}": ("bad-metadata", File(v)) for k, v in JSON.items()}
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(refuse, case):
    code, content = CASES[case]
    refuse(content, code)


def test_what_is_nearly_hostile_is_read(tmp_path):
    """The other side of each limit: a reader that refuses everything would pass all of the above."""
    fine = {
        "31 deep": File(nested(31)), "a pair of surrogates": File(b'{"a":"\\ud83d\\ude00"}'),
        "name of 256 bytes": File({}, [Tensor("n" * 256)]), "8 dims": File({}, [Tensor(dims=(1,) * 8)]),
        "no layout flag": File({}, [Tensor()], flags=0), "no tensors": File({}),
        "4,000 digits": File(b'{"a":' + b"9" * 4000 + b"}"),
        "16 MiB of metadata": File(b'{"a":"' + b"x" * ((16 << 20) - 8) + b'"}'),
    }  # fmt: skip
    for name, content in fine.items():
        path = tmp_path / name
        path.write_bytes(bytes(content))
        assert not read_apr(path, strict=True).warnings, name


ODD = {
    "unknown flag": ("bad-flags", flagged(0x1000)),
    "signed": ("bad-flags", flagged(0x0008)),
    "reserved bytes": ("bad-padding", File({}, [Tensor()], reserved=b"\1" * 20)),
    "a gap before the data": ("bad-padding", File({}, [Tensor()], data_offset=256, data=bytes(128))),
    "bytes before the footer": ("trailing-bytes", File({}, [Tensor()], tail=bytes(64))),
    "no footer": ("missing-footer", File({}, [Tensor()], footer=b"")),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_a_warning_and_strictly_refused(refuse, tmp_path, case):
    code, content = ODD[case]
    refuse(content, code, strict=True)
    assert len(read_apr(tmp_path / "hostile.apr").warnings) == 1


@pytest.mark.parametrize(("code", "data"), [
    (raw.APR_Q4, b"\0\x7e" + bytes(16)), (raw.APR_Q8, b"\0\0\xc0\x7f" + bytes(32)), (raw.APR_Q8, b"\0\0\x80\x7f\1" * 7),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 32), (4, 8)])
def test_a_scale_that_is_no_number_is_refused_when_read(tmp_path, code, data, shape):
    path = tmp_path / "nan.apr"
    data = data + b"\1" * (raw.Tensor("t", shape, code).nbytes - len(data))
    path.write_bytes(bytes(File({}, [Tensor("t", shape, code, data[: raw.Tensor("t", shape, code).nbytes])])))
    apr = read_apr(path)
    with pytest.raises(FormatError, match="non-finite"):
        tensor_of(apr, apr.tensors["t"]).decode()


def test_error_names_field_and_offset(refuse):
    error = refuse(File({}, [Tensor("a"), Tensor("b", size=1)]), "bad-size")
    first = 2 + 1 + 2 + 8 + 16
    assert (error.field, error.offset) == ("tensor[1].size", 128 + first + 2 + 1 + 2 + 8 + 8)
    error = refuse(File({}, [Tensor("a"), Tensor("b", type=13)]), "bad-tensor-type")
    assert (error.field, error.offset) == ("tensor[1].type", 128 + first + 3) and "Q5_K" in str(error)
    error = refuse(File(b"[]"), "bad-metadata")
    assert (error.field, error.offset) == ("metadata", 64)


def test_names_in_errors_are_fit_for_a_line(refuse):
    refuse(File({}, [Tensor("a\n\u2028\x1b[2J" * 20)] * 2), "duplicate-tensor")
    refuse(File({}, [Tensor("a\n", offset=2**40)]), "out-of-file")


def test_huge_sparse_file_is_not_read_into_memory(tmp_path):
    """A file may truly have the bytes it claims and still cost nothing to make: 1 TiB of holes."""
    path = tmp_path / "sparse.apr"
    for content, code in (
        (File({}, n_tensors=2**16, data_offset=2**39, data=b"", footer=b""), "bad-name"),
        (File({}, [Tensor()], index_offset=2**38, data_offset=2**39, data=b"", footer=b""), "header-too-large"),
        (File(b"", metadata_size=16 << 20, index_offset=2**30, data_offset=2**39, data=b""), "bad-metadata"),
    ):
        path.write_bytes(bytes(content))
        os.truncate(path, 2**40)
        refused(path, code, read_apr)


def test_truncation_at_every_byte(tmp_path):
    """No prefix is accepted as whole; that without its footer, of which real files exist, with a warning."""
    path = tmp_path / "cut.apr"
    for keep in range(len(GOOD) - 1):
        path.write_bytes(GOOD[:keep])
        if keep == len(GOOD) - 4:
            assert read_apr(path).warnings, f"cut to {keep} bytes"
        else:
            code = refused(path, None, read_apr).code
            assert code in ("empty-file", "truncated", "out-of-file", "bad-count"), f"cut to {keep} bytes: {code}"
        refused(path, None, read_apr, strict=True)


def test_truncation_inside_the_padding_of_the_last_tensor(tmp_path):
    """All of its data is there, but no writer leaves the padding out: the rest is missing."""
    whole, path = bytes(File({}, [Tensor()])), tmp_path / "cut.apr"
    for keep in range(len(whole) - 4 - 32, len(whole) - 4):
        path.write_bytes(whole[:keep])
        refused(path, "out-of-file", read_apr)


def test_pipes_and_changing_files_are_the_cursors_business(tmp_path, monkeypatch):
    """As for GGUF (test_gguf_opening.py): here only that the APR reader takes the same precautions."""
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not-a-file", read_apr)
    path = tmp_path / "model.apr"
    path.write_bytes(GOOD)
    apr = read_apr(path)
    os.truncate(path, 100)
    with pytest.raises(FormatError, match="file-changed"):
        apr.raw("a.vector")
    path.write_bytes(GOOD)
    pread = os.pread

    def growing(fd, n, offset):
        os.truncate(path, len(GOOD) + 64)
        return pread(fd, n, offset)

    monkeypatch.setattr(os, "pread", growing)
    refused(path, "file-changed", read_apr)


EDGES = [0, 1, 63, 64, 2**7, 2**8 - 1, 2**16 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1]
PATCHES = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 5), st.one_of(st.sampled_from(EDGES), st.integers(0, U64_MAX)),
              st.sampled_from([1, 2, 4, 8])),
    min_size=1, max_size=3,
)  # fmt: skip


@examples(1500)
@given(patches=PATCHES, seal=st.booleans(), strict=st.booleans())
@example(patches=[(6, 0x0C00, 2)], seal=True, strict=False)
def test_any_mutation_is_read_or_refused(tmp_path, patches, seal, strict):
    """Whatever 1 to 3 fields are overwritten with, and the checksums made right again, only FormatError comes out."""
    content = bytearray(GOOD)
    for at, value, width in patches:
        content[at : at + width] = (value % 256**width).to_bytes(width, "little")
    data = resealed(bytes(content)) if seal else bytes(content[: len(GOOD)])
    path = tmp_path / "mutant.apr"
    path.write_bytes(data)
    try:
        apr = open_container(path, strict=strict)
        for name, info in apr.tensors.items():
            assert apr.raw(name).nbytes == info.nbytes
            assert info.offset >= 64 and info.offset + info.nbytes <= len(data)
            assert apr.rows(name).shape[0] == info.n_rows
        assert all(isinstance(key, str) for key in apr.metadata)
    except FormatError as error:
        assert str(error).isprintable()


def test_a_scale_rule_needs_no_numpy_warning():
    """Comparing a NaN scale with the smallest normal must not warn: warnings are errors here."""
    from assay.formats.containers.apr_types import q4_as_q4_0

    blocks = np.frombuffer(struct.pack("<e", float("nan")) + bytes(16), np.uint8)[None]
    assert q4_as_q4_0(blocks)[0, :2].tobytes() == struct.pack("<e", float("nan"))


WORST = {
    "arrays": b"[" + b"[]," * (1 << 20) + b"0]",
    "objects": b"[" + b"{}," * (1 << 20) + b"0]",
    "keys": b"{" + b",".join(b'"%x":0' % i for i in range(1 << 20)) + b"}",
    "strings": b"[" + b'"ab",' * (1 << 20) + b"0]",
    "a wide character": '["😀",'.encode() + b'"' + b"x" * (15 << 20) + b'"]',
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WORST)
def test_the_worst_metadata_that_is_read_takes_bounded_memory(tmp_path, what):
    path = tmp_path / "heavy.apr"
    path.write_bytes(bytes(File(b'{"a":' + WORST[what] + b"}")))
    tracemalloc.start()
    try:
        read_apr(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
