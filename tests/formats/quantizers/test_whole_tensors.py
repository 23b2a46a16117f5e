"""A dictionary of arrays becomes a file's tensors; what was lost is measured; errors name their place."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from assay.formats import InputError, NumericError, blocks
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.gguf_metadata import typed
from assay.formats.containers.gguf_writer import write_gguf
from assay.formats.quantizers import quantize
from assay.formats.quantizers.whole_tensors import Array, Requantized, census, quantized_arrays

RNG = np.random.default_rng(5)
ARRAYS = {
    "token_embd.weight": (RNG.standard_normal((300, 256)) * 0.05).astype(np.float32),
    "blk.0.ffn_norm.weight": np.ones(256, np.float32),
    "blk.0.ffn_down.weight": (RNG.standard_normal((256, 512)) * 0.05).astype(np.float32),
    "blk.0.ffn_up.weight": (RNG.standard_normal((512, 256)) * 0.05).astype(np.float32),
    "blk.0.attn_q.weight": (RNG.standard_normal((64, 96)) * 0.05).astype(np.float32),
}


def test_arrays_become_a_file_that_the_gguf_package_reads_alike(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    tensors = quantized_arrays(ARRAYS, "Q4_K_M", progress=lambda *now: told.append(now))
    write_gguf(tmp_path / "m.gguf", {"general.architecture": typed("string", "qwen2")}, tensors)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert [(name, tensor.tensor_type.name) for name, tensor in read.items()] == [
        ("token_embd.weight", "Q6_K"), ("blk.0.ffn_norm.weight", "F32"), ("blk.0.ffn_down.weight", "Q6_K"),
        ("blk.0.ffn_up.weight", "Q4_K"), ("blk.0.attn_q.weight", "Q5_0"),
    ]  # fmt: skip
    for name, array in ARRAYS.items():
        kind = read[name].tensor_type
        values = gguf.quants.dequantize(np.asarray(read[name].data), kind)
        ours = blocks.dequantize(kind.name, quantize(kind.name, array))
        assert np.array_equal(values.reshape(array.shape), ours)
    total = sum(array.size for array in ARRAYS.values())
    assert told[-1] == (total, total, "quantising")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_pieces_of_rows_make_the_bytes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = ARRAYS["blk.0.ffn_up.weight"]
    monkeypatch.setattr("assay.formats.quantizers.whole_tensors.CHUNK_ELEMENTS", 256 * 7)
    work = Requantized(Array("a", x), BY_NAME["Q4_K"])
    assert np.array_equal(work.read(), quantize("Q4_K", x))
    missed = x - blocks.dequantize("Q4_K", quantize("Q4_K", x))
    exact = np.linalg.norm(missed.astype(np.float64)) / np.linalg.norm(x.astype(np.float64))
    assert work.lost == pytest.approx(exact, rel=1e-6)  # squares are rounded to f32, 2**-24 each, before they are added
    assert 0.03 < exact < 0.12


def test_nothing_is_lost_of_nothing_and_in_f32() -> None:
    for x, kind in ((np.zeros((2, 32), np.float32), "Q4_0"), (ARRAYS["blk.0.attn_q.weight"], "F32")):
        work = Requantized(Array("a", x), BY_NAME[kind])
        work.read()
        assert work.lost == 0


def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.formats.quantizers.whole_tensors.CHUNK_ELEMENTS", 256 * 7)
    spoiled = ARRAYS["blk.0.ffn_up.weight"].copy()
    spoiled[500, 3] = np.nan
    (tensor,) = quantized_arrays({"blk.0.ffn_up.weight": spoiled}, "Q4_K_M")
    with pytest.raises(NumericError, match=r"tensor 'blk.0.ffn_up.weight'\[500, 3\]"):
        tensor.read()


def test_only_f32_is_taken() -> None:
    for bad in (np.ones((2, 32)), np.float32(1) * np.ones(())):
        with pytest.raises(InputError, match="tensor 'a'"):
            quantized_arrays({"a": np.asarray(bad)}, "Q8_0")
    with pytest.raises(InputError, match="no quantization mix"):
        quantized_arrays({}, "Q9_9")


def test_census() -> None:
    assert census([("Q4_K", 512, 288), ("F32", 8, 32), ("Q4_K", 256, 144)]) == {
        "types": {"Q4_K": 2, "F32": 1}, "tensors": 3, "weights": 464, "bits_per_weight": round(8 * 464 / 776, 3),
    }  # fmt: skip
    assert census([])["bits_per_weight"] == 0
