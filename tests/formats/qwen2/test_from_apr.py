"""Qwen2 models in APR files: the same as from GGUF, under all the names that keys and tensors go by, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.formats import FormatError, ModelError, ModelFile, open_model
from assay.formats.containers.opening import open_container
from assay.formats.contract.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from assay.formats.qwen2.tensor_names import canonical_name
from assay.formats.qwen2.tensor_names import hf_name as our_hf_name
from tests import apr_builder, model_builder
from tests import apr_files as raw
from tests.apr_builder import hf_name
from tests.model_builder import KINDS, MERGES, TOKENS, Shape

N = len(TOKENS)
MIXED = Shape(n_layers=2, hidden=256, n_heads=2, head_dim=128, n_kv_heads=1, ffn=256, tied=False, n_padding=3,
              types={"attn_q": ["Q4_K", "Q6_K"], "ffn_down": ["Q6_K", "F16"], "token_embd": ["BF16"]})  # fmt: skip


def same_model(a: ModelFile, b: ModelFile) -> bool:
    return (a.config, a.vocabulary, a.chat_template, list(a.tensors) and a.census()) == (
        b.config, b.vocabulary, b.chat_template, b.census()
    ) and all(np.array_equal(a.tensors[name].decode(), b.tensors[name].decode()) for name in b.tensors)  # fmt: skip


@pytest.mark.parametrize("shape", [Shape(), MIXED, Shape(n_heads=6, n_kv_heads=2, head_dim=10)])
@pytest.mark.parametrize("named", [hf_name, str], ids=["hf", "blk"])
def test_it_is_the_model_that_gguf_holds(tmp_path, shape, named):
    template = {"tokenizer.chat_template": "{{ messages[0].content }}"}
    apr = open_model(apr_builder.build(tmp_path / "m.apr", shape, metadata=template, named=named))
    gguf = open_model(model_builder.build(tmp_path / "m.gguf", shape, metadata=template))
    assert (apr.format, apr.architecture, apr.name, apr.warnings) == ("apr", "qwen2", "test", ())
    assert same_model(apr, gguf)


def test_names_translate_both_ways():
    for name in model_builder.tensors_of(Shape(n_layers=12, tied=False)):
        assert canonical_name(hf_name(name)) == name and our_hf_name(name) == hf_name(name)
        assert canonical_name(name) == name
    for name in ("model.layers.00.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.scale", "lm_head.bias",
                 "model.layers.99999.mlp.up_proj.weight", "blk.0.attn_x.weight"):  # fmt: skip
        assert canonical_name(name) == name == our_hf_name(name)


HF_KEYS = {"hidden_size": "d_model", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
           "num_kv_heads": "num_key_value_heads", "vocab_size": "n_vocab", "intermediate_size": "n_inner",
           "max_position_embeddings": "context_length", "rms_norm_eps": "norm_eps"}  # fmt: skip


def test_it_may_go_by_aliases_alone(tmp_path):
    truth = apr_builder.metadata_of(Shape())
    renamed = {**dict.fromkeys(HF_KEYS, ...), **{alias: truth[key] for key, alias in HF_KEYS.items()}}
    a = open_model(apr_builder.build(tmp_path / "a.apr", metadata=renamed))
    b = open_model(apr_builder.build(tmp_path / "b.apr"))
    assert same_model(a, b)


@pytest.mark.parametrize("metadata", [
    {"architecture": ..., "hf_architecture": "Qwen2ForCausalLM"}, {"architecture": None, "hf_model_type": "qwen2"},
    {"architecture": "Qwen2ForCausalLM"}, {"rope_scaling": None}, {"rope_scaling": {"type": "default"}},
    {"rope_type": ...}, {"num_experts": None}, {"num_experts": 0}, {"sharding": None}, {"head_dim": ...},
    {"vocab_size": ...}, {"rope_theta": 1000000}, {"tokenizer.model": ..., "tokenizer.model_type": "BPE"},
    {"model.hidden_size": 32, "model.rope_theta": 1e6}, {"tokenizer.add_bos_token": None}, {"quantization": None},
    {"tensor_shapes": {"model.norm.weight": [32], "gone": [1]}}, {"chat_format": "chatml"},
    {"tokenizer.scores": [0.5] * N}, {"tied_embeddings": True}, {"tied_embeddings": False},
])  # fmt: skip
def test_what_real_files_also_say_is_accepted(tmp_path, metadata):
    shape = Shape(hidden=32, n_heads=2, head_dim=16)
    file = open_model(apr_builder.build(tmp_path / "m.apr", shape, metadata=metadata))
    assert same_model(file, open_model(apr_builder.build(tmp_path / "plain.apr", shape))) and not file.warnings


HOSTILE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "architecture missing": ({"architecture": ...}, FormatError, "architecture"),
    "architecture other": ({"architecture": "llama"}, ModelError, "'llama'"),
    "architecture in two ways": ({"model.architecture": "llama"}, FormatError, "'llama'"),
    "shard": ({"sharding": {"shard_count": 2, "shard_index": 0}}, ModelError, "shard"),
    "sharding as text": ({"sharding": "no"}, FormatError, "sharding"),
    "experts": ({"num_experts": 8}, ModelError, "experts"),
    "adjacent pairs": ({"rope_type": 0}, ModelError, "rope_type 0"),
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ModelError, "rope scaling"),
    "linear by factor": ({"rope_scaling": {"factor": 2}}, ModelError, "rope scaling"),
    "no layers": ({"num_layers": 0}, ModelError, "num_layers = 0"),
    "layers missing": ({"num_layers": ...}, FormatError, "num_layers"),
    "layers null": ({"num_layers": None}, FormatError, "num_layers"),
    "layers as text": ({"num_layers": "1"}, FormatError, "num_layers"),
    "layers as a float": ({"num_layers": 1.0}, FormatError, "num_layers"),
    "layers true": ({"num_layers": True}, FormatError, "num_layers"),
    "layers in two ways": ({"n_layer": 2}, FormatError, "n_layer"),
    "shadow copy": ({"model.hidden_size": 64}, FormatError, "model.hidden_size"),
    "huge integer": ({"hidden_size": 10**300}, ModelError, "hidden_size"),
    "hidden size missing": ({"hidden_size": ...}, FormatError, "hidden_size"),
    "ffn missing": ({"intermediate_size": ...}, FormatError, "intermediate_size"),
    "context missing": ({"max_position_embeddings": ...}, FormatError, "max_position_embeddings"),
    "0 heads": ({"num_heads": 0}, ModelError, "num_heads = 0"),
    "0 kv heads": ({"num_kv_heads": 0}, ModelError, "num_kv_heads = 0"),
    "kv heads do not divide": ({"num_heads": 3, "num_kv_heads": 2}, ModelError, "2 key/value heads"),
    "heads do not divide": ({"num_heads": 3, "head_dim": ...}, ModelError, "3 heads"),
    "odd head_dim": ({"head_dim": 15}, ModelError, "head_dim 15 is odd"),
    "theta missing": ({"rope_theta": ...}, FormatError, "rope_theta"),
    "theta 0": ({"rope_theta": 0}, ModelError, "rope_theta = 0"),
    "theta beyond f32": ({"rope_theta": 1e300}, ModelError, "rope_theta = 1e+38"),
    "theta beyond any float": ({"rope_theta": 10**400}, FormatError, "rope_theta"),
    "eps missing": ({"rms_norm_eps": ...}, FormatError, "rms_norm_eps"),
    "eps 0": ({"rms_norm_eps": 0.0}, ModelError, "rms_norm_eps = 0"),
    "eps below every f32": ({"rms_norm_eps": 1e-60}, ModelError, "rms_norm_eps = 0"),
    "another vocabulary": ({"vocab_size": N + 1}, ModelError, "token_embd.weight"),
    "trap 11, no merges": ({"tokenizer.merges": ...}, ModelError, "no tokenizer merges"),
    "empty merges": ({"tokenizer.merges": []}, ModelError, "no tokenizer merges"),
    "no vocabulary": ({"tokenizer.vocabulary": ...}, ModelError, "no tokenizer vocabulary"),
    "vocabulary of numbers": ({"tokenizer.vocabulary": [1] * N}, FormatError, "tokenizer.vocabulary"),
    "vocab_size lies": ({"tokenizer.vocab_size": N - 1}, ModelError, f"vocab_size is {N - 1}"),
    "a token too many": (
        {"tokenizer.vocabulary": [*TOKENS, "x" * 9], "tokenizer.vocab_size": ..., "tokenizer.token_type": [*KINDS, 1]},
        ModelError, f"{N + 1} tokens do not fit the {N} embedding rows"),
    "a token twice": ({"tokenizer.vocabulary": [*TOKENS[:-1], TOKENS[0]]}, ModelError, "occur twice"),
    "a token type too few": ({"tokenizer.token_type": KINDS[:-1]}, ModelError, f"{N - 1} token types"),
    "token types as bools": ({"tokenizer.token_type": [True] * N}, FormatError, "tokenizer.token_type"),
    "merge of three": ({"tokenizer.merges": [*MERGES, "t h e"]}, ModelError, "'t h e'"),
    "sentencepiece": ({"tokenizer.model": "llama"}, ModelError, "'llama'"),
    "eos outside": ({"tokenizer.eos_token_id": N}, ModelError, f"eos_token_id {N}"),
    "bos negative": ({"tokenizer.bos_token_id": -1}, ModelError, "bos_token_id -1"),
    "add_bos a number": ({"tokenizer.add_bos_token": 1}, FormatError, "add_bos_token"),
    "two templates": ({"chat_template": "a", "tokenizer.chat_template": "b"}, FormatError, "chat_template"),
    "trap 8, shapes in reverse": (
        {"tensor_shapes": {"model.layers.0.mlp.up_proj.weight": [32, 48]}}, FormatError, "the same in reverse"),
    "tensor_shapes of another": ({"tensor_shapes": {"model.norm.weight": [31]}}, FormatError, "tensor_shapes"),
    "tied a number": ({"tied_embeddings": 1}, FormatError, "tied_embeddings"),
}  # fmt: skip


def refusal(path: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        open_model(path)
    assert isinstance(caught.value, FormatError | ModelError)
    text = str(caught.value)
    assert text.isprintable() and str(path) in text and caught.value.remedy
    return text


@pytest.mark.parametrize("case", HOSTILE)
def test_metadata_that_lies_is_refused(tmp_path, case):
    metadata, kind, culprit = HOSTILE[case]
    assert culprit in refusal(apr_builder.build(tmp_path / "m.apr", metadata=metadata), kind)


def zeros(name: str, *dims: int, code: int = raw.F32) -> raw.Tensor:
    tensor = raw.Tensor(name, dims, code)
    return raw.Tensor(name, dims, code, bytes(tensor.nbytes))


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "trap 17, a tensor dropped": ({"blk.0.attn_k.bias": None}, "blk.0.attn_k.bias"),
    "embedding missing": ({"token_embd.weight": None}, "token_embd.weight"),
    "embedding a vector": ({"token_embd.weight": zeros("model.embed_tokens.weight", 32)}, "token_embd.weight"),
    "unconsumed": ({"x": zeros("model.layers.0.self_attn.rotary_emb.inv_freq", 8)}, "inv_freq"),
    "under both names": ({"x": zeros("output_norm.weight", 32)}, "the same tensor"),
    "transposed": ({"blk.0.ffn_up.weight": zeros("model.layers.0.mlp.up_proj.weight", 32, 48)},
                   "blk.0.ffn_up.weight is [32, 48], expected [48, 32]"),
    "fused": ({"x": zeros("model.layers.0.self_attn.qkv_proj.weight", 64, 32)}, "qkv_proj"),
    **{f"weights in {name}": (
        {"blk.0.ffn_up.weight": zeros("model.layers.0.mlp.up_proj.weight", 48, 32, code=code)},
        f"blk.0.ffn_up.weight ({name})")
       for name, code in (("F64", 3), ("I32", 4), ("I64", 5), ("I8", 6), ("U8", 7))},
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(tmp_path, case):
    tensors, culprit = TENSORS[case]
    assert culprit in refusal(apr_builder.build(tmp_path / "m.apr", tensors=tensors), ModelError)


def test_trap_10_rows_beyond_the_vocabulary_are_normal(tmp_path):
    file = open_model(apr_builder.build(tmp_path / "m.apr", Shape(n_padding=10)))
    assert (file.config.n_vocab, len(file.vocabulary)) == (N + 10, N)


def output_copy(path: Path, change: int = 0) -> raw.Tensor:
    """The embedding of a built file once more, as lm_head; ``change`` is added to its last byte."""
    container = open_container(path)
    data = bytearray(container.raw("model.embed_tokens.weight").tobytes())
    data[-1] ^= change
    return raw.Tensor("lm_head.weight", container.tensors["model.embed_tokens.weight"].shape, raw.F32, bytes(data))


def test_trap_13_a_synthesised_copy_of_the_embedding_is_recognised(tmp_path):
    tied = apr_builder.build(tmp_path / "tied.apr")
    copied = apr_builder.build(tmp_path / "copied.apr", metadata={"tied_embeddings": True},
                               tensors={"output.weight": output_copy(tied)})  # fmt: skip
    file = open_model(copied)
    assert file.config.tied and "output.weight" not in file.tensors and not file.warnings
    assert same_model(file, open_model(tied))


def test_trap_13_what_is_no_copy_is_used_as_it_is(tmp_path):
    tied = apr_builder.build(tmp_path / "tied.apr")
    for claimed, change in ((True, 1), (False, 0), (None, 0)):
        file = open_model(apr_builder.build(tmp_path / "m.apr", metadata={"tied_embeddings": claimed},
                                            tensors={"output.weight": output_copy(tied, change)}))  # fmt: skip
        assert not file.config.tied and "output.weight" in file.tensors
        assert bool(file.warnings) is bool(claimed)


def test_special_tokens_are_concluded_where_the_file_does_not_state_them(tmp_path):
    """<think> and <tool_call> cannot be made by merges: they were added, and must not be split (#3726)."""
    added = ["<think>", "</tool_call>", "[PAD7]", "<|x|>", "Ġ<think>"]
    metadata = {"tokenizer.token_type": ..., "tokenizer.vocabulary": [*TOKENS, *added], "tokenizer.vocab_size": N + 5}
    file = open_model(apr_builder.build(tmp_path / "m.apr", Shape(n_padding=5), metadata=metadata))
    assert file.vocabulary.kinds[:N] == KINDS
    assert file.vocabulary.kinds[N:] == [USER_DEFINED, USER_DEFINED, UNUSED, CONTROL, USER_DEFINED]
    assert file.vocabulary.kinds[TOKENS.index("Ġthe")] == NORMAL
    assert any("special" in warning for warning in file.warnings)


def test_a_pre_tokeniser_that_is_not_named_is_qwen2s_with_a_warning(tmp_path):
    file = open_model(apr_builder.build(tmp_path / "m.apr", metadata={"tokenizer.pre_type": ...}))
    assert file.vocabulary.pre == "qwen2" and any("pre-tokeniser" in warning for warning in file.warnings)


def test_trap_16_the_census_is_by_stored_type(tmp_path):
    tensors = {
        "blk.0.ffn_up.weight": zeros("model.layers.0.mlp.up_proj.weight", 48, 32, code=raw.APR_Q4),
        "blk.0.ffn_gate.weight": zeros("model.layers.0.mlp.gate_proj.weight", 48, 32, code=raw.APR_Q8),
    }
    file = open_model(apr_builder.build(tmp_path / "m.apr", tensors=tensors))
    assert file.census() == {"F32": 12, "APR_Q4": 1, "APR_Q8": 1}


def test_opening_decodes_nothing(tmp_path, monkeypatch):
    from assay.formats.containers.apr import Apr

    path = apr_builder.build(tmp_path / "m.apr")
    monkeypatch.setattr(Apr, "raw", lambda *_: pytest.fail("a tensor was read"))
    open_model(path)
