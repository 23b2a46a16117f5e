"""``assay chat``: turns, history, the cache that holds it, interruptions, and turns that cannot be answered."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assay.commands import chat
from assay.commands.chat import Conversation
from assay.formats import InputError
from assay.formats.contract.engine import Prompt, Sampling, Step, Timings
from tests.assay.command_line import Outcome, assay

ROOT = Path(__file__).parents[2]
USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def talk(stdin: str | bytes, *options: str) -> Outcome:
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    return assay("chat", "--engine", "reference", "-n", "4", *options, stdin=raw)


def answers(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that reach the engine, in order."""
    seen: list[str] = []
    real = chat.stream_generate

    def noting(model: Any, prompt: Prompt, **how: Any) -> Iterator[Step]:
        seen.append(prompt.text)
        return real(model, prompt, **how)

    monkeypatch.setattr(chat, "stream_generate", noting)
    return seen


@pytest.fixture
def interrupt_first(prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make Ctrl-C arrive in the first answer, after so many tokens."""
    real = chat.stream_generate
    calls: list[int] = []

    def arrange(n_tokens: int) -> None:
        def stopping(model: Any, prompt: Prompt, **how: Any) -> Iterator[Step]:
            calls.append(1)
            for n, step in enumerate(real(model, prompt, **how)):
                if len(calls) == 1 and n == n_tokens:
                    raise KeyboardInterrupt
                yield step

        monkeypatch.setattr(chat, "stream_generate", stopping)

    return arrange


def test_each_turn_has_the_history_before_it(prompts: list[str]) -> None:
    one, two = "Hello!", "Who are you?"  # answered otherwise
    said = talk(f"{one}\n\n  \n{two}\r\n/reset\n{one}", "--json")
    assert (said.code, said.err) == (0, "")
    first, second, afresh = answers(said)
    assert list(first) == ["role", "content", "ids", "finish_reason"]
    assert (first["role"], first["finish_reason"], len(first["ids"])) == ("assistant", "length", 4)
    assert first == afresh != second
    assert prompts[0].endswith(USER.format(one))
    assert prompts[1] == prompts[0] + first["content"] + "<|im_end|>\n" + USER.format(two)
    assert prompts[2] == prompts[0]


def test_without_json_only_the_answers_are_printed() -> None:
    lines = "one\ntwo\n/exit\nthree\n"
    first, second = (answer["content"] for answer in answers(talk(lines, "--json")))
    said = talk(lines)
    assert (said.code, said.out, said.err) == (0, f"{first}\n{second}\n", "")


def test_the_system_text_survives_a_reset(prompts: list[str]) -> None:
    assert talk("one\n/reset\none\n", "--system", "Be brief.").code == 0
    assert prompts[0] == prompts[1]
    assert prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_sampling_is_passed_on() -> None:
    first, again, other = (talk("one", "--json", "--temperature", "2", "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other
    assert talk("one", "--temperature", "-1").is_refusal(2)


@pytest.mark.parametrize("engine", ["builtin_f32", "builtin_accel"])
def test_the_cache_holds_the_history(engine: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(engine)
    timings = Timings()
    conversation = Conversation(model, "", {"max_tokens": 4, "sampling": Sampling(), "timings": timings})
    list(conversation.say("One?"))
    first = model.tokenizer.encode(model.chat_prompt(conversation.messages[:2]))
    assert timings.prefill_tokens == len(first)

    said = "".join(conversation.say("Two?"))
    second = model.tokenizer.encode(model.chat_prompt(conversation.messages[:4]))
    assert 0 < timings.prefill_tokens <= len(second) - len(first) < len(second)

    afresh = Conversation(model, "", conversation.how)
    afresh.messages = conversation.messages[:3]
    assert "".join(afresh.say("Two?")) == said, "what the cache holds is what reading it all would give"
    assert timings.prefill_tokens == len(second)


def test_a_stopped_answer_stays_in_the_history(interrupt_first: Callable[[int], None], prompts: list[str]) -> None:
    interrupt_first(2)
    whole = talk("one\ntwo\n")
    spoken = whole.out.split("\n")[0]
    assert whole.code == 0
    assert whole.err == "assay: stopped\n"
    assert len(whole.out.splitlines()) == 2
    assert prompts[1] == prompts[0] + spoken + "<|im_end|>\n" + USER.format("two")


def test_a_stopped_answer_in_json(interrupt_first: Callable[[int], None]) -> None:
    interrupt_first(2)
    stopped, following = answers(talk("one\ntwo\n", "--json"))
    assert (stopped["finish_reason"], len(stopped["ids"])) == ("interrupted", 2)
    assert following["finish_reason"] == "length"


def test_an_answer_stopped_before_its_first_token_never_was(
    interrupt_first: Callable[[int], None], prompts: list[str]
) -> None:
    interrupt_first(0)
    stopped, following = answers(talk("one\ntwo\n", "--json"))
    nothing = {"role": "assistant", "content": "", "ids": [], "finish_reason": "interrupted"}
    assert stopped == nothing
    assert len(following["ids"]) == 4
    assert "one" not in prompts[1]


def test_a_turn_that_does_not_fit_leaves_the_conversation_as_it_was(prompts: list[str]) -> None:
    too_long = "word " * 3000
    said = talk(f"one\n{too_long}\ntwo\n", "--json")
    first, refused, second = answers(said)
    assert said.err.count("\n") == 1
    assert "exceed the context" in said.err
    assert "/reset" in said.err
    assert refused["error"]["type"] == "InputError"
    assert prompts[2] == prompts[0] + first["content"] + "<|im_end|>\n" + USER.format("two")
    assert second["finish_reason"] == "length"
    assert said.code == 2, "nobody watches a pipe: the exit code says that a turn went unanswered"


@pytest.mark.parametrize("stdin", [b"caf\xe9\n", b"x" * ((16 << 20) + 1)])
def test_input_that_is_no_text(stdin: bytes) -> None:
    assert talk(stdin).is_refusal(2)


def test_a_line_without_end_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def readline(self, limit: int) -> bytes:
            return b"x" * limit

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Endless()))
    with pytest.raises(InputError, match="longer than"):
        next(chat.piped_lines())


def test_no_input_is_no_answer() -> None:
    said = talk("")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_ctrl_c_while_typing_clears_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    events: Iterator[Any] = iter([KeyboardInterrupt(), "typed", EOFError()])

    def typing(prompt: str) -> str:
        event = next(events)
        if isinstance(event, BaseException):
            raise event
        return event

    monkeypatch.setattr("builtins.input", typing)
    assert list(chat.typed_lines()) == ["typed"]


def test_on_a_terminal() -> None:
    """Ctrl-C stops the answer and not the program; a session on a terminal of its own."""
    main, terminal = os.openpty()
    # The child opens the terminal itself: the first one that a session's leader opens becomes its own.
    # Ctrl-C must mean something even where the tests run in the background of a shell, which ignores it.
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); fd = os.open(sys.argv[1], os.O_RDWR); "
        "[os.dup2(fd, i) for i in range(3)]; os.execv(sys.executable, [sys.executable, '-m', 'assay', *sys.argv[2:]])"
    )
    endless = ["--temperature", "1e6", "--seed", "2"]  # all tokens alike: next to never does it choose to end
    options = ["chat", "--engine", "reference", "-n", "1900", *endless]
    child = subprocess.Popen(
        [sys.executable, "-c", code, os.ttyname(terminal), *options], cwd=ROOT, start_new_session=True
    )
    screen = b""

    def until(text: bytes) -> None:
        nonlocal screen
        while text not in screen:
            ready, _, _ = select.select([main], [], [], 60)
            assert ready, f"waited for {text!r}, on the screen is {screen!r}"  # a hang fails the test, and no other
            screen += os.read(main, 4096)
        screen = screen.partition(text)[2]

    until(b"/reset forgets")
    os.close(terminal)  # the child has it by now
    until(b"> ")
    os.write(main, b"hello\n")
    until(b"hello\r\n")
    screen += os.read(main, 1)
    os.write(main, b"\x03")
    until(b"assay: stopped\r\n")
    until(b"> ")
    os.write(main, b"/exit\n")
    assert child.wait(timeout=20) == 0
    os.close(main)
