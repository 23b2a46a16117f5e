"""The GGUF reader on files made to crash, hang, exhaust or fool it. Each is refused in one line, at once.

The kinds named in capitals are those of llama.cpp's tests/test-gguf.cpp, by its names; the rest are ours.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.gguf import read_gguf
from assay.formats.errors import FormatError
from tests import gguf_files as raw
from tests.examples import examples
from tests.formats.containers.refusal import refused
from tests.gguf_files import U64_MAX, File, Tensor


@pytest.fixture
def refuse(tmp_path: Path):
    """``refuse(content, code, **options)``: the bytes as a file, refused."""

    def _refuse(content: File | bytes, code: str | None = None, **options: bool) -> FormatError:
        path = tmp_path / "hostile.gguf"
        path.write_bytes(bytes(content))
        return refused(path, code, read_gguf, **options)

    return _refuse


KVS = raw.random_pairs(seed=1)
TENSORS = raw.random_tensors(seed=1)
VALUE = raw.scalar(raw.U32, 1)


def changed(**change) -> list[Tensor]:
    """The random tensors, each with these fields replaced."""
    return [Tensor(**{**vars(tensor), **change}) for tensor in TENSORS]


def cubes(dim: int, kind: int = raw.T_F32) -> list[Tensor]:
    """One tensor each of 2, 3 and 4 equal dims. Zero offsets: the honest ones would not fit a u64."""
    return [Tensor(f"t{n}", [dim] * n, kind, offset=0) for n in (2, 3, 4)]


def packed_tightly(data: bool) -> File:
    """Offsets packed with alignment 1, which the file does not declare; ends padded as if it had 32."""
    tensors = [Tensor(f"t{i}", (5,), raw.T_I8, offset=5 * i) for i in range(4)]
    return File(KVS, tensors, data=None if data else b"")


def too_many_bytes(n_dims: int) -> Tensor:
    """I64 elements that a u64 can count, in bytes that it cannot."""
    dim = int(1.01 * (2**64 / 8) ** (1 / n_dims))
    return Tensor(f"t{n_dims}", [dim] * n_dims, raw.T_I64, offset=0)


LLAMA_REJECTS = {
    "HEADER_BAD_MAGIC": ("bad-magic", File(KVS, TENSORS, magic=b"FUGG")),
    "HEADER_BAD_VERSION_0": ("bad-version", File(KVS, TENSORS, version=0)),
    "HEADER_BAD_VERSION_1": ("bad-version", File(KVS, TENSORS, version=1)),
    "HEADER_BAD_VERSION_FUTURE": ("bad-version", File(KVS, TENSORS, version=4)),
    "HEADER_BAD_N_TENSORS": ("bad-count", File(KVS, TENSORS, n_tensors=U64_MAX)),
    "HEADER_BAD_N_KV": ("bad-count", File(KVS, TENSORS, n_pairs=U64_MAX)),
    "KV_BAD_KEY_SIZE": ("bad-length", File([raw.pair("key", VALUE, key_length=U64_MAX), *KVS])),
    "KV_EMPTY_KEY": ("bad-name", File([raw.pair("", VALUE), *KVS])),
    "KV_BAD_TYPE": ("bad-value-type", File([raw.pair("key", raw.u32(13) + raw.u32(1)), *KVS])),
    "KV_BAD_TYPE of array": ("bad-value-type", File([raw.pair("key", raw.array(13, bytes(4), 1)), *KVS])),
    "KV_DUPLICATE_KEY": ("duplicate-key", File([raw.pair(f"my_key_{i // 2}", VALUE) for i in range(8)])),
    "KV_BAD_ALIGN": ("bad-alignment", File([raw.alignment_pair(13), *KVS])),
    "KV_WRONG_TYPE_ALIGN": ("bad-alignment", File([raw.alignment_pair(13, raw.I32), *KVS])),
    "KV_BAD_VALUE_SIZE": ("bad-length", File([
        raw.pair("key", raw.u32(raw.STRING) + raw.string("x", U64_MAX)), *KVS])),
    "TENSORS_BAD_NAME_SIZE": ("bad-length", File(KVS, changed(name="x" * 64))),
    "TENSORS_BAD_N_DIMS": ("bad-shape", File(KVS, changed(n_dims=5))),
    "TENSORS_BAD_SHAPE": ("bad-shape", File(KVS, changed(dims=[U64_MAX] * 4, offset=0), data=b"")),
    "TENSORS_NE_TOO_BIG": ("bad-shape", File(KVS, cubes(4 * (2**31 - 1)), data=b"")),
    "TENSORS_NBYTES_TOO_BIG": ("bad-shape", File(KVS, [too_many_bytes(n) for n in (1, 2, 3, 4)], data=b"")),
    "TENSORS_BAD_TYPE": ("bad-tensor-type", File(KVS, changed(type=43))),
    "TENSORS_BAD_OFFSET": ("misaligned", File(KVS, changed(offset=U64_MAX))),
    "TENSORS_DUPLICATE_NAME": ("duplicate-tensor", File(KVS, changed(name="my_tensor"))),
    "TENSORS_BAD_ALIGN": ("bad-alignment", File([*KVS, raw.alignment_pair(13)], TENSORS, alignment=13,
                                                data=b"")),
    "TENSORS_INCONSISTENT_ALIGN": ("misaligned", packed_tightly(data=False)),
    "DATA_NOT_ENOUGH_DATA": ("out-of-file", bytes(File(KVS, [*TENSORS, Tensor("last", (32,))]))[:-1]),
    "DATA_BAD_ALIGN": ("bad-alignment", File([*KVS, raw.alignment_pair(13)], TENSORS, alignment=13)),
    "DATA_INCONSISTENT_ALIGN": ("misaligned", packed_tightly(data=True)),
    "DATA_MEM_SIZE_OVERFLOW": ("out-of-file", File(KVS, [
        Tensor("a", (0x7FFFFFFFFFFFFFC0,), raw.T_I8), Tensor("b", (0x7FFFFFFFFFFFFFC0,), raw.T_I8),
    ], data=bytes(32))),
}  # fmt: skip


@pytest.mark.parametrize("kind", LLAMA_REJECTS)
def test_llama_cpp_rejects(refuse, kind):
    code, content = LLAMA_REJECTS[kind]
    refuse(content, code)
    if code != "out-of-file":  # all others show without a look at the data section
        refuse(content, code, metadata_only=True)


CUSTOM_ALIGN = File([*KVS, raw.alignment_pair(1)], TENSORS, alignment=1)
ZERO_DIM = File(KVS, [Tensor(str(t.name), (t.dims[0], 0), t.type) for t in TENSORS])
# Name -> file, and whether it has a data section at all; llama.cpp reads the others for metadata alone.
LLAMA_ACCEPTS = {
    "HEADER_EMPTY": (File(), True),
    "KV_SUCCESS": (File(KVS), True),
    "TENSORS_ZERO_DIM": (ZERO_DIM, False),
    "TENSORS_SUCCESS": (File(KVS, TENSORS, data=b""), False),
    "TENSORS_CUSTOM_ALIGN": (File([*KVS, raw.alignment_pair(1)], TENSORS, alignment=1, data=b""), False),
    "DATA_SUCCESS": (File(KVS, TENSORS), True),
    "DATA_CUSTOM_ALIGN": (CUSTOM_ALIGN, True),
}


def test_all_of_llama_cpp_is_here():
    """33 kinds and the removed one; KV_BAD_TYPE stands for two."""
    assert len(LLAMA_REJECTS) - 1 + len(LLAMA_ACCEPTS) == 33 + 1


@pytest.mark.parametrize("kind", LLAMA_ACCEPTS)
def test_llama_cpp_accepts(tmp_path, kind):
    content, has_data = LLAMA_ACCEPTS[kind]
    path = tmp_path / "good.gguf"
    path.write_bytes(bytes(content))
    gguf = read_gguf(path, metadata_only=not has_data)
    assert len(gguf.metadata) == len(content.pairs)
    assert [(t.name, t.shape[::-1], BY_NAME[t.type.name].id, t.nbytes) for t in gguf.tensors.values()] == [
        (t.name, tuple(t.dims), t.type, t.nbytes) for t in content.tensors
    ]
    offsets = content.offsets()
    data = raw.counting_bytes(offsets[-1])
    for info, offset in zip(gguf.tensors.values(), offsets, strict=False):
        assert info.offset == len(content.header()) + offset
        if has_data:
            assert gguf.raw(info.name).tobytes() == data[offset : offset + info.nbytes]


def test_infos_without_data_are_refused_unless_metadata_only(refuse):
    refuse(LLAMA_ACCEPTS["TENSORS_SUCCESS"][0], "out-of-file")


def array_lies() -> dict[str, tuple[str, File]]:
    """Arrays of each element type that claim one element more than there is, and absurdly many."""
    lies = {}
    for kind, width in {**raw.WIDTH, raw.STRING: 8}.items():
        for count in (6, 2**61, 2**63, U64_MAX):
            content = File([raw.pair("key", raw.array(kind, bytes(5 * width), count))])
            # Without padding, so that it cannot pass for the elements that are missing.
            content.alignment = 1
            lies[f"array of type {kind} claims {count}"] = ("bad-count", content)
    return lies


def nested(depth: int) -> File:
    inner = raw.array(raw.U8, b"\x01", 1)
    levels = (raw.u32(raw.ARRAY) + raw.u64(1)) * depth
    return File([raw.pair("key", raw.u32(raw.ARRAY) + levels + inner)])


def zeros(mebibytes: int) -> bytes:
    return bytes(mebibytes << 20)


def pair_at_end(value: bytes) -> File:
    return File([raw.pair("key", value)], alignment=1)


ALIGNMENTS = [0, 3, 24, 2**20 + 32, 2**21, 2**31, 2**32 - 1]
WITHDRAWN = [4, 5, 31, 32, 33, 36, 37, 38]
BYTES32 = Tensor("b", (32,), raw.T_I8)

OURS = {
    **array_lies(),
    "five million f64 in 5 MB": ("bad-count", File([
        raw.pair("key", raw.array(raw.F64, zeros(5), 5_000_000))])),
    "n_kv fits one byte each": ("bad-count", File(n_pairs=1_000_000, data=zeros(2))),
    "n_tensors fits one byte each": ("bad-count", File(n_tensors=1_000_000, data=zeros(2))),
    "n_kv above the cap": ("bad-count", File(n_pairs=2**16 + 1, data=zeros(1))),
    "n_tensors above the cap": ("bad-count", File(n_tensors=2**16 + 1, data=zeros(3))),
    "24 bytes, 5e8 pairs": ("bad-count", File(n_pairs=500_000_000, alignment=1)),
    "string of one byte more than there is": ("bad-length", pair_at_end(
        raw.u32(raw.STRING) + raw.string("x", 2))),
    "string length + 8 wraps": ("bad-length", pair_at_end(raw.u32(raw.STRING) + raw.string("x", 2**64 - 8))),
    "string in an array too long": ("bad-length", pair_at_end(
        raw.array(raw.STRING, raw.string("ok") + raw.string("x", 2), 2))),
    "array of strings that ends early": ("truncated", pair_at_end(
        raw.array(raw.STRING, raw.string("x" * 8), 2))),
    "string above 64 MiB": ("bad-length", pair_at_end(
        raw.u32(raw.STRING) + raw.string(b"", (64 << 20) + 1) + zeros(65))),
    **{f"nested arrays, depth {depth}": ("nested-array", nested(depth)) for depth in (1, 2, 1000, 50_000)},
    **{f"alignment {a}": ("bad-alignment", File([raw.alignment_pair(a)], data=zeros(1))) for a in ALIGNMENTS},
    "alignment as u64": ("bad-alignment", File([raw.alignment_pair(32, raw.U64)])),
    "alignment as bool": ("bad-alignment", File([raw.alignment_pair(1, raw.BOOL)])),
    "alignment as array": ("bad-alignment", File([
        raw.pair("general.alignment", raw.array(raw.U32, raw.u32(32), 1))])),
    "pad wraps: nbytes 2**64 - 16": ("bad-shape", File(tensors=[
        Tensor(dims=[4, 1073741823, 1073741825, 1], offset=0)], data=b"")),
    "product wraps to 4": ("bad-shape", File(tensors=[
        Tensor(dims=[4194305, 4194305, 211106198978564], offset=0)], data=bytes(64))),
    "two dims of 2**40": ("bad-shape", File(tensors=[Tensor(dims=[2**40, 2**40], offset=0)], data=b"")),
    "a zero dim beside absurd ones": ("bad-shape", File(tensors=[Tensor(dims=[2**62, 2**62, 0], offset=0)])),
    "2**63 elements of no bytes": ("bad-shape", File(tensors=[Tensor(dims=[0, 2**63], offset=0)])),
    "row of a broken block": ("bad-shape", File(tensors=[Tensor(dims=[33, 32], type=raw.T_Q4_0)])),
    "n_dims 0": ("bad-shape", File(tensors=[Tensor(dims=[]), BYTES32])),
    "n_dims 1e6": ("bad-shape", File(tensors=[Tensor(n_dims=1_000_000)])),
    "n_dims 2**32 - 1": ("bad-shape", File(tensors=[Tensor(n_dims=2**32 - 1)])),
    **{f"withdrawn type {t}": ("bad-tensor-type", File(tensors=[Tensor(type=t)])) for t in WITHDRAWN},
    "type 2**32 - 1": ("bad-tensor-type", File(tensors=[Tensor(type=2**32 - 1)])),
    "same data twice": ("overlap", File(tensors=[Tensor("a", offset=0), Tensor("b", offset=0)])),
    "overlap by 32 bytes": ("overlap", File(tensors=[Tensor("a", offset=96), Tensor("b", offset=0)])),
    "one tensor inside another": ("overlap", File(tensors=[
        Tensor("a", (64,), offset=0), Tensor("b", (8,), offset=64), Tensor("c", offset=256)])),
    "offset just beyond the end": ("out-of-file", File(tensors=[Tensor("a", (8,), offset=32)])),
    "offset beyond the end": ("out-of-file", File(tensors=[Tensor(offset=2**62)])),
    "offset + nbytes wraps": ("out-of-file", File(tensors=[Tensor(offset=2**64 - 128)])),
    "empty tensor beyond the end": ("out-of-file", File(tensors=[Tensor(dims=[0], offset=64)])),
    "offset -1 behind a long header": ("misaligned", File(KVS, [Tensor(offset=U64_MAX)], data=zeros(1))),
    "offset -32 behind a long header": ("out-of-file", File(KVS, [Tensor(offset=2**64 - 32)], data=zeros(1))),
    "key with NUL": ("bad-name", File([raw.pair("general\0.alignment", VALUE)])),
    "key not UTF-8": ("bad-name", File([raw.pair(b"\xff", VALUE)])),
    "key of 65,536 bytes": ("bad-length", File([raw.pair("k" * 65536, VALUE)])),
    "name with NUL": ("bad-name", File(tensors=[Tensor("a\0b")])),
    "name not UTF-8": ("bad-name", File(tensors=[Tensor(b"\xff")])),
    "name empty": ("bad-name", File(tensors=[Tensor("")])),
    "name length lies": ("bad-length", File(tensors=[Tensor("x", name_length=U64_MAX)])),
    "same key twice, of many lines": ("duplicate-key", File([raw.pair("a\n\u2028\x1b[2J" * 999, VALUE)] * 2)),
    "big-endian": ("big-endian", struct.pack(">4sIQQ", b"GGUF", 3, 0, 0)),
    "big-endian version 2": ("big-endian", struct.pack(">4sIQQ", b"GGUF", 2, 0, 0)),
    "empty file": ("empty-file", b""),
    "three bytes": ("truncated", b"GGU"),
    "Git LFS pointer": ("git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\n"),
    "web page": ("web-page", b"<!DOCTYPE html>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
def test_refused(refuse, kind):
    code, content = OURS[kind]
    refuse(content, code)


def test_error_names_field_and_offset(refuse):
    header, key = 24, len(raw.string("key"))
    error = refuse(File([raw.pair("key", raw.array(raw.U32, b"", 9))], alignment=1), "bad-count")
    assert (error.field, error.offset) == ("key 'key'", header + key + 8)
    content = File(tensors=[Tensor("a"), Tensor("b", offset=13)])
    error = refuse(content, "misaligned")
    first, second = 8 + 1 + 4 + 8 + 4 + 8, 8 + 1 + 4 + 8 + 4
    assert (error.field, error.offset) == ("tensor[1].offset", header + first + second)
    error = refuse(File([raw.pair("key", raw.u32(raw.STRING) + raw.string("x", 99))], alignment=1))
    assert (error.field, error.offset) == ("key 'key'", header + key + 4)
    error = refuse(File(tensors=[Tensor(dims=[33], type=raw.T_Q4_0)]), "bad-shape")
    assert (error.field, error.offset) == ("tensor[0].dims[0]", header + len(raw.string("my_tensor")) + 4)


def test_huge_sparse_file_is_not_read_into_memory(tmp_path):
    """A file may truly have the bytes it claims and still cost nothing to make: 1 TiB of holes."""
    for kind, code in ((raw.U8, "bad-count"), (raw.STRING, "bad-count")):
        path = tmp_path / f"sparse{kind}.gguf"
        path.write_bytes(File([raw.pair("key", raw.array(kind, b"", 2**36))], alignment=1).header())
        os.truncate(path, 2**40)
        refused(path, code)
    path = tmp_path / "header.gguf"
    path.write_bytes(File([raw.pair("key", raw.array(raw.U8, b"", 2**27))], alignment=1).header())
    os.truncate(path, 2**40)
    refused(path, "header-too-large")


def test_truncation_at_every_byte(tmp_path):
    good = raw.small_file()
    path = tmp_path / "cut.gguf"
    path.write_bytes(good)
    read_gguf(path, strict=True)
    for length in reversed(range(len(good))):
        os.truncate(path, length)
        with pytest.raises(FormatError) as caught:
            read_gguf(path)
        assert caught.value.code in ("empty-file", "truncated", "bad-count", "bad-length", "out-of-file")


GOOD = raw.small_file()
EDGES = [0, 1, 2**7, 2**8 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


def overwritten(data: bytes, at: int, value: int, width: int) -> bytes:
    patch = (value % 256**width).to_bytes(width, "little")
    return (data[:at] + patch + data[at + width :])[: len(data)]


PATCHES = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1)),
              st.sampled_from([1, 2, 4, 8])),
    min_size=1, max_size=3,
)  # fmt: skip


@examples(1500)
@given(patches=PATCHES, strict=st.booleans())
@example(patches=[(4, 0x30000, 4)], strict=False)
def test_any_mutation_is_read_or_refused(tmp_path, patches, strict):
    """Whatever 1 to 3 fields of a good file are overwritten with, nothing but FormatError comes out.

    A tensor that is found must lie in the file, and every value must be readable or refused in turn.
    """
    content = GOOD
    for at, value, width in patches:
        content = overwritten(content, at, value, width)
    path = tmp_path / "mutant.gguf"
    path.write_bytes(content)
    try:
        gguf = read_gguf(path, strict=strict)
        for name, info in gguf.tensors.items():
            assert gguf.raw(name).nbytes == info.nbytes
            assert gguf.data_start <= info.offset <= len(content) - info.nbytes
        for key in gguf.metadata:
            assert gguf.metadata[key] is not None
    except FormatError as error:
        assert str(error).isprintable()
