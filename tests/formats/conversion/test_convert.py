"""Conversions there and back: the same bytes, the same metadata; and what cannot go over is refused or named."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from assay.formats import AssayError, InputError, ModelError, open_model
from assay.formats.containers.gguf import read_gguf
from assay.formats.containers.opening import open_container
from assay.formats.conversion import convert as conversion
from assay.formats.conversion.convert import convert
from assay.formats.conversion.sidecar import alike
from assay.goldens import BUILTIN
from tests import apr_builder, hf_builder
from tests.model_builder import KINDS, MERGES, TOKENS, Shape, build

K_QUANTS = Shape(n_layers=2, hidden=256, n_heads=4, n_kv_heads=2, head_dim=64, ffn=512, tied=False, types={
    "attn_q": ["Q4_K", "Q6_K"], "ffn_down": ["Q6_K"], "token_embd": ["Q4_K"], "output": ["Q6_K"], "ffn_up": ["F16"]})
FIVES = replace(K_QUANTS, types={"attn_q": ["Q5_0", "Q4_K"], "ffn_up": ["Q8_0"]})
SMALL = Shape(n_layers=2, tied=False)
ODD: dict[str, Any] = {
    "general.name": "näme \U0001f600", "general.license": "mit", "general.tags": ["b", "a"],
    "general.quantized_at": (1.5, GGUFValueType.FLOAT64), "general.file_type": 15,
    "my.u64": (2**64 - 1, GGUFValueType.UINT64), "my.i8": (-3, GGUFValueType.INT8),
    "my.nan": (float("nan"), GGUFValueType.FLOAT32), "my.third": (1 / 3, GGUFValueType.FLOAT32),
    "my.flags": ([True, False], GGUFValueType.BOOL), "my.empty": "", "Upper Key": 1,
    "tokenizer.ggml.eot_token_id": TOKENS.index("<|im_end|>"), "tokenizer.chat_template": "{{ 1 }}",
    "tokenizer.ggml.padding_token_id": 259,
}  # fmt: skip


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def json_files(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
            for path in folder.iterdir() if path.suffix != ".safetensors"}  # fmt: skip


def weights(folder: Path) -> dict[str, tuple[str, bytes]]:
    container = open_container(folder)
    return {name: (info.type.name, container.raw(name).tobytes()) for name, info in container.tensors.items()}


def verdicts(census: dict[str, Any]) -> Counter[str]:
    return Counter(record["verdict"] for record in census["tensors"])


def fates(census: dict[str, Any]) -> dict[str, str]:
    return {record["key"]: record["fate"] for record in census["metadata"]}


SOURCES: dict[str, Any] = {
    "built-in": lambda path: path.write_bytes(BUILTIN.read_bytes()),
    "K-quants": lambda path: build(path, K_QUANTS),
    "tied": lambda path: build(path, replace(K_QUANTS, tied=True)),
    "odd metadata": lambda path: build(path, K_QUANTS, metadata=ODD),
    "rows without tokens": lambda path: build(path, replace(K_QUANTS, n_padding=5), metadata={
        "tokenizer.ggml.tokens": [*TOKENS, "[PAD262]"], "tokenizer.ggml.token_type": [*KINDS, 5]}),
    "another name of the pattern": lambda path: build(path, K_QUANTS, metadata={
        "tokenizer.ggml.pre": "deepseek-r1-qwen"}),
    "alignment 64": lambda path: build(path, K_QUANTS, metadata={"general.alignment": 32}),
    "version 2": lambda path: as_version_2(build(path, K_QUANTS)),
    "version 2, odd metadata": lambda path: as_version_2(build(path, K_QUANTS, metadata=ODD)),
}  # fmt: skip


def as_version_2(path: Path) -> Path:
    """The file in the version before: the layout is the same."""
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + (2).to_bytes(4, "little") + raw[8:])
    return path


@pytest.mark.parametrize("case", SOURCES)
def test_gguf_to_apr_to_gguf_is_the_same_file(tmp_path: Path, case: str) -> None:
    source = tmp_path / "source.gguf"
    SOURCES[case](source)
    census = convert(source, tmp_path / "x.apr")
    assert set(verdicts(census)) == {"same bytes"} and not {"dropped", "changed"} & set(fates(census).values())
    convert(tmp_path / "x.apr", tmp_path / "back.gguf")
    assert digest(tmp_path / "back.gguf") == digest(source)
    ours, theirs = open_model(tmp_path / "x.apr"), open_model(source)
    assert ours.config == theirs.config and ours.chat_template == theirs.chat_template
    assert ours.vocabulary == replace(theirs.vocabulary, kinds=list(theirs.vocabulary.kinds))


@pytest.mark.parametrize("case", SOURCES)
def test_gguf_through_a_folder_keeps_all_metadata(tmp_path: Path, case: str) -> None:
    source = tmp_path / "source.gguf"
    SOURCES[case](source)
    census = convert(source, tmp_path / "hf", treatment="F32", shard_bytes=100_000)
    assert set(verdicts(census)) == {"same bytes", "same values"}
    changed = {key for key, fate in fates(census).items() if fate in ("dropped", "changed")}
    of_types = {"general.file_type", "general.quantization_version"}  # they state the types
    assert changed <= of_types
    convert(tmp_path / "hf", tmp_path / "back.gguf")
    before, after = read_gguf(source).metadata.stored, read_gguf(tmp_path / "back.gguf").metadata.stored
    assert [key for key in after if key not in of_types] == [key for key in before if key not in of_types]
    for key in before.keys() - of_types:
        assert alike(after[key], before[key]), key


HF_CONFIG = {"_name_or_path": "Qwen/x", "max_window_layers": 21, "unknown": {"a": [1, 1.0, True, None]}, "vocab": 7}


@pytest.mark.parametrize("through", ["apr", "gguf"])
@pytest.mark.parametrize("older", [False, True])
def test_a_folder_there_and_back(tmp_path: Path, through: str, older: bool) -> None:
    """The same JSON and the same bytes of every tensor, norms and biases in BF16 included."""
    tokenizer = json.loads(hf_builder.tokenizer().to_str())
    files = {"chat_template.jinja": "{{ 2 }}"}
    if older:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
        files = {}
    source = hf_builder.build(tmp_path / "hf", SMALL, config=HF_CONFIG, files={**files, "tokenizer.json": tokenizer})
    census = convert(source, tmp_path / f"x.{through}")
    assert verdicts(census)["same bytes"] == (27 if through == "apr" else 16)  # vectors become F32
    assert set(fates(census).values()) == {"carried", "kept aside"}
    convert(tmp_path / f"x.{through}", tmp_path / "back")
    assert weights(tmp_path / "back") == weights(source)
    assert json_files(tmp_path / "back") == json_files(source)
    assert json.dumps(json_files(tmp_path / "back")["config.json"]) == json.dumps(json_files(source)["config.json"])


@pytest.mark.parametrize("through", ["gguf", "hf"])
@pytest.mark.parametrize("tied", [False, True])
def test_apr_there_and_back(tmp_path: Path, through: str, tied: bool) -> None:
    extra = {"model.hidden_size": 32, "license": None, "author": "A", "created_at": "2026", "quantization": {"bits": 4},
             "tensor_shapes": {"model.norm.weight": [32]}, "hidden_dim": 32}  # fmt: skip
    source = apr_builder.build(tmp_path / "x.apr", replace(SMALL, tied=tied), metadata=extra)
    target = tmp_path / ("x.gguf" if through == "gguf" else "x")
    assert not {"dropped", "changed"} & set(fates(convert(source, target)).values())
    convert(target, tmp_path / "back.apr")
    before, after = open_container(source), open_container(tmp_path / "back.apr")
    assert json.dumps(dict(after.metadata)) == json.dumps(dict(before.metadata))
    assert {n: after.raw(n).tobytes() for n in after.tensors} == {n: before.raw(n).tobytes() for n in before.tensors}


def test_all_three_in_a_circle(tmp_path: Path) -> None:
    """GGUF to APR to folder to GGUF: what GGUF alone can say has travelled through both."""
    source = build(tmp_path / "x.gguf", SMALL, metadata=ODD)
    convert(source, tmp_path / "x.apr")
    convert(tmp_path / "x.apr", tmp_path / "x")
    convert(tmp_path / "x", tmp_path / "y.gguf")
    before, after = read_gguf(source), read_gguf(tmp_path / "y.gguf")
    own = [key for key in after.metadata if not key.startswith("assay.")]
    assert own == list(before.metadata) and list(after.tensors) == list(before.tensors)
    assert all(alike(after.metadata.stored[key], before.metadata.stored[key]) for key in own)
    assert all(np.array_equal(after.raw(name), before.raw(name)) for name in before.tensors)


def test_a_tied_model_gets_the_copy_that_readers_of_apr_expect(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf", replace(K_QUANTS, tied=True))
    census = convert(source, tmp_path / "x.apr")
    file = open_container(tmp_path / "x.apr")
    assert np.array_equal(file.raw("lm_head.weight"), file.raw("model.embed_tokens.weight"))
    assert census["target"]["stored_tensors"] == census["source"]["stored_tensors"] + 1
    assert open_model(tmp_path / "x.apr").config.tied


def test_types_that_apr_lacks_are_refused_unless_treated(tmp_path: Path) -> None:
    source, target = build(tmp_path / "x.gguf", FIVES), tmp_path / "x.apr"
    with pytest.raises(InputError) as caught:
        convert(source, target)
    assert "1 tensors in Q5_0 and 2 tensors in Q8_0" in str(caught.value) and "--as F32" in caught.value.remedy
    assert not target.exists()
    census = convert(source, target, treatment="F32")
    assert verdicts(census) == {"same values": 3, "same bytes": 24}
    ours, theirs = open_model(target), open_model(source)
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(tensor.decode(), theirs.tensors[name].decode(), name)


def test_a_rounding_treatment_is_measured(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf", FIVES)
    census = convert(source, tmp_path / "x.apr", treatment="Q6_K")
    rounded = {r["name"]: r for r in census["tensors"] if r["verdict"] == "rounded"}
    assert len(rounded) == 3
    for name, record in rounded.items():
        a, b = (open_model(path).tensors[name].decode() for path in (source, tmp_path / "x.apr"))
        assert record["max_abs_error"] == np.abs(a.astype(np.float64) - b).max()
        relative = np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(a.astype(np.float64))
        assert 0 < record["rms_relative_error"] < 0.05 and np.isclose(record["rms_relative_error"], relative, rtol=1e-5)


def test_all_treats_matrices_that_could_stay_and_says_so_in_file_type(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf", K_QUANTS, metadata={"general.file_type": 15})
    census = convert(source, tmp_path / "y.gguf", treatment="Q8_0", every=True)
    types = open_model(tmp_path / "y.gguf").census()
    assert types == {"Q8_0": 16, "F32": 11}
    assert fates(census)["general.file_type"] == "changed"
    assert read_gguf(tmp_path / "y.gguf").metadata["general.file_type"] == 7


def test_rows_that_gguf_does_not_pad(tmp_path: Path) -> None:
    shape = Shape(n_layers=1, hidden=32, tied=False)
    tensor, values = apr_builder.padded_matrix("model.layers.0.mlp.up_proj.weight", 48, 32, "Q4_K", 0)
    source = apr_builder.build(tmp_path / "x.apr", shape, tensors={"blk.0.ffn_up.weight": tensor})
    with pytest.raises(InputError, match="1 tensors in Q4_K"):
        convert(source, tmp_path / "x.gguf")
    assert verdicts(convert(source, tmp_path / "x.gguf", treatment="F32"))["same values"] == 1
    np.testing.assert_array_equal(open_model(tmp_path / "x.gguf").tensors["blk.0.ffn_up.weight"].decode(), values)


def test_a_treatment_for_apr_fills_up_rows(tmp_path: Path) -> None:
    """Q4_K of rows of 32: blocks of 256, the rest zeros that nobody reads."""
    census = convert(build(tmp_path / "x.gguf", SMALL), tmp_path / "x.apr", treatment="Q4_K", every=True)
    assert verdicts(census)["rounded"] == 16 and open_model(tmp_path / "x.apr").census()["Q4_K"] == 16


@pytest.mark.parametrize(("target", "treatment", "complaint"), [
    ("x.apr", "Q8_0", "in APR"), ("x", "Q4_K", "in safetensors"), ("x.apr", "IQ4_XS", "in APR"),
    ("y.gguf", "nonsense", "in GGUF"),
])  # fmt: skip
def test_treatments_that_cannot_be(tmp_path: Path, target: str, treatment: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        convert(BUILTIN, tmp_path / target, treatment=treatment)
    assert not os.listdir(tmp_path)


def test_targets_that_are_not_to_be_written(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf")
    before = digest(source)

    def refused(target: Path, complaint: str, **options: Any) -> None:
        with pytest.raises(InputError, match=complaint):
            convert(source, target, **options)
        assert digest(source) == before and not [n for n in os.listdir(tmp_path) if "unfinished" in n]

    refused(source, "same file", force=True)
    (tmp_path / "hard.gguf").hardlink_to(source)
    refused(tmp_path / "hard.gguf", "same file", force=True)
    (tmp_path / "link.apr").symlink_to(tmp_path / "elsewhere.apr")
    refused(tmp_path / "link.apr", "symbolic link", force=True)
    (tmp_path / "there.apr").write_text("mine")
    refused(tmp_path / "there.apr", "exists already")
    assert (tmp_path / "there.apr").read_text() == "mine"
    refused(tmp_path / "no" / "x.apr", "no such folder")
    refused(tmp_path / "x.bin", "which format")
    refused(tmp_path, "x.gguf|lies in the folder", force=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    refused(tmp_path / "folder", "not empty")
    refused(tmp_path / "folder", "not part of a model", force=True)
    refused(tmp_path / "folder", "not a regular file", force=True, to="gguf")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"


def test_force_replaces_files_and_model_folders(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf", SMALL)
    (tmp_path / "x.apr").write_text("old")
    convert(source, tmp_path / "x.apr", force=True)
    folder = hf_builder.build(tmp_path / "hf", shards=2)
    convert(source, folder, force=True)
    assert open_model(folder).config == open_model(source).config
    assert sorted(os.listdir(tmp_path)) == ["hf", "x.apr", "x.gguf"]
    assert "model.safetensors.index.json" not in os.listdir(folder)


def test_what_was_written_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit on the way to the disk, and a fact lost on the way: the census sees both, the name stays free."""
    source = build(tmp_path / "x.gguf", SMALL)
    write = conversion.write

    def flipped(before: Any, path: Path, *rest: Any) -> Any:
        planned = write(before, path, *rest)
        with path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            byte = file.read(1)
            file.seek(-100, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        return planned

    monkeypatch.setattr(conversion, "write", flipped)
    with pytest.raises(ModelError, match="not what was read"):
        convert(source, tmp_path / "y.gguf")
    monkeypatch.setattr(conversion, "write", write)
    derived = conversion.derived
    lost = "tokenizer.add_bos_token"
    monkeypatch.setattr(conversion, "derived", lambda form, facts, *rest, **options: {
        key: value for key, value in derived(form, facts, *rest, **options).items() if key != lost})
    source = build(tmp_path / "x2.gguf", SMALL, metadata={"tokenizer.ggml.add_bos_token": True})
    with pytest.raises(ModelError, match="add_bos"):
        convert(source, tmp_path / "y.apr")
    assert sorted(os.listdir(tmp_path)) == ["x.gguf", "x2.gguf"]


def test_tokens_that_a_folder_cannot_state(tmp_path: Path) -> None:
    kinds = [*KINDS[:-1], 4]
    source = build(tmp_path / "x.gguf", SMALL, metadata={"tokenizer.ggml.token_type": kinds})
    with pytest.raises(ModelError, match="of kind 4"):
        convert(source, tmp_path / "hf")
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_ends_that_apr_cannot_state(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf", SMALL, metadata={"tokenizer.ggml.eot_token_id": 5})
    with pytest.raises(ModelError, match="end_ids"):
        convert(source, tmp_path / "x.apr")
    convert(source, tmp_path / "hf")
    assert 5 in open_model(tmp_path / "hf").vocabulary.end_ids


SIDECARS: dict[str, Any] = {
    "text": "x",
    "a list": [],
    "keys that are a number": {"metadata": {"keys": 1, "absent": []}},
    "no absent": {"metadata": {"keys": []}},
    "a key that is a number": {"metadata": {"keys": [{"key": 1, "value": 2}], "absent": []}},
    "a key twice": {"metadata": {"keys": ["general.name", "general.name"], "absent": []}},
    "an unknown type": {"metadata": {"keys": [{"key": "x", "type": "float8", "value": 2}], "absent": []}},
    "a value of another type": {"metadata": {"keys": [{"key": "x", "type": "uint8", "value": 256}], "absent": []}},
    "no hex": {"metadata": {"keys": [{"key": "x", "type": "uint8", "hex": "zz"}], "absent": []}},
    "half a number": {"metadata": {"keys": [{"key": "x", "type": "uint32", "hex": "00"}], "absent": []}},
    "the first of nothing": {"metadata": {"keys": [{"key": "x", "first": 3}], "absent": []}},
    "no value": {"metadata": {"keys": [{"key": "x"}], "absent": []}},
    "no type": {"metadata": {"keys": [{"key": "x", "value": 3}], "absent": []}},
    "inner of a number": {"metadata": {"keys": [{"key": "x", "inner": 3}], "absent": []}},
    "an empty key": {"metadata": {"keys": [{"key": "", "type": "uint8", "value": 1}], "absent": []}},
    "an alignment of 3": {"metadata": {"keys": [
        {"key": "general.alignment", "type": "uint32", "value": 3}], "absent": []}},
    "99 layers": {"metadata": {"keys": [{"key": "qwen2.block_count", "type": "uint32", "value": 99}], "absent": []}},
    "no template": {"metadata": {"keys": [], "absent": ["tokenizer.chat_template"]}},
    "another template": {"metadata": {"keys": [
        {"key": "tokenizer.chat_template", "type": "string", "value": "evil"}], "absent": []}},
    "names that are numbers": {"tensors": [1]},
    "names that are text": {"tensors": "x"},
    "version 1": {"version": 1},
    "version 4": {"version": 4},
    "a version that is true": {"version": True},
    "a version that is text": {"version": "2"},
    "a version as a float": {"version": 2.0},
    "dtypes that are a list": {"dtypes": []},
    "dtypes that are numbers": {"dtypes": {"x": 1}},
}  # fmt: skip


@pytest.mark.parametrize("case", SIDECARS)
def test_sidecars_that_lie(tmp_path: Path, case: str) -> None:
    """What another program wrote under our key: refused in one line, or harmless; never a file that says it."""
    source = apr_builder.build(tmp_path / "x.apr", SMALL, metadata={
        "assay.gguf": SIDECARS[case], "tokenizer.chat_template": "good", "name": "n"})  # fmt: skip
    with pytest.raises(AssayError) as caught:
        convert(source, tmp_path / "x.gguf")
    assert str(caught.value).isprintable() and os.listdir(tmp_path) == ["x.apr"]


@pytest.mark.parametrize("through", ["apr", "hf", "gguf"])
def test_gguf_version_2_stays_version_2(tmp_path: Path, through: str) -> None:
    """Through any format, and with tensors in other types on the way."""
    source = as_version_2(build(tmp_path / "x.gguf", SMALL))
    middle, back = tmp_path / ("hf" if through == "hf" else f"y.{through}"), tmp_path / "back.gguf"
    convert(source, middle, treatment="BF16", every=True)
    convert(middle, back)
    assert read_gguf(back).version == 2


def test_what_never_was_gguf_becomes_version_3(tmp_path: Path) -> None:
    convert(apr_builder.build(tmp_path / "x.apr", SMALL), tmp_path / "x.gguf")
    assert read_gguf(tmp_path / "x.gguf").version == 3


def test_a_template_changed_in_between_stays_changed(tmp_path: Path) -> None:
    source = build(tmp_path / "x.gguf", SMALL, metadata={**ODD, "tokenizer.chat_template": "old"})
    convert(source, tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"old"', '"new"'))
    convert(tmp_path / "hf", tmp_path / "y.gguf")
    assert open_model(tmp_path / "y.gguf").chat_template == "new"
    assert read_gguf(tmp_path / "y.gguf").metadata["general.tags"] == ["b", "a"]


def test_the_library_reads_the_tokenizer_that_is_written(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    convert(build(tmp_path / "x.gguf", SMALL), tmp_path / "hf")
    theirs, known = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json")), hf_builder.tokenizer()
    for text in ("the thé\n\n  12,3", "<|im_start|>the<|im_end|>", "e\u0301 the"):
        assert theirs.encode(text).ids == known.encode(text).ids
    assert len(MERGES) == 3 and theirs.decode([258, 258]) == known.decode([258, 258])


def test_files_that_were_not_read_are_named(tmp_path: Path) -> None:
    source = hf_builder.build(tmp_path / "hf", files={"merges.txt": "x", "README.md": "y"})
    assert {key: fate for key, fate in fates(convert(source, tmp_path / "x.gguf")).items() if fate == "dropped"} == {
        "merges.txt": "dropped", "README.md": "dropped"}  # fmt: skip
