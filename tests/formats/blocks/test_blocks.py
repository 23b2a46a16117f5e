"""Block decoders against the ``gguf`` package (bit for bit), against blocks worked out by hand, and themselves."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from assay.formats import ModelError, blocks
from assay.formats.blocks.ggml_types import BY_ID, BY_NAME
from tests.random_blocks import HALVES, random_blocks

QUANTISED = [name for name in blocks.DECODABLE if name not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("type_name", blocks.DECODABLE)
def test_bits_equal_those_of_the_gguf_package(type_name: str) -> None:
    raw = random_blocks(type_name, 2 * 256).reshape(2, -1)
    ours = blocks.dequantize(type_name, raw)
    # gguf's own decoding of subnormal bf16 and of -0 minus 0 is exact too, so no tolerance is needed anywhere
    expected = np.ascontiguousarray(quants.dequantize(raw, GGMLQuantizationType[type_name]), np.float32)
    wrong = np.argwhere(ours.view(np.uint32) != expected.view(np.uint32))
    if len(wrong):
        at = tuple(wrong[0])
        pytest.fail(f"{type_name}{at}: {ours[at]!r} {ours.view(np.uint32)[at]:08x} is not "
                    f"{expected[at]!r} {expected.view(np.uint32)[at]:08x}; {len(wrong)} differ")


def test_the_decodable_types_are_these_fifteen() -> None:
    assert set(blocks.DECODABLE) == {
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "IQ4_NL", "IQ4_XS",
    }  # fmt: skip


def test_the_size_table_is_that_of_the_gguf_package() -> None:
    theirs = {t.value: sizes for t, sizes in GGML_QUANT_SIZES.items() if t.name != "Q8_1"}  # 40 there: an old layout
    ours = {t.id: (t.block_elements, t.block_bytes) for t in BY_ID.values() if t.id in theirs}
    assert ours == {i: tuple(sizes) for i, sizes in theirs.items()}


def by_hand(type_name: str, fields: dict[int, list[int]]) -> np.ndarray:
    """A block of zeros with bytes set from each offset on, decoded."""
    raw = np.zeros((1, BY_NAME[type_name].block_bytes), np.uint8)
    for at, values in fields.items():
        raw[0, at : at + len(values)] = values
    return blocks.dequantize(type_name, raw)[0]


ONE, TWO = [0x00, 0x3C], [0x00, 0x40]  # 1.0 and 2.0 in f16, little-endian


def test_q4_0_by_hand() -> None:
    y = by_hand("Q4_0", {0: TWO, 2: [0xF1]})  # low nibble 1 -> element 0, high nibble 15 -> element 16
    assert (y[0], y[16], y[1]) == (2 * (1 - 8), 2 * (15 - 8), 2 * (0 - 8))


def test_q5_0_by_hand() -> None:
    y = by_hand("Q5_0", {0: ONE, 2: [0x01, 0x00, 0x02, 0x80], 6: [0x21]})
    # bits 0, 17 and 31 of qh are set: elements 0, 17 and 31 gain 16
    assert (y[0], y[1], y[16], y[17], y[31]) == (1 + 16 - 16, -16, 2 - 16, 0, 0)


def test_q8_0_by_hand() -> None:
    y = by_hand("Q8_0", {0: TWO, 2: [0x80, 0x7F]})
    assert (y[0], y[1], y[2]) == (-256, 254, 0)


def test_q4_k_by_hand() -> None:
    # scale 0 = 3, scale 4 = 2 + 16·2 (its high bits sit on top of scale 0), min 4 = 5 + 16·1 (on top of min 0 = 7)
    y = by_hand("Q4_K", {0: ONE, 2: TWO, 4: [3 | 2 << 6], 8: [7 | 1 << 6], 12: [2 | 5 << 4], 16: [0xA9], 80: [0x0B]})
    assert y[0] == 3 * 9 - 2 * 7  # low nibble of the first byte, group 0
    assert y[32] == 0  # high nibble: group 1, whose scale and min are 0
    assert y[1] == -2 * 7
    assert y[128] == 34 * 11 - 2 * 21  # qs[64]: group 4


def test_q6_k_by_hand() -> None:
    # ql[0] = 0x21, qh[0] = 0b11_10_01_00: elements 0, 32, 64, 96 take bit pairs 0, 1, 2, 3
    scales = [0xFF, 0, 2, 0, 3, 0, 1, 0]  # scale 0 is -1: signed
    y = by_hand("Q6_K", {0: [0x21], 32: [0x43], 128: [0b11100100], 192: scales, 208: TWO})
    assert y[0] == 2 * -1 * (1 + 16 * 0 - 32)
    assert y[32] == 2 * 2 * (3 + 16 * 1 - 32)
    assert y[64] == 2 * 3 * (2 + 16 * 2 - 32)
    assert y[96] == 2 * 1 * (4 + 16 * 3 - 32)


@pytest.mark.parametrize("type_name", QUANTISED)
def test_unpacked_integers_make_the_decoded_values(type_name: str) -> None:
    raw = random_blocks(type_name, 64)
    q, scale, d, minimum, dmin = blocks.unpack(type_name, raw)
    assert all(a.dtype == np.int8 for a in (q, scale))
    group = q.shape[-1] // scale.shape[-1]
    values = d[..., None].astype(np.float64) * scale.repeat(group, -1) * q
    if minimum is not None and dmin is not None:
        values -= dmin[..., None].astype(np.float64) * minimum.repeat(group, -1)
    assert np.array_equal(values.astype(np.float32), blocks.dequantize(type_name, raw).reshape(values.shape))


@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E01], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("type_name", QUANTISED)
def test_finite_sees_each_bad_scale(type_name: str, bad: int) -> None:
    raw = random_blocks(type_name, 8)
    assert blocks.finite(type_name, raw)
    for at in HALVES[type_name]:
        spoiled = raw.copy()
        spoiled[5, at : at + 2] = [bad & 255, bad >> 8]
        assert not blocks.finite(type_name, spoiled)


def test_finite_looks_at_every_value_of_a_float_type() -> None:
    values = np.ones((2, 8), np.float32)
    assert blocks.finite("F32", values.view(np.uint8))
    values[1, 7] = np.nan
    assert not blocks.finite("F32", values.view(np.uint8))


@pytest.mark.parametrize("call", [blocks.dequantize, blocks.unpack, blocks.finite])
def test_an_undecodable_type_is_a_model_error(call) -> None:
    with pytest.raises(ModelError, match="IQ1_S"):
        call("IQ1_S", np.zeros((1, 50), np.uint8))


def test_rows_that_are_not_whole_blocks_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="multiple of 144"):
        blocks.dequantize("Q4_K", np.zeros((1, 145), np.uint8))


@pytest.mark.parametrize("type_name", blocks.DECODABLE)
def test_any_leading_axes_are_kept_even_empty_ones(type_name: str) -> None:
    kind = BY_NAME[type_name]
    raw = random_blocks(type_name, 12).reshape(2, 3, 2 * kind.block_bytes)
    flat = blocks.dequantize(type_name, raw.reshape(-1))
    assert np.array_equal(blocks.dequantize(type_name, raw), flat.reshape(2, 3, 2 * kind.block_elements))
    assert blocks.dequantize(type_name, raw[:, :0]).shape == (2, 0, 2 * kind.block_elements)


def test_an_infinite_scale_decodes_without_a_warning() -> None:
    y = by_hand("Q4_K", {0: [0x00, 0x7C], 4: [1], 16: [0x01]})  # d = inf; q[0] = 1, q[1] = 0
    assert y[0] == np.inf
    assert np.isnan(y[1])  # inf * 0, which NumPy would warn about and `filterwarnings = error` would raise


@pytest.mark.parametrize("type_name", [name for name in blocks.ENCODABLE if name in QUANTISED])
def test_packing_undoes_unpacking_byte_for_byte(type_name: str) -> None:
    raw = random_blocks(type_name, 96).reshape(2, 3, -1)
    assert np.array_equal(blocks.pack(type_name, blocks.unpack(type_name, raw)), raw)


def test_the_types_that_can_be_written_are_these_eleven() -> None:
    assert set(blocks.ENCODABLE) == {
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K",
    }  # fmt: skip


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_encoding_a_float_type_is_that_of_the_gguf_package(type_name: str) -> None:
    bits = np.random.default_rng(3).integers(0, 1 << 32, 4096, dtype=np.uint32)
    ties = np.arange(0x3F80_0000, 0x3F84_0000, 0x0800, dtype=np.uint32)  # halfway between bf16 and f16 neighbours
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values)].reshape(1, -1)
    with np.errstate(over="ignore"):
        expected = quants.quantize(values, GGMLQuantizationType[type_name]).view(np.uint8)
    assert np.array_equal(blocks.encode(type_name, values), expected)


def test_a_type_that_cannot_be_written_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="read but not write"):
        blocks.pack("Q2_K", blocks.unpack("Q2_K", random_blocks("Q2_K", 1)))
    with pytest.raises(ModelError, match="not a float type"):
        blocks.encode("Q2_K", np.zeros((1, 256), np.float32))
