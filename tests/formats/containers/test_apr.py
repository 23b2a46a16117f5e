"""The APR reader on files it must accept: what it returns, trap by trap of the format."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from assay.formats import FormatError
from assay.formats.containers.apr import Apr, read_apr
from assay.formats.containers.gguf import GGUF
from assay.formats.containers.opening import open_container
from assay.formats.model_file import tensor_of
from tests import apr_files as raw
from tests.apr_files import File, Tensor
from tests.random_blocks import random_blocks


@pytest.fixture
def read(tmp_path: Path):
    """``read(content, **options)``: the bytes as a file, opened."""

    def _read(content: File | bytes, **options: bool) -> Apr:
        path = tmp_path / "model.apr"
        path.write_bytes(bytes(content))
        return read_apr(path, **options)

    return _read


def f32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def values_of(apr: Apr, name: str) -> np.ndarray:
    return tensor_of(apr, apr.tensors[name]).decode()


def test_small_file(read):
    apr = read(raw.small_file(), strict=True)
    assert (apr.format, apr.warnings, apr.size) == ("apr", (), len(raw.small_file()))
    assert dict(apr.metadata) == {"name": "small", "numbers": [1, 2, 3], "tokenizer.vocabulary": ["a", "Ġb"]}
    assert list(apr.tensors) == ["a.vector", "b.matrix", "c.words"]
    matrix, vector, words = (apr.tensors[name] for name in ("b.matrix", "a.vector", "c.words"))
    assert (matrix.type.name, matrix.shape, matrix.nbytes) == ("Q4_K", (2, 300), 2 * 2 * 144)
    start = apr.header.data_offset
    assert (matrix.offset, vector.offset, words.offset) == (start, start + 576, start + 640)
    assert apr.raw("b.matrix").tobytes() == raw.counting_bytes(576)


def test_the_format_is_told_by_the_bytes_not_the_name(tmp_path):
    from assay.goldens import BUILTIN

    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())
    assert isinstance(open_container(path), Apr)
    assert isinstance(open_container(BUILTIN), GGUF)


def test_trap_1_the_header_checksum_leaves_its_field_out(read):
    """Taken as zero, as CRC fields usually are, it would be another number."""
    content = raw.small_file()
    header = content[:64]
    left_out = raw.binascii.crc32(header[:40] + header[44:])
    as_zero = raw.binascii.crc32(header[:40] + bytes(4) + header[44:])
    assert read(content).header.checksum == left_out != as_zero
    with pytest.raises(FormatError, match="bad-checksum"):
        read(content[:40] + struct.pack("<I", as_zero) + content[44:])


def test_trap_2_the_metadata_size_is_unpadded(read):
    for extra in range(130):
        apr = read(File({"pad": "x" * extra}, [Tensor()]), strict=True)
        assert apr.metadata["pad"] == "x" * extra
        assert apr.header.metadata_size == len(json.dumps({"pad": "x" * extra}, separators=(",", ":")))
        assert apr.header.index_offset % 64 == 0


def test_trap_3_data_may_be_in_another_order_than_the_index(read):
    tensors = [Tensor(name, data=f32(*[i] * 8)) for i, name in enumerate(["z", "m", "a"])]
    apr = read(File({}, tensors), strict=True)
    assert list(apr.tensors) == ["a", "m", "z"]
    assert [apr.tensors[name].offset - apr.header.data_offset for name in apr.tensors] == [128, 64, 0]
    assert [values_of(apr, name)[0] for name in apr.tensors] == [2, 1, 0]


TYPES = {3: "F64", 4: "I32", 5: "I64", 6: "I8", 7: "U8", 8: "APR_Q4", 9: "APR_Q8", 128: "APR_Q4", 129: "APR_Q8",
         0: "F32", 1: "F16", 30: "BF16", 12: "Q4_K", 14: "Q6_K"}  # fmt: skip


def test_trap_4_the_type_codes_are_not_those_of_ggml(read):
    """3, 6, 7, 8 and 9 are Q4_1, Q5_0, Q5_1, Q8_0 and Q8_1 there."""
    apr = read(File({}, [Tensor(f"t{code:03}", (2, 32), code) for code in TYPES]), strict=True)
    assert {int(name[1:]): info.type.name for name, info in apr.tensors.items()} == TYPES
    assert apr.tensors["t003"].nbytes == 512 and apr.tensors["t008"].nbytes == 36 and apr.tensors["t009"].nbytes == 68


@pytest.mark.parametrize("code", [raw.APR_Q4, 8])
def test_trap_5_apr_q4_packs_neighbours_in_a_byte(read, code):
    """Written out: element e of a block is e % 16 - 8, times the scale."""
    nibbles = bytes((2 * k % 16) | (2 * k + 1) % 16 << 4 for k in range(16))
    block = struct.pack("<e", 0.5) + nibbles
    apr = read(File({}, [Tensor("t", (2, 32), code, block + struct.pack("<e", -2) + nibbles)]))
    expected = np.arange(32) % 16 - 8
    assert np.array_equal(values_of(apr, "t"), np.stack([expected * 0.5, expected * -2.0]))
    assert apr.row_type("t").name == "Q4_0"  # the same values in ggml's order of nibbles, for every engine
    theirs = quants.dequantize(np.array(apr.rows("t")), GGMLQuantizationType.Q4_0)
    assert np.array_equal(theirs, values_of(apr, "t"))


def test_apr_q4_blocks_run_on_from_row_to_row(read):
    """3 rows of 20: 60 elements in 2 blocks, the second for elements 32 to 59 and four of padding."""
    q = np.arange(64) * 7 % 16
    packed = bytes(int(q[2 * k] | q[2 * k + 1] << 4) for k in range(32))
    data = struct.pack("<e", 1) + packed[:16] + struct.pack("<e", 4) + packed[16:]
    apr = read(File({}, [Tensor("t", (3, 20), raw.APR_Q4, data)]))
    expected = (q - 8.0) * np.repeat([1, 4], 32)
    tensor = tensor_of(apr, apr.tensors["t"])
    assert np.array_equal(tensor.decode(), expected[:60].reshape(3, 20))
    assert np.array_equal(tensor.rows(1, 2), expected[None, 20:40])
    assert (tensor.type.name, tensor.stored) == ("F32", "APR_Q4")


@pytest.mark.parametrize(("shape", "scale", "value"), [
    ((1, 32), 2.0**-14, 7 * 2.0**-14), ((1, 32), 2.0**-15, 0), ((1, 32), -(2.0**-24), 0),
    ((4, 8), 2.0**-14, 7 * 2.0**-14), ((4, 8), 2.0**-15, 0),
])  # fmt: skip
def test_a_subnormal_scale_of_apr_q4_counts_as_zero(read, shape, scale, value):
    apr = read(File({}, [Tensor("t", shape, raw.APR_Q4, struct.pack("<e", scale) + b"\xff" * 16)]))
    assert np.array_equal(values_of(apr, "t"), np.full(shape, value, np.float32))


@pytest.mark.parametrize("code", [raw.APR_Q8, 9])
def test_trap_6_apr_q8_has_one_scale_for_the_whole_tensor(read, code):
    q = np.arange(-127, 127, dtype=np.int8)[:250]
    apr = read(File({}, [Tensor("t", (5, 50), code, f32(0.25) + q.tobytes())]))
    tensor = tensor_of(apr, apr.tensors["t"])
    assert np.array_equal(tensor.decode(), (q * np.float32(0.25)).reshape(5, 50))
    assert np.array_equal(tensor.rows(2, 4), (q * np.float32(0.25)).reshape(5, 50)[2:4])
    assert (tensor.type.name, tensor.stored, tensor.nbytes) == ("F32", "APR_Q8", 254)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
@pytest.mark.parametrize("width", [1, 255, 256, 257, 300, 896])
def test_trap_7_rows_are_padded_one_by_one(read, kind, width):
    """Decoded flat, every row after the first would begin with padding of the one before."""
    blocks = random_blocks(kind, 3 * -(-width // 256))
    code = {"Q4_K": raw.Q4_K, "Q6_K": raw.Q6_K}[kind]
    apr = read(File({}, [Tensor("t", (3, width), code, blocks.tobytes())]), strict=True)
    whole = quants.dequantize(blocks, GGMLQuantizationType[kind]).reshape(3, -1)
    tensor = tensor_of(apr, apr.tensors["t"])
    assert np.array_equal(tensor.decode(), whole[:, :width])
    assert np.array_equal(tensor.rows(1, 3), whole[1:, :width])
    assert tensor.row_elements == whole.shape[1] and tensor.raw().shape == (3, tensor.row_bytes)


def test_trap_8_the_shape_is_rows_first(read):
    """GGUF would say (3, 2) of the same bytes."""
    apr = read(File({}, [Tensor("t", (2, 3), raw.F32, f32(1, 2, 3, 4, 5, 6))]))
    assert values_of(apr, "t").tolist() == [[1, 2, 3], [4, 5, 6]]


def test_trap_9_of_a_key_that_occurs_twice_the_last_counts(read):
    apr = read(File(b'{"hidden_size":null,"name":"a","hidden_size":896,"name":"b"}'))
    assert (apr.metadata["name"], apr.metadata.integer("hidden_size")) == ("b", 896)


def test_trap_9_null_beside_an_alias_is_absent(read):
    apr = read(File(b'{"hidden_size":null,"n_embd":896,"hidden_dim":null,"model.hidden_size":896}'))
    assert apr.metadata.integer("hidden_size") == 896
    assert apr.metadata.names_of("hidden_size") == ("n_embd", "model.hidden_size")


ALIASES = {
    "hidden_size": ["hidden_dim", "d_model", "n_embd"],
    "num_layers": ["n_layers", "num_hidden_layers", "n_layer"],
    "num_heads": ["n_heads", "num_attention_heads", "n_head"],
    "num_kv_heads": ["n_kv_heads", "num_key_value_heads"],
    "vocab_size": ["n_vocab"],
    "intermediate_size": ["ffn_dim", "intermediate_dim", "n_inner"],
    "max_position_embeddings": ["max_seq_len", "context_length", "n_ctx"],
}


@pytest.mark.parametrize("key", ALIASES)
def test_every_alias_is_understood_and_none_may_differ(read, key):
    for alias in [key, *ALIASES[key], f"model.{key}"]:
        assert read(File({alias: 7})).metadata.integer(key) == 7
        if alias != key:
            with pytest.raises(FormatError, match="bad-value"):
                read(File({key: 8, alias: 7})).metadata.integer(key)


@pytest.mark.parametrize("alias", ["layer_norm_eps", "norm_eps", "model.rms_norm_eps"])
def test_numbers_agree_if_they_do_in_f32(read, alias):
    """One name has the decimal digits, the other what is left of them in f32."""
    assert read(File({"rms_norm_eps": 1e-6, alias: 9.999999974752427e-07})).metadata.floating("rms_norm_eps") == 1e-6
    with pytest.raises(FormatError, match="bad-value"):
        read(File({"rms_norm_eps": 1e-6, alias: 1e-5})).metadata.floating("rms_norm_eps")


ACCESSES: dict[str, tuple[str, Any]] = {
    "a bool is not an integer": ("integer", True), "a float is not an integer": ("integer", 24.0),
    "text is not an integer": ("integer", "24"), "a bool is not a number": ("floating", False),
    "an integer beyond any float": ("floating", 10**400), "an integer is not a bool": ("boolean", 1),
    "a string is not an array": ("strings", "ab"), "an array of two kinds": ("strings", ["a", 1]),
    "null in an array": ("strings", ["a", None]), "bools are not integers": ("integers", [1, True]),
    "floats are not integers": ("integers", [1.0]), "an array is not an object": ("table", []),
    "an object is not a string": ("string", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCESSES)
def test_a_value_of_another_type_is_refused(read, case):
    accessor, value = ACCESSES[case]
    meta = read(File({"key": value})).metadata
    with pytest.raises(FormatError, match="bad-value"):
        getattr(meta, accessor)("key")
    with pytest.raises(FormatError, match="missing-key"):
        getattr(meta, accessor)("other")
    assert getattr(meta, accessor)("other", default=None) is None


def test_an_integer_may_stand_for_a_number(read):
    assert read(File({"rope_theta": 1000000})).metadata.floating("rope_theta") == 1e6


def test_trap_12_the_footer_is_checked_when_asked(read):
    content = bytearray(raw.small_file())
    content[-100] ^= 1
    apr = read(bytes(content))  # opening does not read the data
    with pytest.raises(FormatError, match="bad-checksum") as caught:
        apr.verify()
    assert caught.value.offset == len(content) - 4
    with pytest.raises(FormatError, match="bad-checksum"):
        read(bytes(content), strict=True)
    assert read(raw.small_file()).verify()


def test_a_file_without_footer_is_read_with_a_warning(read):
    """Two of the ten files that upstream measured end so (its #2612)."""
    apr = read(raw.small_file()[:-4])
    assert "no footer" in apr.warnings[0] and not apr.verify()
    with pytest.raises(FormatError, match="missing-footer"):
        read(raw.small_file()[:-4], strict=True)


def test_trap_14_flags_are_no_facts(read):
    """QUANTIZED and HAS_VOCAB without either, and the reverse."""
    read(File({}, [Tensor()], flags=raw.ROW_MAJOR | 0x0220), strict=True)
    read(File({"tokenizer.vocabulary": ["a"]}, [Tensor("t", (256,), raw.Q4_K)], flags=0), strict=True)


def test_shapes_without_rows(read):
    tensors = [Tensor("a", ()), Tensor("b", (0,)), Tensor("c", (3, 0)), Tensor("d", (0, 300), raw.Q4_K),
               Tensor("e", (0, 4), raw.APR_Q4), Tensor("f", (0,), raw.APR_Q8, b"", size=0),
               Tensor("g", (2, 1, 3)), Tensor("h", (1,) * 8)]  # fmt: skip
    apr = read(File({}, tensors), strict=True)
    for tensor in tensors:
        assert values_of(apr, str(tensor.name)).shape == tuple(tensor.dims)


def test_the_map_is_a_view_and_can_be_let_go(read):
    apr = read(raw.small_file())
    view = apr.raw("a.vector")
    assert not view.flags.owndata and not view.flags.writeable
    apr.release()
    assert view.tobytes() == raw.counting_bytes(32)
