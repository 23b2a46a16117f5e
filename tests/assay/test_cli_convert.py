"""``assay convert`` as a user meets it: tables, JSON, exit codes, and a folder as a model of every command."""

from __future__ import annotations

import os
from pathlib import Path

from assay.goldens import BUILTIN
from tests import hf_builder
from tests.assay.command_line import assay, oracle


def test_there_and_back_with_a_census(tmp_path: Path) -> None:
    done = assay("convert", "builtin", str(tmp_path / "x.apr"))
    assert done.code == 0, done.err
    assert "same bytes" in done.out and "gguf to apr" in done.out and "tensors in Q4_K" in done.out
    back = assay("convert", str(tmp_path / "x.apr"), str(tmp_path / "y.gguf"), "--json")
    census = back.json
    assert {record["verdict"] for record in census["tensors"]} == {"same bytes"}
    assert all(record["source"]["sha256"] == record["target"]["sha256"] for record in census["tensors"])
    assert census["source"]["vocabulary"] == census["target"]["vocabulary"]
    assert {record["fate"] for record in census["metadata"]} == {"carried"}
    assert (tmp_path / "y.gguf").read_bytes() == BUILTIN.read_bytes()


def test_refusals_are_one_line_and_exit_2(tmp_path: Path) -> None:
    target = str(tmp_path / "folder")
    for arguments, complaint in [
        (("builtin", target), "--as F32"),
        (("builtin", target, "--as", "Q4_K"), "safetensors"),
        (("builtin", target, "--all"), "Add --as TYPE"),
        (("builtin", target, "--to", "onnx"), "no format 'onnx'"),
        (("builtin", target, "--as", "F32", "--shard-size", "-1"), "--shard-size"),
        (("builtin", str(tmp_path / "x.bin")), "which format"),
    ]:
        done = assay("convert", *arguments)
        assert done.is_refusal(2) and complaint in done.err, done.err
    assert not os.listdir(tmp_path)


def test_a_folder_is_a_model_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    done = assay("convert", "builtin", str(folder), "--as", "f16", "--shard-size", "0.001")
    assert done.code == 0, done.err
    assert "29 rounded" in done.out and "Q4_K to F16" in done.out and "model-00001-of-" in str(os.listdir(folder))
    facts = assay("inspect", str(folder), "--json", "--sha256").json
    assert facts["model"]["format"] == "hf" and facts["tensors"]["F16"] == 29 and len(facts["model"]["sha256"]) == 64
    assert facts["sizes"]["file"] == sum(path.stat().st_size for path in folder.iterdir())
    theirs = assay("run", "-m", str(folder), "-n", "8", "--arith", "f32", "--json", "def f").json
    assert oracle("-m", str(folder), "def f")["ids"] == theirs["ids"]


def test_a_pickle_is_refused_and_exit_3(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\3\4")
    done = assay("inspect", str(tmp_path))
    assert done.is_refusal(3) and "[pickle]" in done.err


def test_a_folder_can_be_looked_into(tmp_path: Path) -> None:
    """tensors, validate and diff take a folder; hex, which shows the bytes of one file, says what to give it."""
    folder = str(tmp_path / "model")
    assert assay("convert", "builtin", folder, "--as", "F32").code == 0
    assert len(assay("tensors", folder, "--json").json["tensors"]) == 50
    assert assay("validate", folder, "--json").code == 0
    assert assay("inspect", folder).code == 0
    refused = assay("hex", folder)
    assert refused.code == 2 and "Give one of its safetensors files" in refused.err
    assert assay("hex", f"{folder}/model.safetensors").code == 0


def test_no_file_of_a_folder_is_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    """Also where the folder's files are links into the folder that would be replaced, as in the hub's cache."""
    folder = hf_builder.build(tmp_path / "hf")
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    linked = tmp_path / "linked.gguf"
    linked.hardlink_to(weights)
    for target in (weights, linked):
        assert assay("convert", str(folder), str(target), "--to", "gguf", "--force").is_refusal(2)
    links = tmp_path / "links"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    assert assay("convert", str(links), str(folder), "--force").is_refusal(2)
    assert weights.read_bytes() == before
