"""The GGUF reader on files it must accept: what it returns, and that another reader returns the same."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from assay.formats.containers.gguf import GGUF, Metadata, read_gguf
from assay.formats.errors import FormatError
from tests import gguf_files as raw
from tests.gguf_files import File, Tensor


@pytest.fixture
def read(tmp_path: Path):
    """``read(content, **options)``: the bytes as a file, opened."""

    def _read(content: File | bytes, **options: bool) -> GGUF:
        path = tmp_path / "model.gguf"
        path.write_bytes(bytes(content))
        return read_gguf(path, **options)

    return _read


@pytest.fixture
def metadata(read):
    """``metadata(*pairs)``: a file of these pairs and no tensor."""

    def _metadata(*pairs: bytes) -> Metadata:
        return read(File(list(pairs))).metadata

    return _metadata


def test_small_file(read):
    gguf = read(raw.small_file(), strict=True)
    assert (gguf.version, gguf.alignment, gguf.warnings) == (3, 32, ())
    assert gguf.size == len(raw.small_file())
    assert list(gguf.metadata) == [
        "general.architecture", "a.integer", "a.truth", "a.float", "some.words", "some.numbers",
    ]  # fmt: skip
    assert gguf.metadata["some.words"] == ["eins", "", "drei"]
    assert gguf.metadata["a.truth"] is True
    matrix = gguf.tensors["matrix"]
    assert matrix.shape == (3, 32)
    assert (matrix.type.name, matrix.nbytes, matrix.offset) == ("Q4_0", 54, gguf.data_start)
    assert gguf.tensors["vector"].offset == gguf.data_start + 64


def test_version_2_has_the_layout_of_version_3(read):
    gguf = read(File(version=2, tensors=[Tensor()]))
    assert gguf.version == 2 and gguf.tensors["my_tensor"].shape == (32,)


def test_raw_is_a_read_only_view(read):
    data = read(raw.small_file()).raw("vector")
    assert data.dtype == np.uint8 and data.tobytes() == raw.counting_bytes(96)[64:]
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_every_tensor_type_has_its_size(read):
    tensors = [Tensor(f"t{kind}", (2 * block, 3), kind) for kind, (block, _) in raw.BLOCKS.items()]
    gguf = read(File(tensors=tensors), strict=True)
    for tensor in tensors:
        assert gguf.tensors[str(tensor.name)].nbytes == 6 * raw.BLOCKS[tensor.type][1]


def test_metadata_larger_than_the_read_window(read):
    """Strings and numbers that straddle the window's border at every phase come out whole."""
    words = [f"{i:x}" * (i % 11) for i in range(70_000)]
    numbers = np.arange(600_000, dtype=np.int32)
    value = raw.array(raw.STRING, b"".join(map(raw.string, words)), len(words))
    long = "ä" * 1_500_000
    gguf = read(File([
        raw.pair("words", value),
        raw.pair("numbers", raw.array(raw.I32, numbers.tobytes(), len(numbers))),
        raw.pair("long", raw.u32(raw.STRING) + raw.string(long)),
        raw.pair("words_again", value),
    ]), strict=True)  # fmt: skip
    assert gguf.metadata.strings("words") == words == gguf.metadata.strings("words_again")
    np.testing.assert_array_equal(gguf.metadata.integers("numbers"), numbers)
    assert gguf.metadata.string("long") == long


@pytest.mark.parametrize(("kind", "value"), [
    (raw.U8, 255), (raw.I8, -128), (raw.U16, 65535), (raw.I16, -32768),
    (raw.U32, 2**32 - 1), (raw.I32, -(2**31)), (raw.U64, 2**64 - 1), (raw.I64, -(2**63)),
])  # fmt: skip
def test_integer_of_every_width(metadata, kind, value):
    got = metadata(raw.pair("k", raw.scalar(kind, value))).integer("k")
    assert got == value and type(got) is int


