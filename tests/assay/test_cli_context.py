"""What the end of the context means to each command: windows, an answer of what is left, or a line that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import assay as package
from assay.formats import InputError, open_model
from tests.assay.command_line import Outcome, assay

ORACLE = ("--engine", "reference")
TEXT = "def fib(n):\n    return 1\n"
WithContext = Callable[[int], str]


def ids_of(text: str, *options: str) -> list[int]:
    return assay("tokenize", text, *ORACLE, *options, "--json").json["ids"]


@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_flips_reads_a_text_longer_than_the_context_in_windows(
    path: str, with_context: WithContext, tmp_path: Path
) -> None:
    file = tmp_path / "long.py"
    file.write_text(TEXT * 6)
    n = len(ids_of(TEXT * 6))
    said = assay("flips", "-f", str(file), *ORACLE, "-m", with_context(n // 2 - 3), "--runs", "2", "--path", path,
                 "--json").json  # fmt: skip
    assert said["positions"] == len(said["margins"]) == n


def test_flips_free_fits_the_context(with_context: WithContext) -> None:
    n = len(ids_of(TEXT))
    options = (*ORACLE, "-m", with_context(n + 4), "--runs", "2", "--free")
    assert assay("flips", TEXT, *options, "4").code == 0
    refusal = assay("flips", TEXT, *options, "5")
    assert refusal.is_refusal(2) and f"Together at most {n + 4}" in refusal.err


@pytest.mark.parametrize("command", [("parity",), ("bisect",), ("trace", "-o")])
def test_what_reads_all_at_once_says_what_it_needs(
    command: tuple[str, ...], with_context: WithContext, tmp_path: Path
) -> None:
    n = len(ids_of(TEXT * 2))
    name, *out = command
    options = [*ORACLE, *out, *([str(tmp_path / "out")] if out else []), "-m"]
    refusal = assay(name, TEXT * 2, *options, with_context(n - 1))
    assert refusal.is_refusal(2)
    assert f"{n} tokens of prompt exceed the context of {n - 1}. Shorten the prompt; nothing" in refusal.err


def test_run_writes_what_is_left_of_the_context(with_context: WithContext) -> None:
    text = "import os\nimport"  # goes on and on
    n = len(ids_of(text))
    said = assay("run", text, *ORACLE, "-m", with_context(n + 3), "--json").json
    free = assay("run", text, *ORACLE, "-n", "5", "--json").json
    assert (said["ids"], said["finish_reason"]) == (free["ids"][:3], "length")
    for options in (("-n", "4"), ("--max-tokens", "128")):
        refusal = assay("run", text, *ORACLE, "-m", with_context(n + 3), *options)
        assert refusal.is_refusal(2) and f"exceed the context of {n + 3}" in refusal.err
    refusal = assay("run", text, *ORACLE, "-m", with_context(n))
    assert refusal.is_refusal(2) and f"{n} tokens of prompt leave no room for an answer" in refusal.err


@pytest.mark.slow
def test_unasked_an_answer_has_128_tokens(builtin_f32: Any, builtin_accel: Any) -> None:
    ids = builtin_f32.tokenizer.encode("import os\nimport")
    for loaded in (builtin_f32, builtin_accel):
        file = loaded.file
        assert file.room_after(ids) == 128 and file.room_after(ids, 7) == 7 and file.room_after([1] * 2040) == 8
        with pytest.raises(InputError, match="no room"):
            file.room_after([1] * 2048)
        assert len(package.generate(loaded, [1] * 2045, sampling=package.Sampling(repeat_penalty=2.0)).ids) <= 3


@pytest.mark.slow
def test_prompts_of_a_batch_have_each_what_is_left(with_context: WithContext) -> None:
    loaded = package.load(with_context(40), arith="f32")
    prompts = [[5] * 38, [6, 7] * 10, [8] * 4]
    together = package.generate_batch(loaded, prompts)
    assert [len(answer.ids) for answer in together] == [
        len(package.generate(loaded, prompt).ids) for prompt in prompts
    ]
    assert len(together[0].ids) <= 2 and len(together[1].ids) <= 20
    for answer, prompt in zip(together, prompts, strict=True):
        assert answer.ids == package.generate(loaded, prompt).ids


def talk(stdin: str, model: str, *options: str) -> Outcome:
    return assay("chat", *ORACLE, "--system", "", "-m", model, "--json", *options, stdin=stdin.encode())


@pytest.mark.parametrize("options", [(), ("-n", "4")])
def test_chat_answers_with_what_is_left(options: tuple[str, ...], with_context: WithContext) -> None:
    first = assay("run", "one", *ORACLE, "--chat", "--system", "", "-n", "4", "--json").json
    n = len(first["prompt_ids"])
    assert len(first["ids"]) == 4
    said = talk("one\ntwo\n/reset\none\n", with_context(n + 3), *options)
    lines = said.out.splitlines()
    assert f'"ids": {first["ids"][:3]}, "finish_reason": "length"' in lines[0]
    assert "leave no room" in lines[1] and "/reset" in lines[1]
    assert lines[2] == lines[0], "there is room after /reset"
    assert said.err.count("the context is full: /reset forgets the conversation") == 2 and said.code == 2


def test_an_answer_that_fits_does_not_speak_of_the_context(with_context: WithContext) -> None:
    n = len(assay("run", "one", *ORACLE, "--chat", "--system", "", "-n", "1", "--json").json["prompt_ids"])
    said = talk("one\n", with_context(n + 4), "-n", "4")
    assert (said.code, said.err) == (0, "")
    assert open_model(with_context(n + 4)).config.context_length == n + 4
