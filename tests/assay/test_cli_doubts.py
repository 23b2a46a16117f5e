"""A file that is known to be doubtful: every command that generates or judges with it says so, and no chat is green."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from assay.formats import open_model
from assay.formats.containers.base import stored
from assay.formats.containers.gguf import read_gguf
from assay.formats.containers.gguf_metadata import typed
from assay.formats.containers.gguf_writer import write_gguf
from assay.formats.conversion.convert import convert
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.goldens import BUILTIN
from assay.judging import engines_under_test, test_matrix
from tests import model_builder
from tests.assay.command_line import Outcome, assay

ORACLE = ("--engine", "reference", "--arith", "f32", "--runs", "2", "--chat", "x")
SAID = "'<|im_start|>' is not a control token"


def with_kind(path: Path, kind: int, *markers: str, **metadata: tuple[str, object]) -> Path:
    """The built-in model with ``markers`` of another kind, and other metadata."""
    gguf = read_gguf(BUILTIN)
    tokens = gguf.metadata.strings("tokenizer.ggml.tokens")
    kinds = np.array(gguf.metadata.integers("tokenizer.ggml.token_type"))
    for marker in markers:
        kinds[tokens.index(marker)] = kind
    changed = {"tokenizer.ggml.token_type": typed("array of int32", kinds.tolist()),
               **{key.replace("__", "."): typed(*value) for key, value in metadata.items()}}  # fmt: skip
    write_gguf(path, {**gguf.metadata.stored, **changed}, [stored(gguf, name) for name in gguf.tensors])
    return path


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its turns are marked by plain text."""
    return str(with_kind(tmp_path_factory.mktemp("doubtful") / "m.gguf", 1, "<|im_start|>", "<|im_end|>"))


def warned(outcome: Outcome) -> bool:
    """Whether it was said on standard error, once."""
    return outcome.err.count(f"warning: chats are in doubt: the template's {SAID}") == 1


@pytest.mark.parametrize("command", [
    ("run", "x", "-n", "1", "--chat"), ("run", "x", "-n", "1"), ("tokenize", "x"), ("chat", "-n", "1"),
    ("trace", "x", "--chat"),
])  # fmt: skip
def test_what_is_doubtful_is_said(doubtful: str, tmp_path: Path, command: tuple[str, ...]) -> None:
    more = ("--out", str(tmp_path / "d")) if command[0] == "trace" else ()
    outcome = assay(*command, *more, "-m", doubtful, "--engine", "reference", stdin=b"hi\n")
    assert outcome.code == 0 and warned(outcome)
    if command[0] != "chat":
        said = json.loads(assay(*command, *more, *(("--force",) if more else ()), "-m", doubtful, "--engine",
                                "reference", "--json").out)  # fmt: skip
        assert any(SAID in warning for warning in said["model"]["warnings"])


@pytest.mark.parametrize("command", ["parity", "flips", "bisect"])
def test_no_verdict_on_a_chat_is_green(doubtful: str, tmp_path: Path, command: str) -> None:
    report = tmp_path / "junit.xml"
    outcome = assay(command, "-m", doubtful, *ORACLE, "--junit", str(report))
    assert outcome.code == UNDECIDED and warned(outcome)
    assert re.search(rf"DOUBTFUL: .*{re.escape(SAID)}", outcome.out.replace("\n", " "))
    case = ElementTree.parse(report).find(".//testcase[@name='chat']/error")
    assert case is not None and SAID in case.attrib["message"]
    outcome = assay(command, "-m", doubtful, *ORACLE, "--json")
    assert outcome.code == UNDECIDED and json.loads(outcome.out)["verdict"] == "DOUBTFUL"
    assert SAID in outcome.out


@pytest.mark.parametrize("command", ["parity", "flips", "bisect"])
def test_without_a_chat_the_verdict_stands(doubtful: str, command: str) -> None:
    outcome = assay(command, "-m", doubtful, *ORACLE[:-2], "x y z")
    assert outcome.code == 0 and warned(outcome)


def test_a_dump_of_a_chat_is_one_too(doubtful: str, tmp_path: Path) -> None:
    """Whether or not --chat is given once more."""
    for name, chat, code in (("chat", ["--chat"], UNDECIDED), ("raw", [], 0)):
        folder = str(tmp_path / name)
        assert assay("trace", "x y", *chat, "-m", doubtful, "--engine", "reference", "--out", folder).code == 0
        assert assay("parity", "-m", doubtful, "--dump", folder, "--runs", "2").code == code