@pytest.mark.parametrize("kind", [raw.F32, raw.F64])
@pytest.mark.parametrize("value", [0.5, math.inf, math.nan])
def test_floating_may_be_anything_ieee(metadata, kind, value):
    got = metadata(raw.pair("k", raw.scalar(kind, value))).floating("k")
    assert type(got) is float and (got == value or (math.isnan(got) and math.isnan(value)))


INTEGER, FLOAT, TRUTH = raw.scalar(raw.U32, 1), raw.scalar(raw.F32, 1.0), raw.scalar(raw.BOOL, 1)
TEXT = raw.u32(raw.STRING) + raw.string("x")
TEXTS, INTEGERS = raw.array(raw.STRING, raw.string("x"), 1), raw.array(raw.U32, raw.u32(1), 1)
ACCESSORS = {"integer": INTEGER, "floating": FLOAT, "boolean": TRUTH, "string": TEXT, "strings": TEXTS,
             "integers": INTEGERS}  # fmt: skip


@pytest.mark.parametrize("accessor", ACCESSORS)
@pytest.mark.parametrize("stored", ACCESSORS)
def test_accessor_takes_its_own_type_only(metadata, accessor, stored):
    take = getattr(metadata(raw.pair("k", ACCESSORS[stored])), accessor)
    if accessor == stored:
        take("k")
        return
    with pytest.raises(FormatError) as caught:
        take("k")
    # Header 24, key length 8, key 1, type 4 and, in an array, 12 more: where the value begins.
    where = 37 + 12 * (stored in ("strings", "integers"))
    assert (caught.value.code, caught.value.field, caught.value.offset) == ("bad-value", "key 'k'", where)
    assert "must be" in str(caught.value)


@pytest.mark.parametrize("accessor", ACCESSORS)
def test_missing_key(metadata, accessor):
    take = getattr(metadata(), accessor)
    assert take("k", default=None) is None
    with pytest.raises(FormatError) as caught:
        take("k")
    assert caught.value.code == "missing-key" and "Convert" in str(caught.value)


def test_mapping(metadata):
    pairs = metadata(raw.pair("k", INTEGER), raw.pair("bad", raw.u32(raw.STRING) + raw.string(b"\xff")))
    assert "k" in pairs and "absent" not in pairs and pairs.get("absent") is None
    assert "bad" in pairs  # without interpreting it
    assert pairs.type_of("k") == "uint32" and len(pairs) == 2


@pytest.mark.parametrize(("value", "accessor"), [
    (raw.scalar(raw.BOOL, 2), "boolean"),
    (raw.array(raw.BOOL, b"\x00\x01\x02", 3), "__getitem__"),
    (raw.u32(raw.STRING) + raw.string(b"ab\xff"), "string"),
    (raw.array(raw.STRING, raw.string("ok") + raw.string(b"\xc3"), 2), "strings"),
], ids=["bool", "array of bool", "string", "array of string"])  # fmt: skip
def test_bad_bools_and_strings_are_rejected_when_used(read, value, accessor):
    content = File([raw.pair("k", value)])
    with pytest.raises(FormatError) as caught:
        getattr(read(content).metadata, accessor)("k")
    assert caught.value.code == "bad-value"
    with pytest.raises(FormatError) as caught:
        read(content, strict=True)
    assert caught.value.code == "bad-value"


