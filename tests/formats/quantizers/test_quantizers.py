"""Quantisers give ggml's bytes: recorded ones everywhere, the library's own on x86-64; and what they refuse."""

import json

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from assay.formats import InputError, NumericError, blocks, quantizers
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.quantizers import quantize
from assay.formats.quantizers.rounding import nearest_int, round_half_away
from tests import ggml_library
from tests.formats.quantizers.quantizer_inputs import INPUTS, SHAPE
from tests.formats.quantizers.record_quantized import RECORDED, SHOWN, TYPES, sha256

TRUTH = json.loads(RECORDED.read_text())
real_ggml = pytest.mark.skipif(not ggml_library.AVAILABLE, reason="needs the xllamacpp wheel on x86-64")


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", INPUTS)
def test_the_bytes_are_those_that_ggml_made(name: str, type_name: str) -> None:
    x = INPUTS[name]()
    assert sha256(x) == TRUTH[name]["values"], "the input is not the recorded one"
    raw = quantize(type_name, x)
    if name in SHOWN:
        first = raw.reshape(-1, BY_NAME[type_name].block_bytes)[0]
        assert first.tobytes().hex() == TRUTH[name]["first block"][type_name]
    assert sha256(raw) == TRUTH[name][type_name]


def demand_equal(type_name: str, x: np.ndarray) -> None:
    ours, theirs = quantize(type_name, x), ggml_library.ggml_quantize(type_name, x)
    size = BY_NAME[type_name].block_bytes
    wrong = np.flatnonzero((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1))
    if len(wrong):
        i = wrong[0]
        first = [raw.reshape(-1, size)[i].tobytes().hex() for raw in (ours, theirs)]
        pytest.fail(f"{len(wrong)} {type_name} blocks differ, first {i}:\nours   {first[0]}\nggml's {first[1]}")


@real_ggml
@pytest.mark.parametrize("type_name", TYPES)
def test_ggml_itself_makes_the_same_bytes(type_name: str) -> None:
    rng = np.random.default_rng(BY_NAME[type_name].id)
    demand_equal(type_name, (rng.standard_normal((16, 4864)) * 0.02).astype(np.float32))
    demand_equal(type_name, rng.standard_t(2, (16, 4864)).astype(np.float32))
    f16 = rng.standard_normal((16, 4864)).astype(np.float16).astype(np.float32)
    demand_equal(type_name, np.where(rng.random(f16.shape) < 0.3, f16, 0).astype(np.float32))


@real_ggml
@pytest.mark.parametrize("type_name", TYPES)
def test_quantised_values_quantised_again_are_ggml_s_too(type_name: str) -> None:
    """Values on another type's grid: many candidates of equal error, where the last bit of a sum decides."""
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((4, 4864)) * 0.05).astype(np.float32)
    for source in ("Q4_0", "Q4_K", "Q5_0", "Q6_K"):
        demand_equal(type_name, blocks.dequantize(source, quantize(source, x)))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_the_gguf_package_makes_the_same_bytes(type_name: str) -> None:
    x = np.random.default_rng(11).standard_normal((32, 896)).astype(np.float32)
    expected = quants.quantize(x, GGMLQuantizationType[type_name]).view(np.uint8)
    assert np.array_equal(quantize(type_name, x), expected)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_value_is_within_a_step_of_its_own(type_name: str) -> None:
    """Half a step of the group's scale, a whole one at the ends, and what rounding the scales to 6 or 8 bits costs."""
    x = INPUTS["bell"]()
    raw = quantize(type_name, x)
    quants = blocks.unpack(type_name, raw)
    step = np.abs(quants.d[..., None] * quants.scale).repeat(quants.q.shape[-1] // quants.scale.shape[-1], -1)
    assert (np.abs(blocks.dequantize(type_name, raw) - x) <= 2 * step.reshape(SHAPE)).all()


@pytest.mark.parametrize("type_name", quantizers.QUANTIZABLE)
def test_neither_lots_nor_threads_change_a_byte(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = INPUTS["bell"]()
    whole = quantize(type_name, x, threads=1)
    for chunk, threads in ((256, 1), (768, 3), (4096, 2)):
        monkeypatch.setattr(quantizers, "CHUNK_ELEMENTS", chunk)
        assert np.array_equal(quantize(type_name, x, threads=threads), whole)


@pytest.mark.parametrize("type_name", quantizers.QUANTIZABLE)
def test_leading_axes_are_kept_even_empty_ones(type_name: str) -> None:
    kind = BY_NAME[type_name]
    x = INPUTS["bell"]().reshape(2, 4, 1024)
    raw = quantize(type_name, x)
    assert raw.shape == (2, 4, 1024 // kind.block_elements * kind.block_bytes)
    assert np.array_equal(raw.reshape(8, -1), quantize(type_name, x.reshape(8, 1024)))
    assert quantize(type_name, x[:, :0]).shape == (2, 0, raw.shape[-1])
    assert quantize(type_name, x[0, 0]).shape == raw.shape[-1:]
    assert np.array_equal(quantize(type_name, x[:, ::2]), raw[:, ::2])  # not contiguous


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", quantizers.QUANTIZABLE)
def test_not_a_number_is_refused_with_its_place(type_name: str, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "CHUNK_ELEMENTS", 512)
    x = INPUTS["bell"]()
    x[6, 700] = bad
    with pytest.raises(NumericError, match=r"tensor 'a'\[106, 700\]: -?(nan|inf) cannot be quantised"):
        quantize(type_name, x, where="tensor 'a'", first_row=100)


@pytest.mark.parametrize("type_name", [name for name in quantizers.QUANTIZABLE if name != "F32"])
def test_what_f16_cannot_scale_is_refused_with_its_place(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "CHUNK_ELEMENTS", 512)
    for large in (np.finfo(np.float32).max, -np.finfo(np.float32).max):
        x = INPUTS["bell"]()
        x[3, 801], x[3, 802] = large, -large
        with pytest.raises(NumericError, match=rf"values\[3, 80[12]\].*too large for {type_name}"):
            quantize(type_name, x)


def test_the_largest_value_that_q8_0_can_hold() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, 9] = 127 * 65504.0
    assert blocks.dequantize("Q8_0", quantize("Q8_0", x))[0, 9] == 127 * 65504.0
    x[0, 9] = 127 * 65520.0  # d is half way to 2**16, and rounds up to infinity
    with pytest.raises(NumericError, match="too large"):
        quantize("Q8_0", x)


def test_bad_requests_are_refused() -> None:
    row = np.zeros((2, 256), np.float32)
    for type_name, values in [("Q2_K", row), ("nosuch", row), ("Q4_K", row[:, :255]), ("Q4_K", row[:, :224]),
                              ("Q8_0", row.astype(np.float64)), ("F16", np.float32(3) * np.ones(()))]:  # fmt: skip
        with pytest.raises(InputError):
            quantize(type_name, np.asarray(values))


def test_rounding_is_that_of_c() -> None:
    v = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, -2.4999998, 4194303.0, -4194303.0], np.float32)
    assert nearest_int(v).tolist() == [0, 2, 2, 0, -2, 0, -2, 4194303, -4194303]
    assert round_half_away(v[:7]).tolist() == [1, 2, 3, -1, -2, 0, -2]