def test_the_page_says_it(doubtful: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert assay("parity", "-m", doubtful, *ORACLE, "--report", str(page)).code == UNDECIDED
    assert "DOUBTFUL" in page.read_text() and page.read_text().count("is not a control token") >= 2


def test_a_bug_stays_a_bug(doubtful: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is wrong on any ids."""
    right = engines_under_test.load

    def load(*given: Any, **named: Any) -> Any:
        model = right(*given, **named)
        if model.arith.name == "ggml":  # the candidate alone
            forward = model.forward
            model.forward = lambda *read: np.roll(forward(*read), 1, axis=-1)
        return model

    monkeypatch.setattr(engines_under_test, "load", load)
    outcome = assay("flips", "-m", doubtful, "--engine", "reference", "--arith", "ggml", "--runs", "2", "--chat", "x")
    assert outcome.code == DIFFERENT and "BUG" in outcome.out and warned(outcome)


def test_axes(doubtful: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_matrix, "WAYS", {"prefill": test_matrix.WAYS["prefill"]})
    command = ("axes", "x y", "-m", doubtful, "--engines", "reference f32", "--runs", "2")
    outcome = assay(*command)
    assert outcome.code == UNDECIDED and warned(outcome) and "no cell failed; chats are in doubt" in outcome.out
    said = json.loads(assay(*command, "--json").out)
    assert not said["green"] and not said["blame"] and any(SAID in warning for warning in said["warnings"])
    assert {(cell["prompt"], cell["verdict"] == "DOUBTFUL") for cell in said["cells"]} == {
        ("raw", False), ("chat", True), ("chat ids", True)}  # fmt: skip


@pytest.mark.parametrize("kind", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("marker", ["<|im_start|>", "<|im_end|>"])
def test_any_kind_but_control_is_doubtful(tmp_path: Path, kind: int, marker: str) -> None:
    file = open_model(with_kind(tmp_path / "m.gguf", kind, marker))
    assert file.chat_doubts == (
        f"chats are in doubt: the template's {marker!r} is not a control token (kind {kind})",)  # fmt: skip
    assert file.chat_doubts[0] in file.warnings
    convert(tmp_path / "m.gguf", tmp_path / "m.apr")
    assert open_model(tmp_path / "m.apr").chat_doubts == file.chat_doubts


TEMPLATES = {
    "ChatML of tokens": ("<|im_start|>{{ x }}<|im_end|>", 0),
    "ChatML's end alone": ("{{ x }}<|im_end|>", 0),
    "markers that were trained as text": ("<|user|>\n{{ x }}<|endoftext|>", 0),
    "no markers": ("{% if a <b|c %}{{ messages }}{% endif %}", 0),
    "none": ("", 0),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_what_is_not_doubtful(tmp_path: Path, case: str) -> None:
    template, n = TEMPLATES[case]
    path = model_builder.build(tmp_path / "m.gguf", metadata={"tokenizer.chat_template": template})
    assert len(open_model(path).chat_doubts) == n and not open_model(path).warnings


def test_markers_that_are_no_tokens(tmp_path: Path) -> None:
    tokens = [token.replace("<|im_start|>", "<|start|>") for token in model_builder.TOKENS]
    path = model_builder.build(tmp_path / "m.gguf", metadata={
        "tokenizer.ggml.tokens": tokens, "tokenizer.chat_template": "<|im_start|>{{ x }}<|im_end|>"})  # fmt: skip
    assert open_model(path).chat_doubts == (
        "chats are in doubt: the template's '<|im_start|>' is not a token, and is read in pieces",)  # fmt: skip
    base = model_builder.build(tmp_path / "base.gguf", metadata={"tokenizer.ggml.tokens": tokens})
    assert not open_model(base).chat_doubts  # nobody can chat with it


def test_of_many_markers_a_few_are_named(tmp_path: Path) -> None:
    """At once, however many a hostile template has."""
    n = 20_000
    tokens = [*model_builder.TOKENS, *(f"<|{i}|>" for i in range(n))]
    shape = model_builder.Shape(n_padding=n)
    path = model_builder.build(tmp_path / "m.gguf", shape, metadata={
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [*model_builder.KINDS, *[1] * n],
        "tokenizer.chat_template": "".join(tokens[-n:])})  # fmt: skip
    doubts = open_model(path).chat_doubts
    assert len(doubts) == 5 and f"{n - 4} more" in doubts[-1] and "'<|0|>' is not a control token" in doubts[0]


def test_other_doubts(tmp_path: Path) -> None:
    theta = model_builder.build(tmp_path / "a.gguf", metadata={
        "qwen2.rope.freq_base": 1e4, "qwen2.context_length": 32768})  # fmt: skip
    assert any("rope_theta is 10000" in warning for warning in open_model(theta).warnings)
    endless = model_builder.build(tmp_path / "b.gguf", metadata={
        "tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.token_type": [1] * len(model_builder.TOKENS)})  # fmt: skip
    assert any("no token ends a text" in warning for warning in open_model(endless).warnings)
