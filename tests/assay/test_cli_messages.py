"""Conversations and ids as commands are given them: files, standard input, and what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.assay.command_line import Outcome, assay

ORACLE = ("--engine", "reference")
CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": [1]}}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
    {"role": "tool", "content": "no <|im_end|>", "tool_call_id": "c1"},
    {"role": "assistant", "content": "No"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Zürich", "days": [1]}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\nno <|im_end|>\n</tool_response><|im_end|>\n<|im_start|>assistant\nNo"
)


def given(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "messages.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return str(path)


def tokenized(*options: str, stdin: bytes = b"") -> dict[str, Any]:
    return assay("tokenize", *options, "--json", stdin=stdin).json


@pytest.mark.parametrize("engine", ["reference", "accel"])
@pytest.mark.parametrize(("ending", "end"), [
    ({}, "<|im_end|>\n<|im_start|>assistant\n"),
    ({"add_generation_prompt": True, "tools": None}, "<|im_end|>\n<|im_start|>assistant\n"),
    ({"add_generation_prompt": False}, "<|im_end|>\n"),
    ({"continue_final_message": True}, ""),
    ({"continue_final_message": True, "add_generation_prompt": False}, ""),
])  # fmt: skip
def test_how_a_conversation_ends(engine: str, ending: dict[str, Any], end: str, tmp_path: Path) -> None:
    said = tokenized("--engine", engine, "--messages", given(tmp_path, {"messages": TURNS, **ending}))
    assert said["text"] == RENDERED + end
    assert said["tokens"].count("<|im_end|>") == (RENDERED + end).count("<|im_end|>") - 1, "the tool's is text"


@pytest.mark.parametrize("engine", ["reference", "accel"])
def test_a_list_an_object_and_standard_input_are_the_same(engine: str, tmp_path: Path) -> None:
    options = ("--engine", engine, "--messages")
    said = tokenized(*options, given(tmp_path, TURNS))
    assert said == tokenized(*options, given(tmp_path, {"messages": TURNS}))
    assert said == tokenized(*options, "-", stdin=json.dumps(TURNS).encode())


@pytest.mark.parametrize("engine", ["reference", "accel"])
def test_tools_and_arguments_that_are_text(engine: str, tmp_path: Path) -> None:
    """OpenAI's interface has a call's arguments as a text of JSON; a template wants what it stands for."""
    as_text = json.loads(json.dumps(TURNS))
    as_text[2]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["arguments"])
    options = ("--engine", engine, "--messages")
    said = tokenized(*options, given(tmp_path, {"messages": as_text, "tools": TOOLS}))
    assert said == tokenized(*options, given(tmp_path, {"messages": TURNS, "tools": TOOLS}))
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in said["text"]
    assert '"arguments": {"city": "Zürich", "days": [1]}}' in said["text"]


def test_run_continues_the_last_message(tmp_path: Path) -> None:
    file = given(tmp_path, {"messages": TURNS, "continue_final_message": True})
    said = assay("run", "--messages", file, *ORACLE, "-n", "4", "--json").json
    assert said["prompt"] == RENDERED and len(said["ids"]) == 4
    assert said["prompt_ids"] == tokenized(*ORACLE, "--messages", file)["ids"]
    by_ids = assay("run", "--ids", ",".join(map(str, said["prompt_ids"])), *ORACLE, "-n", "4", "--json").json
    assert by_ids["ids"] == said["ids"]


def test_a_conversation_of_one_message_is_chat(tmp_path: Path) -> None:
    file = given(tmp_path, [{"role": "user", "content": "Hi"}])
    options = (*ORACLE, "-n", "2", "--json")
    one, other = assay("run", "Hi", "--chat", *options).json, assay("run", "--messages", file, *options).json
    assert (one["prompt"], one["prompt_ids"], one["ids"]) == (other["prompt"], other["prompt_ids"], other["ids"])


@pytest.mark.parametrize("command", ["parity", "flips", "bisect", "trace"])
def test_commands_that_compare_read_it(command: str, tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("system", ""), ("user", "Hi"), ("assistant", "a"))]
    text = json.dumps({"messages": turns, "continue_final_message": True})
    n = len(tokenized(*ORACLE, "--messages", given(tmp_path, text))["ids"])
    out = ["--out", str(tmp_path / "dump")] if command == "trace" else ["--runs", "2"]
    said = assay(command, "--messages", "-", *ORACLE, *out, "--json", stdin=text.encode()).json
    assert n == {"parity": lambda: len(said["ids"]), "flips": lambda: said["positions"], "bisect": lambda: n,
                 "trace": lambda: len(said["ids"])}[command]()  # fmt: skip
    if command == "trace":
        judged = assay("parity", "--dump", out[1], "--messages", given(tmp_path, text), "--runs", "2", "--json").json
        assert judged["verdict"] == "BIT-EQUAL"
        turns[2]["content"] = "b"
        other = given(tmp_path, {"messages": turns, "continue_final_message": True})
        assert assay("parity", "--dump", out[1], "--messages", other).is_refusal(9)


@pytest.mark.parametrize(("value", "said"), [
    ("", "not valid JSON"), ("[", "not valid JSON"), ("3", "not a list of messages"), ('"Hi"', "not a list of mess"),
    ("{}", "not a list of messages"), ("[]", "the conversation is empty"), ({"messages": "Hi"}, "list of JSON obj"),
    ('{"messages": [], "messages": []}', "appears twice"), ('[{"role": "user", "content": NaN}]', "NaN"),
    ('[{"role": "user", "content": "\\ud800"}]', "UTF-8"), ([{"role": "user"}], "the content is of type NoneType"),
    ([{"role": "robot", "content": ""}], "there is no role"), ({"messages": TURNS, "temperature": 1}, "temperature"),
    ({"messages": TURNS, "continue_final_message": 1}, "not true or false"),
    ({"messages": TURNS, "add_generation_prompt": "yes"}, "not true or false"),
    ({"messages": TURNS, "add_generation_prompt": True, "continue_final_message": True}, "Leave out add_generation"),
    ({"messages": TURNS[:2], "continue_final_message": True}, "not an assistant's text"),
    ({"messages": TURNS[:3], "continue_final_message": True}, "not an assistant's text"),
    ({"messages": TURNS, "tools": {"name": "f"}}, "not a list of JSON objects"), ("[" * 99999, "nested"),
    ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], "arguments"),
    ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], "not a JSON object"),
    ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}], "appears twice"),
])  # fmt: skip
def test_what_is_no_conversation(value: Any, said: str, tmp_path: Path) -> None:
    refusal = assay("run", *ORACLE, "--messages", given(tmp_path, value))
    assert refusal.is_refusal(2) and said in refusal.err


@pytest.mark.parametrize("options", [
    ("Hi", "--messages", "-"), ("--messages", "-", "--chat"), ("--messages", "-", "--ids", "1"),
    ("--messages", "-", "-f", "README.md"), ("--messages", "-", "--system", "Be brief."), ("--messages", "no/such"),
])  # fmt: skip
def test_a_conversation_is_given_once(options: tuple[str, ...]) -> None:
    assert assay("run", *ORACLE, *options, stdin=json.dumps(TURNS).encode()).is_refusal(2)
    assert assay("run", *ORACLE, "--messages", "-", stdin=b"\xff").is_refusal(2)


def run_of(ids: str, stdin: bytes = b"") -> Outcome:
    return assay("run", *ORACLE, "-n", "1", "--json", "--ids", ids, stdin=stdin)


def test_ids_as_tokenize_prints_them(tmp_path: Path) -> None:
    printed = assay("tokenize", "def f", *ORACLE, "--json").out
    ids = json.loads(printed)["ids"]
    file = tmp_path / "ids.json"
    for text in (printed, json.dumps(ids), json.dumps({"ids": ids}), ",".join(map(str, ids)) + "\n"):
        file.write_text(text)
        for way in (run_of(text.strip()), run_of(f"@{file}"), run_of("-", text.encode())):
            assert way.json["prompt_ids"] == ids
    traced = assay("trace", "--ids", f"@{file}", *ORACLE, "-o", str(tmp_path / "a"), "--json").json
    assert traced["ids"] == ids
    assert assay("bisect", "--ids", "-", *ORACLE, "--runs", "2", "--json", stdin=printed.encode()).json["wrong"] == []
    assert assay("flips", "--ids", printed, *ORACLE, "--runs", "2", "--json").json["positions"] == len(ids)
    assert assay("parity", "--ids", printed, *ORACLE, "--runs", "2", "--json").json["ids"] == ids
    folders = (str(tmp_path / "a"),) * 2
    assert assay("trace", "--compare", *folders, "--ids", "-", "--json", stdin=printed.encode()).json["equal"]


@pytest.mark.parametrize("ids", [
    "[1, 2.0]", "[true]", '["1"]', "[[1]]", "[]", "{}", '{"ids": 3}', '{"prompt_ids": [1], "ids": [2]}', "[1", "@",
    "@no/such", "@-x", "null", "[1]x", "1;2", "[" + "9" * 5000 + "]", '{"ids": [1], "ids": [2]}',
])  # fmt: skip
def test_what_is_no_list_of_ids(ids: str) -> None:
    assert run_of(ids).is_refusal(2)
    assert run_of("-", ids.encode()).is_refusal(2)


def test_tokenize_reads_standard_input_and_files(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("é\r\nb".encode())
    typed = tokenized("é\r\nb")
    assert typed == tokenized("-", stdin="é\r\nb".encode()) == tokenized("-f", str(file))
    assert typed["text"] == "é\r\nb" and typed["decoded"] == "é\r\nb"
    assert tokenized("-", stdin=b"") == tokenized("")
    for options in ((), ("a", "-f", str(file)), ("-f", str(tmp_path)), ("a", "--messages", str(file))):
        assert assay("tokenize", *options).is_refusal(2)
    assert assay("tokenize", "-", stdin=b"\xff").is_refusal(2)
