"""A Hugging Face folder is the same model as its GGUF file; what it says otherwise than Qwen2's own is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from assay.formats import AssayError, FormatError, ModelError, open_model
from assay.formats.contract.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tests import hf_builder
from tests.model_builder import TOKENS, Shape

SHAPE = Shape(n_layers=2, tied=False)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_same_model_as_the_gguf_file(tmp_path: Path, dtype: str, shards: int) -> None:
    ours = open_model(hf_builder.build(tmp_path / "hf", SHAPE, dtype=dtype, shards=shards))
    theirs = open_model(hf_builder.as_gguf(tmp_path / "x.gguf", dtype, SHAPE))
    assert ours.format == "hf" and ours.config == theirs.config and ours.chat_template == theirs.chat_template
    assert ours.vocabulary == theirs.vocabulary
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(tensor.decode(), theirs.tensors[name].decode(), name)


def test_both_engines_run_a_folder(tmp_path: Path) -> None:
    """The same logits as from the GGUF file, to the bit: the same numbers went in."""
    hf, gguf = hf_builder.build(tmp_path / "hf", SHAPE), hf_builder.as_gguf(tmp_path / "x.gguf", "BF16", SHAPE)
    ids = [5, 77, 130, 9]
    for engine in (reference, accel):
        a, b = (engine.load(path, arith="f32") for path in (hf, gguf))
        assert a.tokenizer.encode("the <|im_end|> the") == b.tokenizer.encode("the <|im_end|> the")
        np.testing.assert_array_equal(np.asarray(a.forward(ids)), np.asarray(b.forward(ids)), engine.__name__)


def test_the_tokenizer_reads_as_the_library_does(tmp_path: Path) -> None:
    engine = reference.load(hf_builder.build(tmp_path / "hf"))
    for text in ("the thé\n\n  12,3", "<|im_start|>the<|im_end|>", "e\u0301"):
        assert engine.tokenizer.encode(text) == hf_builder.tokenizer().encode(text).ids


def test_rows_without_a_token_are_named_as_in_gguf(tmp_path: Path) -> None:
    model = open_model(hf_builder.build(tmp_path / "hf", replace(SHAPE, n_padding=3)))
    n = len(TOKENS)
    assert model.vocabulary.tokens[n:] == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert list(model.vocabulary.kinds[n - 3 :]) == [CONTROL] * 3 + [UNUSED] * 3


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The library's tokenizer.json with a change."""
    values = json.loads(hf_builder.tokenizer().to_str())
    change(values)
    return {"tokenizer.json": values}


def test_kinds_of_added_tokens(tmp_path: Path) -> None:
    """special, or spelled as if it were: CONTROL; otherwise USER_DEFINED; and merges may be strings."""

    def change(values: dict[str, Any]) -> None:
        for added, content in zip(values["added_tokens"], ("<|fim_prefix|>", "<tool_call>"), strict=False):
            added |= {"special": False, "content": content}
        values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]

    model = open_model(hf_builder.build(tmp_path / "hf", files={**edited(change), "tokenizer_config.json": None}))
    kinds = dict(zip(model.vocabulary.tokens, model.vocabulary.kinds, strict=True))
    assert [kinds[token] for token in ("<|fim_prefix|>", "<tool_call>", "<|im_end|>", "the")] == [
        CONTROL, USER_DEFINED, CONTROL, NORMAL]  # fmt: skip
    assert model.vocabulary.merges == ["t h", "th e", "Ġ the"]


