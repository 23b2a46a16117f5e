"""Well-formed GGUF files that lie about their model: each is refused, in one line that names the culprit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from assay.formats import FormatError, InputError, ModelError, Tensor, blocks, open_model
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.contract.config import tensor_shapes
from tests.model_builder import KINDS, MERGES, TOKENS, Shape, build, tensors_of

F64, U8 = GGUFValueType.FLOAT64, GGUFValueType.UINT8
N = len(TOKENS)

HOSTILE_METADATA: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "architecture missing": ({"general.architecture": None}, FormatError, "general.architecture"),
    "architecture other": ({"general.architecture": "llama"}, ModelError, "'llama'"),
    "architecture near": ({"general.architecture": "qwen2moe"}, ModelError, "'qwen2moe'"),
    "shard": ({"split.count": 3}, FormatError, "file 0 of 3"),
    "no layers": ({"qwen2.block_count": 0}, ModelError, "qwen2.block_count = 0"),
    "2**31 layers": ({"qwen2.block_count": 2**31}, ModelError, "qwen2.block_count = 2147483648"),
    "layers as text": ({"qwen2.block_count": "1"}, FormatError, "qwen2.block_count"),
    "layers missing": ({"qwen2.block_count": None}, FormatError, "qwen2.block_count"),
    "no hidden size": ({"qwen2.embedding_length": None}, FormatError, "qwen2.embedding_length"),
    "no ffn size": ({"qwen2.feed_forward_length": None}, FormatError, "qwen2.feed_forward_length"),
    "no context": ({"qwen2.context_length": None}, FormatError, "qwen2.context_length"),
    "context 0": ({"qwen2.context_length": 0}, ModelError, "qwen2.context_length = 0"),
    "no heads": ({"qwen2.attention.head_count": 0}, ModelError, "qwen2.attention.head_count = 0"),
    "heads of more layers": ({"qwen2.attention.head_count": [2, 2]}, ModelError, "2 numbers for 1 layers"),
    "heads as texts": ({"qwen2.attention.head_count": ["2"]}, FormatError, "qwen2.attention.head_count"),
    "0 kv heads": ({"qwen2.attention.head_count_kv": 0}, ModelError, "qwen2.attention.head_count_kv = 0"),
    "kv heads do not divide": (
        {"qwen2.attention.head_count": 3, "qwen2.attention.head_count_kv": 2}, ModelError, "2 key/value heads"),
    "heads do not divide": (
        {"qwen2.attention.head_count": 3, "qwen2.attention.key_length": None}, ModelError, "3 heads"),
    "more heads than width": (
        {"qwen2.attention.head_count": 64, "qwen2.attention.key_length": None}, ModelError, "qwen2.attention."),
    "odd head_dim": ({"qwen2.attention.key_length": 15}, ModelError, "head_dim 15 is odd"),
    "value width": ({"qwen2.attention.value_length": 8}, ModelError, "width"),
    "part of a head rotated": ({"qwen2.rope.dimension_count": 8}, ModelError, "rotated"),
    "theta missing": ({"qwen2.rope.freq_base": None}, FormatError, "qwen2.rope.freq_base"),
    "theta 0": ({"qwen2.rope.freq_base": 0.0}, ModelError, "qwen2.rope.freq_base = 0"),
    "theta nan": ({"qwen2.rope.freq_base": math.nan}, ModelError, "qwen2.rope.freq_base = nan"),
    "theta inf": ({"qwen2.rope.freq_base": math.inf}, ModelError, "qwen2.rope.freq_base = inf"),
    "theta negative": ({"qwen2.rope.freq_base": -1e6}, ModelError, "qwen2.rope.freq_base = -1e+06"),
    "theta an integer": ({"qwen2.rope.freq_base": 1000000}, FormatError, "qwen2.rope.freq_base"),
    "eps missing": ({"qwen2.attention.layer_norm_rms_epsilon": None}, FormatError, "layer_norm_rms_epsilon"),
    "eps 0": ({"qwen2.attention.layer_norm_rms_epsilon": 0.0}, ModelError, "layer_norm_rms_epsilon = 0"),
    "eps nan": ({"qwen2.attention.layer_norm_rms_epsilon": math.nan}, ModelError, "layer_norm_rms_epsilon = nan"),
    "yarn": ({"qwen2.rope.scaling.type": "yarn"}, ModelError, "rope scaling"),
    "scaling factor alone": ({"qwen2.rope.scaling.factor": 4.0}, ModelError, "rope scaling"),
    "old scaling factor": ({"qwen2.rope.scale_linear": 2.0}, ModelError, "rope scaling"),
    "tokenizer missing": ({"tokenizer.ggml.model": None}, FormatError, "tokenizer.ggml.model"),
    "tokenizer other": ({"tokenizer.ggml.model": "llama"}, ModelError, "'llama'"),
    "pre missing": ({"tokenizer.ggml.pre": None}, FormatError, "tokenizer.ggml.pre"),
    "tokens missing": ({"tokenizer.ggml.tokens": None}, FormatError, "tokenizer.ggml.tokens"),
    "tokens as bytes": ({"tokenizer.ggml.tokens": ([1, 2, 3], U8)}, FormatError, "tokenizer.ggml.tokens"),
    "a token too many": (
        {"tokenizer.ggml.tokens": [*TOKENS, "x" * 9], "tokenizer.ggml.token_type": [*KINDS, 1]}, ModelError,
        f"{N + 1} tokens do not fit the {N} embedding rows"),
    "a token twice": ({"tokenizer.ggml.tokens": [*TOKENS[:-1], TOKENS[0]]}, ModelError, "occur twice"),
    "merges missing": ({"tokenizer.ggml.merges": None}, FormatError, "tokenizer.ggml.merges"),
    "merge of one": ({"tokenizer.ggml.merges": [*MERGES, "the"]}, ModelError, "'the'"),
    "merge of three": ({"tokenizer.ggml.merges": [*MERGES, "t h e"]}, ModelError, "'t h e'"),
    "merge of nothing": ({"tokenizer.ggml.merges": [*MERGES, ""]}, ModelError, "merge ''"),
    "token types missing": ({"tokenizer.ggml.token_type": None}, FormatError, "tokenizer.ggml.token_type"),
    "a token type too few": ({"tokenizer.ggml.token_type": KINDS[:-1]}, ModelError, f"{N - 1} token types"),
    "eos outside": ({"tokenizer.ggml.eos_token_id": N}, ModelError, f"eos_token_id {N}"),
    "bos outside": ({"tokenizer.ggml.bos_token_id": 2**32 - 1}, ModelError, "bos_token_id 4294967295"),
    "add_bos a number": ({"tokenizer.ggml.add_bos_token": 1}, FormatError, "tokenizer.ggml.add_bos_token"),
    "vocab_size": ({"qwen2.vocab_size": N + 1}, ModelError, "token_embd.weight"),
}  # fmt: skip


def refusal(path: Path, kind: type[Exception]) -> str:
    """The line with which ``open_model`` refuses, which must say what, where and what to do."""
    with pytest.raises(kind) as caught:
        open_model(path)
    assert isinstance(caught.value, FormatError | ModelError)
    text = str(caught.value)
    assert text.isprintable() and str(path) in text and caught.value.remedy
    return text


@pytest.mark.parametrize("case", HOSTILE_METADATA)
def test_metadata_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    metadata, kind, culprit = HOSTILE_METADATA[case]
    assert culprit in refusal(build(tmp_path / "m.gguf", metadata=metadata), kind)


def f32(*shape: int) -> tuple[np.ndarray, str]:
    return np.zeros(shape, np.float32), "F32"


def raw(type_name: str, n_rows: int, n_columns: int) -> tuple[np.ndarray, str]:
    kind = BY_NAME[type_name]
    return np.zeros((n_rows, n_columns // kind.block_elements * kind.block_bytes), np.uint8), type_name


HOSTILE_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "embedding missing": ({"token_embd.weight": None}, "token_embd.weight"),
    "embedding a vector": ({"token_embd.weight": f32(32)}, "token_embd.weight"),
    "bias missing": ({"blk.0.attn_k.bias": None}, "blk.0.attn_k.bias"),
    "norm missing": ({"output_norm.weight": None}, "output_norm.weight"),
    "all of a layer missing": (
        {name: None for name in tensors_of(Shape()) if name.startswith("blk")}, "12 tensors are missing"),
    "bias of the output": ({"blk.0.attn_output.bias": f32(32)}, "blk.0.attn_output.bias"),
    "layer too many": ({"blk.1.attn_norm.weight": f32(32)}, "blk.1.attn_norm.weight"),
    "rope_freqs": ({"rope_freqs.weight": f32(8)}, "rope_freqs.weight"),
    "bias too short": ({"blk.0.attn_q.bias": f32(31)}, "blk.0.attn_q.bias is [31], expected [32]"),
    "transposed": ({"blk.0.ffn_up.weight": f32(32, 48)}, "blk.0.ffn_up.weight is [32, 48], expected [48, 32]"),
    "another axis": ({"blk.0.attn_q.bias": f32(32, 2)}, "blk.0.attn_q.bias"),
    "output of another vocabulary": ({"output.weight": f32(N + 1, 32)}, "output.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_TENSORS)
def test_tensors_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    tensors, culprit = HOSTILE_TENSORS[case]
    assert culprit in refusal(build(tmp_path / "m.gguf", tensors=tensors), ModelError)


@pytest.mark.parametrize("type_name", ["IQ1_S", "Q8_K", "I32", "MXFP4"])
def test_a_type_that_cannot_be_decoded_is_refused(type_name: str, tmp_path: Path) -> None:
    shape = Shape(hidden=256, n_heads=2, head_dim=128, ffn=48)
    if type_name == "I32":
        wrong = {"blk.0.ffn_up.weight": (np.zeros((48, 256), np.int32), type_name)}
    else:
        wrong = {"blk.0.ffn_up.weight": raw(type_name, 48, 256)}
    text = refusal(build(tmp_path / "m.gguf", shape, tensors=wrong), ModelError)
    assert f"blk.0.ffn_up.weight ({type_name})" in text


def test_of_many_culprits_a_few_are_named(tmp_path: Path) -> None:
    biases = {f"blk.{i}.attn_{which}.bias": None for i in range(2) for which in "qkv"}
    text = refusal(build(tmp_path / "m.gguf", Shape(n_layers=2), tensors=biases), ModelError)
    assert "6 tensors are missing" in text and "and 2 more" in text


def test_tied_and_untied_are_told_apart(tmp_path: Path) -> None:
    tied = open_model(build(tmp_path / "tied.gguf", Shape(tied=True)))
    untied = open_model(build(tmp_path / "untied.gguf", Shape(tied=False)))
    assert (tied.config.tied, untied.config.tied) == (True, False)
    assert (len(tied.tensors), len(untied.tensors)) == (12 + 2, 12 + 3)


def test_rows_beyond_the_vocabulary_are_accepted(tmp_path: Path) -> None:
    file = open_model(build(tmp_path / "m.gguf", Shape(n_padding=10)))
    assert (file.config.n_vocab, len(file.vocabulary)) == (N + 10, N)


@pytest.mark.parametrize("metadata", [
    {"qwen2.rope.scaling.type": "none"}, {"qwen2.rope.scaling.factor": 1.0}, {"qwen2.rope.scale_linear": 0.0},
    {"split.count": 1}, {"qwen2.vocab_size": N}, {"qwen2.rope.dimension_count": 16},
    {"qwen2.rope.freq_base": (1e6, F64)}, {"qwen2.attention.sliding_window": 4096},
    {"qwen2.attention.key_length": None, "qwen2.attention.value_length": None},
])  # fmt: skip
def test_what_real_files_also_say_is_accepted(metadata: dict[str, Any], tmp_path: Path) -> None:
    config = open_model(build(tmp_path / "m.gguf", metadata=metadata)).config
    assert (config.rope_theta, config.head_dim, config.n_layers) == (1e6, 16, 1)


def test_kv_heads_default_to_heads(tmp_path: Path) -> None:
    shape = Shape(n_heads=2, n_kv_heads=2)
    path = build(tmp_path / "m.gguf", shape, metadata={"qwen2.attention.head_count_kv": None})
    assert open_model(path).config.n_kv_heads == 2


def test_the_config_says_what_the_file_says(tmp_path: Path) -> None:
    shape = Shape(n_layers=3, hidden=64, n_heads=6, n_kv_heads=2, head_dim=10, ffn=24, theta=5e5, eps=1e-5, context=99)
    config = open_model(build(tmp_path / "m.gguf", shape)).config
    assert (config.n_layers, config.hidden_size, config.n_heads, config.n_kv_heads) == (3, 64, 6, 2)
    assert (config.head_dim, config.ffn_size, config.context_length, config.rope_theta) == (10, 24, 99, 5e5)
    assert config.rms_norm_eps == pytest.approx(1e-5, rel=1e-7)  # stored as f32
    assert len(tensor_shapes(config)) == 12 * 3 + 2


def test_end_ids_are_eos_and_the_known_spellings(tmp_path: Path) -> None:
    ends = {TOKENS.index("<|im_end|>"), TOKENS.index("<|endoftext|>")}
    base = build(tmp_path / "a.gguf", metadata={"tokenizer.ggml.eos_token_id": TOKENS.index("<|endoftext|>")})
    none = build(tmp_path / "b.gguf", metadata={"tokenizer.ggml.eos_token_id": None})
    other = build(tmp_path / "c.gguf", metadata={"tokenizer.ggml.eot_token_id": 7})
    plain = build(tmp_path / "d.gguf", metadata={"tokenizer.ggml.token_type": [1] * N})
    assert open_model(base).vocabulary.end_ids == ends
    assert open_model(none).vocabulary.end_ids == ends and open_model(none).vocabulary.eos_id is None
    assert open_model(other).vocabulary.end_ids == ends | {7}
    assert open_model(plain).vocabulary.end_ids == {TOKENS.index("<|im_end|>")}  # only eos: not control tokens


def test_no_bos_is_invented(tmp_path: Path) -> None:
    path = build(tmp_path / "m.gguf", metadata={"tokenizer.ggml.bos_token_id": None,
                                                "tokenizer.ggml.add_bos_token": None})  # fmt: skip
    vocabulary = open_model(path).vocabulary
    assert vocabulary.bos_id is None and vocabulary.add_bos is False


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    file = open_model(build(tmp_path / "m.gguf"))
    tensor, stored = file.tensors["blk.0.ffn_up.weight"], tensors_of(Shape())["blk.0.ffn_up.weight"][0]
    expected = stored.view(np.float32)
    assert tensor.shape == (48, 32) and np.array_equal(tensor.decode(), expected)
    assert np.array_equal(tensor.rows(5, 9), expected[5:9])
    assert file.tensors["blk.0.attn_q.bias"].decode().shape == (32,)


@pytest.mark.parametrize("type_name", blocks.DECODABLE)
def test_a_scale_that_is_no_number_is_refused_when_its_row_is_read(type_name: str, tmp_path: Path) -> None:
    shape = Shape(hidden=256, head_dim=128, ffn=16, types={"ffn_up": [type_name]})
    stored, _ = tensors_of(shape)["blk.0.ffn_up.weight"]
    kind, from_row = BY_NAME[type_name], 7
    at = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(type_name, 0)  # of the block's d
    nan = {4: b"\0\0\xc0\x7f"}.get(kind.block_bytes, b"\xc0\x7f" if type_name == "BF16" else b"\0\x7e")
    stored[from_row, at : at + len(nan)] = np.frombuffer(nan, np.uint8)
    path = build(tmp_path / "m.gguf", shape, tensors={"blk.0.ffn_up.weight": (stored, type_name)})
    tensor = open_model(path).tensors["blk.0.ffn_up.weight"]
    assert np.isfinite(tensor.rows(0, from_row)).all()
    tensor.check_finite(slice(0, from_row))
    for read in (lambda: tensor.rows(from_row, 8), tensor.decode, lambda: tensor.check_finite(slice(from_row, 8))):
        with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.weight"):
            read()


def test_census_and_hash(tmp_path: Path) -> None:
    path = build(tmp_path / "m.gguf", Shape(types={"ffn_up": ["F16"]}))
    file = open_model(path)
    assert file.census() == {"F32": 13, "F16": 1}
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("check", "complaint"), [
    (lambda m: m.check_ids([]), "no tokens"),
    (lambda m: m.check_ids([N]), f"token id {N}"),
    (lambda m: m.check_ids([0, -1]), "token id -1"),
    (lambda m: m.check_ids([0], max_tokens=-1), "-1 tokens"),
    (lambda m: m.check_ids([0] * 513), "513 tokens of prompt"),
    (lambda m: m.check_ids([0], n_past=500, max_tokens=12), "501 tokens of prompt and 12"),
])  # fmt: skip
def test_ids_that_cannot_be_read_are_refused(check: Callable[[Any], None], complaint: str, tmp_path: Path) -> None:
    file = open_model(build(tmp_path / "m.gguf"))
    file.check_ids([0] * 500, max_tokens=12)  # exactly full
    with pytest.raises(InputError, match=complaint):
        check(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises((FormatError, InputError)):
        open_model(tmp_path / "nothing.gguf")


def test_opening_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path / "m.gguf")

    def forbidden(self: Tensor) -> np.ndarray:
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(Tensor, "raw", forbidden)
    open_model(path)
