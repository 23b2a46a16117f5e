"""``assay tokenize --audit``: engines by name, and what may be asked of them."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

import assay.accel.chat
from assay.accel import chat_sandbox
from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.judging.audit import audit_tokenizer, reader_of
from assay.reference.tokenizer import Tokenizer
from tests import hf_builder
from tests.assay.command_line import assay as run
from tests.model_builder import Shape


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template is rendered here: a child for each conversation would take seconds."""
    monkeypatch.setattr(assay.accel.chat, "run_child", chat_sandbox.answer)


def test_the_fast_engine_reads_as_the_oracle_does(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("def f(x):\n  it's 2024, naïve\n\n<|im_end|>")
    said = run("tokenize", "--audit", "-f", str(text), "--json").json
    assert said["differing"] == 0 and said["cases"] > 20
    assert [kind["cases"] for kind in said["kinds"] if kind["name"] == "texts"] == [4]
    shown = run("tokenize", "--audit", "a", "--engine", "reference")
    assert shown.code == 0 and shown.out.splitlines()[-1].startswith("0 of ")


def test_the_librarys_own_reading_of_a_folder(tmp_path: Path) -> None:
    """An outside witness: it reads tokenizer.json by itself."""
    folder = hf_builder.build(tmp_path / "hf", Shape())
    said = run("tokenize", "--audit", "ab ba  a", "-m", str(folder), "-e", "tokenizers", "--json")
    assert said.code == 0, said.out
    assert "not audited" in run("tokenize", "--audit", "a", "-m", str(folder), "-e", "tokenizers").out
    file, path = open_model(folder), folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": None}))
    with reader_of("tokenizers", file) as reader:
        (texts, *_) = audit_tokenizer(reader, file, ["ab", "e\u0301"])
    assert texts.differing == 1


def test_an_object_of_two_functions() -> None:
    file = open_model(BUILTIN)
    tokenizer = Tokenizer(file.vocabulary)
    kinds = audit_tokenizer(tokenizer, file, ["e\u0301", "1234"])
    assert [(kind.cases, kind.differing) for kind in kinds if not kind.skipped] == [(2, 0)]
    raw = audit_tokenizer(Tokenizer(file.vocabulary, nfc=False), file, ["e\u0301", "1234"])
    assert raw[0].differing == 1 and raw[0].first is not None
    assert not audit_tokenizer(Tokenizer(file.vocabulary, nfc=False), file, ["e\u0301"], nfc=False)[0].differing
    with reader_of("accel", file) as reader, mock.patch.object(reader, "decode", lambda ids: ""):
        assert audit_tokenizer(reader, file, ["a"])[0].first is not None


def test_requests_that_make_no_sense() -> None:
    for arguments in (("-e", "vllm"), ("-e", "tokenizers"), ("--no-special",), ("--insecure-key", "-e", "vllm")):
        assert run("tokenize", "--audit", *arguments).is_refusal(2)
    assert run("tokenize", "a", "--insecure-key").is_refusal(2)


@pytest.mark.slow
def test_the_whole_corpus() -> None:
    said = run("tokenize", "--audit", "--json").json
    assert said["differing"] == 0 and said["cases"] > 3_000
    assert not [kind for kind in said["kinds"] if kind["skipped"]]