def set_in(*path: Any, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return change


TOKENIZERS = {
    "WordPiece": set_in("model", "type", to="WordPiece"),
    "byte fallback": set_in("model", "byte_fallback", to=True),
    "ignore merges": set_in("model", "ignore_merges", to=True),
    "dropout": set_in("model", "dropout", to=0.1),
    "an unknown token": set_in("model", "unk_token", to="<unk>"),
    "no merges": set_in("model", "merges", to=None),
    "a merge of three": set_in("model", "merges", 0, to=["t", "h", "e"]),
    "a merge that is a number": set_in("model", "merges", 0, to=5),
    "a vocabulary that is a list": set_in("model", "vocab", to=[["a", 0]]),
    "an id beyond the rows": set_in("model", "vocab", "the", to=5_000_000),
    "an id that is text": set_in("model", "vocab", "the", to="7"),
    "an id that is true": set_in("model", "vocab", "the", to=True),
    "an id twice": set_in("model", "vocab", "the", to=0),
    "GPT-2's pattern": set_in("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", to=r"\w+"),
    "digits in threes": set_in("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex",
                               to=hf_builder.QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")),
    "a space in front": set_in("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", to=True),
    "its own regex as well": set_in("pre_tokenizer", "pretokenizers", 1, "use_regex", to=True),
    "no pre-tokeniser": set_in("pre_tokenizer", to=None),
    "steps that are not a list": set_in("pre_tokenizer", "pretokenizers", to=7),
    "NFKC": set_in("normalizer", to={"type": "NFKC"}),
    "lower case as well": set_in("normalizer", to={"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Lowercase"}]}),
    "a template around the text": set_in("post_processor", to={"type": "TemplateProcessing"}),
    "another decoder": set_in("decoder", to={"type": "WordPiece"}),
    "no decoder": set_in("decoder", to=None),
    "an added token that swallows blanks": set_in("added_tokens", 0, "lstrip", to=True),
    "an added token that is a word": set_in("added_tokens", 0, "single_word", to=True),
    "an added token that is normalised": set_in("added_tokens", 0, to={
        "id": 259, "content": "é", "normalized": True, "special": True}),
    "an added token without content": set_in("added_tokens", 0, "content", to=None),
    "an added token of another id": set_in("added_tokens", 0, "id", to=3),
    "added tokens that are text": set_in("added_tokens", to="x"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_is_not_qwen2s(tmp_path: Path, case: str) -> None:
    folder = hf_builder.build(tmp_path / "hf", files=edited(TOKENIZERS[case]))
    with pytest.raises(ModelError) as caught:
        open_model(folder)
    assert "tokenizer.json" in caught.value.where or case == "an id twice", str(caught.value)


def test_no_normaliser_is_a_warning(tmp_path: Path) -> None:
    model = open_model(hf_builder.build(tmp_path / "hf", files=edited(set_in("normalizer", to=None))))
    assert any("--no-nfc" in warning for warning in model.warnings)


CONFIGS: dict[str, tuple[type[AssayError], dict[str, Any]]] = {
    "another architecture": (ModelError, {"architectures": ["LlamaForCausalLM"]}),
    "another type": (ModelError, {"model_type": "qwen3"}),
    "no type": (FormatError, {"model_type": ...}),
    "AWQ": (ModelError, {"quantization_config": {"quant_method": "awq"}}),
    "YaRN": (ModelError, {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "YaRN, newer": (ModelError, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}),
    "a sliding window": (ModelError, {"use_sliding_window": True, "sliding_window": 256, "max_window_layers": 0}),
    "GELU": (ModelError, {"hidden_act": "gelu"}),
    "no rope_theta": (FormatError, {"rope_theta": ...}),
    "rope_theta in words": (FormatError, {"rope_theta": "1e6"}),
    "rope_theta of 0": (ModelError, {"rope_theta": 0.0}),
    "rope_theta beyond every float": (ModelError, {"rope_theta": 10**400}),
    "rope_theta below every float": (ModelError, {"rope_theta": -(10**400)}),
    "an eos of 400 digits": (ModelError, {"eos_token_id": 10**400}),
    "layers that no float can count": (ModelError, {"num_hidden_layers": 10**4299}),
    "no epsilon": (FormatError, {"rms_norm_eps": ...}),
    "layers in words": (FormatError, {"num_hidden_layers": "1"}),
    "layers that are true": (FormatError, {"num_hidden_layers": True}),
    "2**31 layers": (ModelError, {"num_hidden_layers": 2**31}),
    "one layer more than there is": (ModelError, {"num_hidden_layers": 2}),
    "a vocabulary that is not the embedding's": (ModelError, {"vocab_size": 1 << 24}),
    "kv heads that do not divide": (ModelError, {"num_key_value_heads": 3}),
    "not tied, and no output": (ModelError, {"tie_word_embeddings": False}),
    "an eos beyond the vocabulary": (ModelError, {"eos_token_id": 151645}),
    "an eos in words": (FormatError, {"eos_token_id": "x"}),
    "eos ids in words": (FormatError, {"eos_token_id": ["x"]}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_run(tmp_path: Path, case: str) -> None:
    error, change = CONFIGS[case]
    with pytest.raises(error) as caught:
        open_model(hf_builder.build(tmp_path / "hf", config=change))
    assert type(caught.value) is error and str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_chat_templates_of_any_name(tmp_path: Path) -> None:
    """A name need not be a text, nor anything that could be looked up."""
    templates = [{"name": [], "template": "a"}, {"name": None}, {}, {"name": "default", "template": "b"}]
    folder = hf_builder.build(tmp_path / "hf", files={"tokenizer_config.json": {"chat_template": templates}})
    assert open_model(folder).chat_template == "b"


def test_newer_spellings(tmp_path: Path) -> None:
    """rope_theta inside rope_parameters; the template in a file of its own; several templates."""
    folder = hf_builder.build(
        tmp_path / "hf", config={"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        files={"chat_template.jinja": "{{ 1 }}"})  # fmt: skip
    model = open_model(folder)
    assert model.config.rope_theta == 5e5 and model.chat_template == "{{ 1 }}"
    several = {"eos_token": {"content": "<|im_end|>"}, "chat_template": [
        {"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]}  # fmt: skip
    model = open_model(hf_builder.build(tmp_path / "hf2", files={"tokenizer_config.json": several}))
    assert model.chat_template == "a" and any("tool_use" in warning for warning in model.warnings)
    assert model.vocabulary.text_of(model.vocabulary.eos_id) == "<|im_end|>"


def test_a_tied_model_may_hold_a_copy_but_nothing_else(tmp_path: Path) -> None:
    folder = hf_builder.build(tmp_path / "hf")
    stored = hf_builder.tensors(Shape(), "BF16")
    kind, shape, data = stored["model.embed_tokens.weight"]
    hf_builder.write_weights(folder, {**stored, "lm_head.weight": (kind, shape, data)}, 1)
    assert open_model(folder).config.tied
    hf_builder.write_weights(folder, {**stored, "lm_head.weight": (kind, shape, data[::-1])}, 1)
    with pytest.raises(ModelError, match="not the embedding"):
        open_model(folder)


def rewritten_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


INDEXES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a tensor too many": set_in("weight_map", "extra", to="model-00001-of-00002.safetensors"),
    "a tensor in the other shard": set_in("weight_map", "model.norm.weight", to="model-00001-of-00002.safetensors"),
    "a path": set_in("weight_map", "model.norm.weight", to="../x.safetensors"),
    "a pickle": set_in("weight_map", "model.norm.weight", to="pytorch_model.bin"),
    "no map": set_in("weight_map", to=[]),
    "a map of numbers": set_in("weight_map", to={"x": 1}),
    "a tensor that it does not list": lambda values: values["weight_map"].pop("model.norm.weight"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_lies(tmp_path: Path, case: str) -> None:
    folder = hf_builder.build(tmp_path / "hf", shards=2)
    rewritten_index(folder, INDEXES[case])
    with pytest.raises(FormatError) as caught:
        open_model(folder)
    assert caught.value.code == "bad-index"


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    def code_of(folder: Path) -> str:
        with pytest.raises(FormatError) as caught:
            open_model(folder)
        return caught.value.code

    assert code_of(tmp_path) == "no-model"
    folder = hf_builder.build(tmp_path / "hf", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert code_of(folder) == "no-file"
    (folder / "model.safetensors.index.json").unlink()
    assert code_of(folder) == "no-model"
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4")
    assert code_of(folder) == "pickle"
    (folder / "config.json").write_text('{"a": 1, "a": 2}')
    assert code_of(folder) == "bad-json"
    with (folder / "config.json").open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 30)
    assert code_of(folder) == "json-too-large"


def test_sha256_covers_every_file(tmp_path: Path) -> None:
    folder = hf_builder.build(tmp_path / "hf")
    before = open_model(folder).sha256
    assert before == open_model(folder).sha256
    path = folder / "generation_config.json"
    path.write_text(path.read_text() + "\n")
    assert open_model(folder).sha256 != before