FIRST, SECOND = Tensor("first"), Tensor("second")
ODD = {
    "hole": ("not-contiguous", File(tensors=[FIRST, Tensor("second", offset=192)], data=bytes(320))),
    "reordered": ("not-contiguous", File(tensors=[Tensor("first", offset=128), Tensor("second", offset=0)])),
    "trailing bytes": ("trailing-bytes", File(tensors=[FIRST], data=bytes(129))),
    "no final padding": ("missing-padding", File(tensors=[Tensor("t", (33,), raw.T_I8)], data=bytes(33))),
    "key not ASCII": ("bad-key", File([raw.pair("schlüssel", INTEGER)])),
    "alignment below 8": ("bad-alignment", File([raw.alignment_pair(4)], alignment=4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_oddity_is_a_warning_and_in_strict_mode_an_error(read, kind):
    code, content = ODD[kind]
    warnings = read(content).warnings
    assert len(warnings) == 1 and "\n" not in warnings[0]
    with pytest.raises(FormatError) as caught:
        read(content, strict=True)
    assert caught.value.code == code


def test_reordered_tensors_are_found_by_offset(read):
    gguf = read(ODD["reordered"][1])
    assert gguf.raw("first").tobytes() == raw.counting_bytes(256)[128:]
    assert gguf.raw("second").tobytes() == raw.counting_bytes(128)


@pytest.mark.parametrize(("name", "metadata_only", "code"), [
    ("absent", False, "missing-tensor"), ("vector", True, "no-data"),
])  # fmt: skip
def test_raw_without_data(read, name, metadata_only, code):
    with pytest.raises(FormatError) as caught:
        read(raw.small_file(), metadata_only=metadata_only).raw(name)
    assert caught.value.code == code


# The `gguf` package as the other reader. Left out: Q8_1, a block of which it takes for 40 bytes, ggml for 36.
TYPES = [GGMLQuantizationType(kind) for kind in raw.BLOCKS if kind != GGMLQuantizationType.Q8_1]
SCALARS = [GGUFValueType(kind) for kind in (*raw.WIDTH, raw.STRING)]


def random_value(rng: np.random.Generator, kind: GGUFValueType):
    if kind == GGUFValueType.STRING:
        return "".join(map(chr, rng.integers(0x20, 0xD7FF, rng.integers(12))))
    if kind == GGUFValueType.BOOL:
        return bool(rng.integers(2))
    # NaN would be unequal to itself, so floats are drawn as numbers; integers as any bit pattern.
    number = raw.FORMAT[int(kind)]
    return float(np.float32(rng.normal())) if number in "fd" else struct.unpack(
        "<" + number, rng.bytes(raw.WIDTH[int(kind)]))[0]  # fmt: skip


def write_random(path: Path, seed: int) -> dict[str, object]:
    """A random file by GGUFWriter; returns its pairs."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "test")
    pairs: dict[str, object] = {}
    for i in range(25):
        kind = SCALARS[rng.integers(len(SCALARS))]
        if is_array := bool(rng.integers(2)):
            value = [random_value(rng, kind) for _ in range(rng.integers(1, 9))]
        else:
            value = random_value(rng, kind)
        pairs[f"key.{i}"] = value
        writer.add_key_value(f"key.{i}", value, GGUFValueType.ARRAY if is_array else kind,
                             kind if is_array else None)  # fmt: skip
    if alignment := int(rng.choice([0, 8, 64])):
        writer.add_custom_alignment(alignment)
    for i in range(rng.integers(1, 12)):
        kind = TYPES[rng.integers(len(TYPES))]
        rows = (*rng.integers(1, 4, rng.integers(3)), rng.integers(1, 4) * raw.BLOCKS[kind][1])
        writer.add_tensor(f"tensor.{i}", rng.integers(0, 256, rows, np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pairs


@pytest.mark.parametrize("seed", range(20))
def test_reads_what_the_gguf_package_writes_and_reads(tmp_path, seed):
    path = tmp_path / "random.gguf"
    pairs = write_random(path, seed)
    ours, theirs = read_gguf(path, strict=True), GGUFReader(path)
    for key, value in pairs.items():
        got = ours.metadata[key]
        assert (got.tolist() if isinstance(got, np.ndarray) else got) == value
    assert set(ours.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    assert (ours.alignment, ours.data_start) == (theirs.alignment, theirs.data_offset)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(tensor.shape.tolist()[::-1])
        assert (info.type.name, info.nbytes, info.offset) == (
            tensor.tensor_type.name, tensor.n_bytes, tensor.data_offset)  # fmt: skip
        np.testing.assert_array_equal(ours.raw(tensor.name), tensor.data.reshape(-1).view(np.uint8))
