"""What a file states without changing the model runs; what changes it is refused as not supported, not as damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from assay.formats import FormatError, ModelError, ModelFile, open_model
from assay.formats.conversion.convert import convert
from tests import apr_builder, apr_files, hf_builder, model_builder, safetensors_files
from tests.model_builder import Shape

SHAPE = Shape(n_layers=3, context=512)
N_PAIRS = SHAPE.head_dim // 2
INV_FREQ = "model.layers.{}.self_attn.rotary_emb.inv_freq"


def built(folder: Path, container: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray] | None = None,
          dtype: str = "F32") -> Path:  # fmt: skip
    """SHAPE as a model of any container, with ``metadata`` and vectors ``tensors``, stored as ``dtype``, beside it."""
    tensors = tensors or {}
    raw = {name: quants.quantize(values.astype(np.float32), GGMLQuantizationType[dtype])
           for name, values in tensors.items()}  # fmt: skip
    if container == "gguf":
        return model_builder.build(folder / "m.gguf", SHAPE, metadata=metadata,
                                   tensors={name: (rows, dtype) for name, rows in raw.items()})  # fmt: skip
    if container == "apr":
        extra = {name: apr_files.Tensor(name, (len(tensors[name]),), apr_builder.CODES[dtype], rows.tobytes())
                 for name, rows in raw.items()}  # fmt: skip
        return apr_builder.build(folder / "m.apr", SHAPE, metadata=metadata, tensors=extra)
    made = hf_builder.build(folder / "hf", SHAPE, config=metadata)
    stored = hf_builder.tensors(SHAPE, "BF16")
    stored |= {name: (dtype, tensors[name].shape, rows.tobytes()) for name, rows in raw.items()}
    (made / "model.safetensors").write_bytes(safetensors_files.packed(stored, {"format": "pt"}))
    return made


def plain(folder: Path, container: str) -> ModelFile:
    (folder / "plain").mkdir()
    return open_model(built(folder / "plain", container, {}))


def gguf(**keys: Any) -> dict[str, Any]:
    return {f"qwen2.{key.replace('__', '.')}": value for key, value in keys.items()}


def scaled(**rope: Any) -> dict[str, Any]:
    return {"rope_scaling": rope}


HARMLESS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gguf, linear by 1": ("gguf", gguf(rope__scaling__type="linear", rope__scaling__factor=1.0), "rope scaling"),
    "gguf, yarn by 1": ("gguf", gguf(rope__scaling__type="yarn", rope__scaling__factor=1.0,
                                     rope__scaling__attn_factor=1.0), "rope scaling"),
    "gguf, none by 4": ("gguf", gguf(rope__scaling__type="none", rope__scaling__factor=4.0), "rope scaling"),
    "gguf, a window of the context": ("gguf", gguf(attention__sliding_window=512), "sliding window"),
    "gguf, kv heads of each layer": ("gguf", gguf(attention__head_count_kv=[1, 1, 1]), ""),
    "gguf, heads of each layer": ("gguf", gguf(attention__head_count=[2, 2, 2], feed_forward_length=[48] * 3), ""),
    "gguf, scales of 1": ("gguf", gguf(logit_scale=1.0, embedding_scale=1.0, residual_scale=1.0), ""),
    "gguf, no caps": ("gguf", gguf(final_logit_softcapping=0.0, expert_count=0, attention__causal=True), ""),
    "gguf, a name that is a number": ("gguf", {"general.name": 7}, "not text"),
    "gguf, names": ("gguf", {"general.name": ["a", "b"]}, "not text"),
    "apr, linear by 1": ("apr", scaled(type="linear", factor=1.0), "rope scaling"),
    "apr, yarn by 1": ("apr", scaled(rope_type="yarn", factor=1), "rope scaling"),
    "apr, a window of the context": ("apr", {"use_sliding_window": True, "sliding_window": 600}, "sliding window"),
    "apr, no window": ("apr", {"use_sliding_window": False, "sliding_window": 16}, ""),
    "apr, kv heads of each layer": ("apr", {"num_kv_heads": [1, 1, 1], "num_heads": [2, 2, 2]}, ""),
    "apr, all of a head is rotated": ("apr", {"partial_rotary_factor": 1.0, "num_experts": 0}, ""),
    "apr, a name that is a number": ("apr", {"name": 7}, "not text"),
    "hf, linear by 1": ("hf", scaled(type="linear", factor=1.0), "rope scaling"),
    "hf, llama3 by 1": ("hf", scaled(rope_type="llama3", factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                     original_max_position_embeddings=8192), "rope scaling"),
    "hf, dynamic by 4, which starts beyond the context": ("hf", scaled(type="dynamic", factor=4.0), "rope scaling"),
    "hf, yarn by 1 of this context": ("hf", scaled(type="yarn", factor=1.0, attention_factor=1.0,
                                                   original_max_position_embeddings=512), "rope scaling"),
    "hf, default by 2": ("hf", scaled(rope_type="default", factor=2.0), "rope scaling"),
    "hf, new names": ("hf", {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                             "layer_types": ["full_attention"] * 3, "dtype": "bfloat16", "torch_dtype": ...}, ""),
    "hf, rotation by kinds of layers": ("hf", {"rope_theta": ..., "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, ""),
    "hf, theta twice": ("hf", {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1000000}}, ""),
    "hf, all layers below the window's": ("hf", {"use_sliding_window": True, "sliding_window": 16,
                                                 "max_window_layers": 3}, ""),
    "hf, a window of the context": ("hf", {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 0},
                                    "sliding window"),
    "hf, a window of null": ("hf", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ""),
    "hf, sliding layers that see everything": ("hf", {
        "use_sliding_window": True, "sliding_window": 512, "layer_types": ["sliding_attention"] * 3}, "sliding window"),
    "hf, kv heads of each layer": ("hf", {"num_key_value_heads": [1, 1, 1]}, ""),
    "hf, swish": ("hf", {"hidden_act": "swish"}, ""),
    "hf, attention_bias": ("hf", {"attention_bias": True, "mlp_bias": False, "partial_rotary_factor": 1}, ""),
    "hf, a name that is a list": ("hf", {"_name_or_path": ["x"]}, "not text"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_nothing_runs(tmp_path: Path, case: str) -> None:
    container, metadata, warning = HARMLESS[case]
    model, truth = open_model(built(tmp_path, container, metadata)), plain(tmp_path, container)
    assert model.config == truth.config and model.vocabulary == truth.vocabulary
    assert list(model.tensors) == list(truth.tensors)
    said = [line for line in model.warnings if line not in truth.warnings]
    assert len(said) == bool(warning) and all(warning in line for line in said), model.warnings


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gguf, linear by 2": ("gguf", gguf(rope__scaling__type="linear", rope__scaling__factor=2.0), "rope scaling"),
    "gguf, yarn without a factor": ("gguf", gguf(rope__scaling__type="yarn"), "rope scaling"),
    "gguf, yarn by 1, attention by 1.1": ("gguf", gguf(
        rope__scaling__type="yarn", rope__scaling__factor=1.0, rope__scaling__attn_factor=1.1), "rope scaling"),
    "gguf, attention by 2 alone": ("gguf", gguf(rope__scaling__attn_factor=2.0), "rope scaling"),
    "gguf, longrope": ("gguf", gguf(rope__scaling__type="longrope", rope__scaling__factor=1.0), "rope scaling"),
    "gguf, a factor that is not a number": ("gguf", gguf(rope__scaling__factor=float("nan")), "rope scaling"),
    "gguf, a window": ("gguf", gguf(attention__sliding_window=511), "3 of its 3 layers"),
    "gguf, other kv heads in a layer": ("gguf", gguf(attention__head_count_kv=[1, 2, 1]), "layer to layer"),
    "gguf, other widths in a layer": ("gguf", gguf(feed_forward_length=[48, 48, 32]), "layer to layer"),
    "gguf, logits scaled": ("gguf", gguf(logit_scale=0.5), "logits are scaled"),
    "gguf, logits capped": ("gguf", gguf(final_logit_softcapping=30.0), "capped"),
    "gguf, not causal": ("gguf", gguf(attention__causal=False), "sees what comes after"),
    "gguf, experts": ("gguf", gguf(expert_count=8), "experts"),
    "apr, linear by 2": ("apr", scaled(type="linear", factor=2.0), "rope scaling"),
    "apr, dynamic without a factor": ("apr", scaled(type="dynamic"), "rope scaling"),
    "apr, a window": ("apr", {"use_sliding_window": True, "sliding_window": 256}, "3 of its 3 layers"),
    "apr, other heads in a layer": ("apr", {"num_heads": [2, 4, 2]}, "layer to layer"),
    "apr, part of a head rotated": ("apr", {"partial_rotary_factor": 0.5}, "rotated"),
    "hf, linear by 1.5": ("hf", scaled(type="linear", factor=1.5), "rope scaling"),
    "hf, a factor in words": ("hf", scaled(type="linear", factor="1.0"), "rope scaling"),
    "hf, a factor that is true": ("hf", scaled(type="linear", factor=True), "rope scaling"),
    "hf, a factor beyond every float": ("hf", scaled(type="dynamic", factor=10**400), "rope scaling"),
    "hf, yarn by 1 of another context": ("hf", scaled(type="yarn", factor=1.0, original_max_position_embeddings=128),
                                         "rope scaling"),
    "hf, dynamic of another context": ("hf", scaled(type="dynamic", factor=2.0, original_max_position_embeddings=128),
                                       "rope scaling"),
    "hf, two kinds": ("hf", scaled(type="yarn", rope_type="default", factor=4.0), "rope scaling"),
    "hf, a kind that is a list": ("hf", scaled(type=["linear"], factor=1.0), "rope scaling"),
    "hf, by kinds of layers": ("hf", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
                               "rope scaling"),
    "hf, a window from layer 2 on": ("hf", {"use_sliding_window": True, "sliding_window": 511,
                                            "max_window_layers": 2}, "1 of its 3 layers"),
    "hf, a window in one of the layers": ("hf", {"use_sliding_window": True, "sliding_window": 16, "layer_types": [
        "full_attention", "sliding_attention", "full_attention"]}, "1 of its 3 layers"),
    "hf, linear attention": ("hf", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
    "hf, other kv heads in a layer": ("hf", {"num_key_value_heads": [1, 1, 2]}, "layer to layer"),
    "hf, part of a head rotated": ("hf", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotated"),
    "hf, not causal": ("hf", {"is_causal": False}, "sees what comes after"),
    "hf, GELU": ("hf", {"hidden_act": "gelu"}, "gelu"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_changes_the_model_is_not_supported(tmp_path: Path, case: str) -> None:
    container, metadata, culprit = OTHERS[case]
    with pytest.raises(ModelError) as caught:
        open_model(built(tmp_path, container, metadata))
    text = str(caught.value)
    assert culprit in text and "not supported" in text and "damaged" not in text and text.isprintable()


@pytest.mark.parametrize(("container", "metadata"), [
    ("gguf", gguf(attention__head_count_kv=[1, 1])), ("gguf", gguf(attention__head_count_kv=[1, 1, 1, 1])),
    ("apr", {"num_kv_heads": []}), ("hf", {"num_key_value_heads": [1]}), ("hf", {"layer_types": ["full_attention"]}),
    ("hf", {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}),
])  # fmt: skip
def test_numbers_that_are_not_of_one_model_are_refused(tmp_path: Path, container: str, metadata: Any) -> None:
    with pytest.raises(ModelError):
        open_model(built(tmp_path, container, metadata))


@pytest.mark.parametrize(("container", "metadata"), [
    ("gguf", gguf(attention__head_count_kv=["1", "1", "1"])), ("apr", {"num_kv_heads": [1, 1.0, 1]}),
    ("hf", {"num_key_value_heads": [1, True, 1]}), ("hf", {"rope_parameters": {"rope_theta": "1e6"}}),
    ("hf", {"sliding_window": "512", "use_sliding_window": True}),
])  # fmt: skip
def test_values_of_another_type_are_damage(tmp_path: Path, container: str, metadata: Any) -> None:
    with pytest.raises(FormatError):
        open_model(built(tmp_path, container, metadata))


def frequencies(theta: float = SHAPE.theta) -> np.ndarray:
    """As old checkpoints hold them: a power in f32."""
    exponents = np.arange(0, SHAPE.head_dim, 2, dtype=np.float32) / np.float32(SHAPE.head_dim)
    return (np.float32(1) / np.float32(theta) ** exponents).astype(np.float32)


REPEATED = {"gguf": "blk.{}.attn_rot_embd.weight", "apr": INV_FREQ, "hf": INV_FREQ}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("container", REPEATED)
def test_frequencies_that_repeat_theta_are_ignored(tmp_path: Path, container: str, dtype: str) -> None:
    tensors = {REPEATED[container].format(layer): frequencies() for layer in range(3)}
    model = open_model(built(tmp_path, container, {}, tensors, dtype))
    assert list(model.tensors) == list(plain(tmp_path, container).tensors)
    assert any("3 tensors repeat the frequencies" in warning for warning in model.warnings)


SPOILED: dict[str, np.ndarray] = {
    "of another theta": frequencies(1e4),
    "of a theta near by": frequencies(SHAPE.theta * 1.01),
    "halved": frequencies() / 2,
    "one of them": np.where(np.arange(N_PAIRS) == 5, 1.02, 1) * frequencies(),
    "the last of them, the smallest": np.where(np.arange(N_PAIRS) == N_PAIRS - 1, 1.1, 1) * frequencies(),
    "too few": frequencies()[:-1],
    "zeros": np.zeros(N_PAIRS),
    "not a number": np.full(N_PAIRS, np.nan),
}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("case", SPOILED)
@pytest.mark.parametrize("container", REPEATED)
def test_other_frequencies_are_not_supported(tmp_path: Path, container: str, case: str, dtype: str) -> None:
    path = built(tmp_path, container, {}, {REPEATED[container].format(1): SPOILED[case]}, dtype)
    with pytest.raises(ModelError, match="not supported"):
        open_model(path)


def test_factors_of_one_are_ignored_and_others_refused(tmp_path: Path) -> None:
    model = open_model(built(tmp_path, "gguf", {}, {"rope_freqs.weight": np.ones(N_PAIRS)}))
    assert "rope_freqs.weight" not in model.tensors and len(model.warnings) == 1
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="rope_freqs"):
        open_model(built(tmp_path / "other", "gguf", {}, {"rope_freqs.weight": np.full(N_PAIRS, 2.0)}))


def test_what_is_ignored_is_named_by_a_conversion(tmp_path: Path) -> None:
    source = built(tmp_path, "hf", scaled(type="linear", factor=1.0), {INV_FREQ.format(0): frequencies()})
    census = convert(source, tmp_path / "x.gguf")
    dropped = {record["key"]: record["reason"] for record in census["metadata"] if record["fate"] == "dropped"}
    assert dropped == {f"tensor {INV_FREQ.format(0)}": "it repeats what rope_theta says"}
    assert open_model(tmp_path / "x.gguf").config == replace(open_model(source).config)


BROKEN = {"latin-1": "café".encode("latin-1"), "half a character": "ab😀".encode()[:-2], "a NUL and 0xff": b"a\0\xff"}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("key", ["general.name", "general.description", "general.author", "general.license"])
def test_text_that_only_describes_need_not_be_utf_8(tmp_path: Path, key: str, case: str) -> None:
    path = model_builder.build(tmp_path / "m.gguf", SHAPE, metadata={key: "X" * len(BROKEN[case])})
    path.write_bytes(path.read_bytes().replace(b"X" * len(BROKEN[case]), BROKEN[case], 1))
    model = open_model(path)
    assert model.config == plain(tmp_path, "gguf").config
    if key == "general.name":
        assert model.name == BROKEN[case].decode(errors="backslashreplace") and "UTF-8" in model.warnings[0]
    convert(path, tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("metadata", [
    gguf(attention__head_count_kv=[1, 1, 1]), gguf(rope__scaling__type="linear", rope__scaling__factor=1.0),
    {"general.name": 7},
])  # fmt: skip
def test_it_survives_the_way_through_apr(tmp_path: Path, metadata: Any) -> None:
    source = built(tmp_path, "gguf", metadata)
    convert(source, tmp_path / "x.apr")
    convert(tmp_path / "x.apr", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == source.read_bytes()
