"""``assay tokenize`` and ``assay inspect``: tables for people, JSON for programs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import pytest

from assay import reference
from assay.formats import open_model
from assay.goldens import BUILTIN
from tests.assay.command_line import assay
from tests.model_builder import build

TEXT = "def é(漢):\r\n\t<|im_end|>[/b] :smile:"


def test_tokenize_is_equal_on_both_engines() -> None:
    said = [assay("tokenize", TEXT, "--engine", engine, "--json").json for engine in ("accel", "reference")]
    assert [one.pop("engine") for one in said] == ["accel", "reference"]
    assert said[0] == said[1]
    model = reference.load(BUILTIN)
    assert said[0]["ids"] == model.tokenizer.encode(TEXT)
    assert said[0]["tokens"] == [model.file.vocabulary.tokens[i] for i in said[0]["ids"]]
    assert (said[0]["text"], said[0]["decoded"]) == (TEXT, TEXT)
    assert said[0]["model"]["path"] == str(BUILTIN)


@pytest.mark.parametrize("engine", ["accel", "reference"])
def test_tokenize_options(engine: str) -> None:
    def ids(*arguments: str) -> list[int]:
        return assay("tokenize", *arguments, "--engine", engine, "--json").json["ids"]

    end = open_model(BUILTIN).vocabulary.tokens.index("<|im_end|>")
    assert ids("<|im_end|>") == [end]
    assert end not in ids("<|im_end|>", "--no-special")
    assert ids("") == []
    assert ids("e\u0301") == ids("é") != ids("e\u0301", "--no-nfc")


def test_tokenize_shows_a_table() -> None:
    said = assay("tokenize", "a<|im_end|>", "--engine", "reference")
    assert (said.code, said.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if line.startswith("│")]
    vocabulary = open_model(BUILTIN).vocabulary
    ids = [vocabulary.tokens.index("a"), vocabulary.tokens.index("<|im_end|>")]
    assert rows == [[str(ids[0]), "a", "'a'"], [str(ids[1]), "<|im_end|>", "'<|im_end|>'"]]
    assert "2 tokens" in said.out


def test_tokenize_refusals() -> None:
    for arguments in ((), ("a", "--engine", "abacus"), ("\udcff",), ("a", "--engine", "reference", "-m", "nosuch")):
        assert assay("tokenize", *arguments).is_refusal(2)
        assert assay("tokenize", *arguments, "--json").is_refusal(2)


def test_inspect_json_is_what_the_file_says() -> None:
    facts = assay("inspect", "--json").json
    reader = gguf.GGUFReader(BUILTIN)  # an independent reader
    types = [tensor.tensor_type.name for tensor in reader.tensors]
    assert facts["tensors"] == {"count": len(types)} | {name: types.count(name) for name in set(types)}
    assert facts["sizes"]["file"] == BUILTIN.stat().st_size
    assert facts["sizes"]["weights"] == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert facts["sizes"]["parameters"] == sum(int(tensor.n_elements) for tensor in reader.tensors)
    stated = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert facts["config"]["n_layers"] == stated["qwen2.block_count"]
    assert facts["config"]["context_length"] == stated["qwen2.context_length"]
    assert facts["vocabulary"]["tokens"] == len(stated["tokenizer.ggml.tokens"])
    assert facts["vocabulary"]["merges"] == len(stated["tokenizer.ggml.merges"])
    assert facts["vocabulary"]["ends_at"] == ["<|endoftext|>", "<|im_end|>"]
    assert facts["chat_template"] == stated["tokenizer.chat_template"]
    assert facts["model"]["name"] == stated["general.name"]
    assert "sha256" not in facts["model"]


def test_inspect_sha256() -> None:
    digest = hashlib.sha256(BUILTIN.read_bytes()).hexdigest()
    assert assay("inspect", "--sha256", "--json").json["model"]["sha256"] == digest
    assert digest in assay("inspect", "--sha256").out


def test_inspect_shows_a_table() -> None:
    said = assay("inspect", "builtin")
    assert (said.code, said.err) == (0, "")
    cells = dict([cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if "│" in line)
    facts = assay("inspect", "--json").json
    assert cells["sizes.parameters"] == f"{facts['sizes']['parameters']:,}"
    assert cells["config.n_layers"] == str(facts["config"]["n_layers"])
    assert cells["chat_template"].startswith(f"{len(facts['chat_template'])} characters")


def test_names_are_data_and_long_paths_are_not_cut(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    model = build(folder / "model.gguf", metadata={"general.name": "[/b] [red]x[/red] :smile:"})
    table = assay("inspect", str(model)).out
    assert "[/b] [red]x[/red] :smile:" in table
    assert table.count("d") >= 120
    assert "…" not in table
