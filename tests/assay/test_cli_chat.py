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
from assay.formats import InputError, TemplateError
from assay.formats.contract.engine import Sampling, Step, Timings
from assay.reference import Model
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

    def noting(model: Any, prompt: list[int], **how: Any) -> Iterator[Step]:
        seen.append(model.tokenizer.decode(prompt))
        return real(model, prompt, **how)

    monkeypatch.setattr(chat, "stream_generate", noting)
    return seen


@pytest.fixture
def interrupt_first(prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make Ctrl-C arrive in the first answer, after so many tokens."""
    real = chat.stream_generate
    calls: list[int] = []

    def arrange(n_tokens: int) -> None:
        def stopping(model: Any, prompt: list[int], **how: Any) -> Iterator[Step]:
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
    conversation = Conversation(model, "", 4, {"sampling": Sampling(), "timings": timings})
    list(conversation.say("One?"))
    first = model.tokenizer.encode(model.chat_prompt(conversation.messages[:2]))
    assert timings.prefill_tokens == len(first)

    said = "".join(conversation.say("Two?"))
    second = model.tokenizer.encode(model.chat_prompt(conversation.messages[:4]))
    assert 0 < timings.prefill_tokens <= len(second) - len(first) < len(second)

    afresh = Conversation(model, "", 4, conversation.how)
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
    assert "leave no room for an answer in the context of 2048" in said.err
    assert "/reset" in said.err
    assert refused["error"]["type"] == "InputError"
    assert prompts[1] == prompts[0] + first["content"] + "<|im_end|>\n" + USER.format("two")
    assert second["finish_reason"] == "length"
    assert said.code == 2, "nobody watches a pipe: the exit code says that a turn went unanswered"


def test_a_bad_line_does_not_end_the_conversation(prompts: list[str]) -> None:
    """Not UTF-8, too long a line, more than the context, a surrogate that no prompt can hold: each is reported."""
    bad = [b"caf\xe9", b"x" * ((16 << 20) + 1), b"word " * 3000, b"\xed\xa0\x80"]
    for line in bad:
        prompts.clear()
        said = talk(b"one\n" + line + b"\ntwo\n", "--json")
        first, refused, second = answers(said)
        assert (said.code, said.err.count("\n"), refused["error"]["type"]) == (2, 1, "InputError")
        assert first["ids"] and second["ids"]
        assert prompts == [prompts[0], prompts[0] + first["content"] + "<|im_end|>\n" + USER.format("two")]


def test_a_line_that_does_not_render_does_not_end_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Model.chat_prompt

    def picky(self: Model, messages: list[dict[str, str]]) -> Any:
        if messages[-1]["content"] == "two":
            raise TemplateError("no two please", where="tokenizer.chat_template", remedy="Say three")
        return real(self, messages)

    monkeypatch.setattr(Model, "chat_prompt", picky)
    said = talk("one\ntwo\nthree\n", "--json")
    first, refused, third = answers(said)
    assert (said.code, said.err) == (5, "assay: tokenizer.chat_template: no two please. Say three\n")
    assert refused["error"]["what"] == "no two please" and first["ids"] and third["ids"]


@pytest.mark.parametrize("line", ["/", "/rest", "/usr/bin is?", "/Exit", "/reset now", "/help me", "/save", "/save  "])
def test_a_mistyped_command_is_not_sent_to_the_model(line: str, prompts: list[str]) -> None:
    said = talk(f"{line}\none\n")
    assert len(prompts) == 1 and USER.format("one") in prompts[0]
    assert said.code == 2 and len(said.out.splitlines()) == 1
    assert "is not a command" in said.err
    assert all(word in said.err for word in ("/reset", "/save FILE", "/exit", "/quit", "//text"))


def test_help_is_no_question(prompts: list[str]) -> None:
    said = talk("/help\n/help \n")
    assert (said.code, said.out, prompts) == (0, "", [])
    assert all(said.err.count(f"assay: {line}\n") == 2 for line in chat.HELP)
    assert talk("/help\n", "--json").out == ""


@pytest.mark.parametrize("leave", ["/exit", "/quit", "/exit "])
def test_leaving(leave: str, prompts: list[str]) -> None:
    said = talk(f"one\n{leave}\ntwo\n")
    assert said.code == 0 and len(prompts) == 1


@pytest.mark.parametrize(("line", "sent"), [("//exit", "/exit"), (" /exit", " /exit"), ("///", "//"), ("a/b", "a/b")])
def test_a_text_that_begins_with_a_slash(line: str, sent: str, prompts: list[str]) -> None:
    assert talk(f"{line}\n").code == 0
    assert prompts[0].endswith(USER.format(sent))


def test_what_is_saved_is_what_messages_reads(tmp_path: Path, prompts: list[str]) -> None:
    file = tmp_path / "a name.json"
    said = talk(f"é one\n/save {file}\ntwo\n", "--json", "--system", "Be brief.")
    first, _ = answers(said)
    assert (said.code, said.err) == (0, "")
    assert json.loads(file.read_bytes()) == {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "é one"},
        {"role": "assistant", "content": first["content"]}]}  # fmt: skip
    again = assay("tokenize", "--engine", "reference", "--messages", str(file), "--json").json
    assert prompts[1].startswith(again["text"].removesuffix("<|im_start|>assistant\n"))


def test_saving_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, tmp_path, tmp_path / "no" / "such", tmp_path / ("x" * 300), Path("~no-such-user/x")):
        said = talk(f"/save {path}\none\n")
        assert said.code == 2 and str(path) in said.err and len(said.out.splitlines()) == 1, said
        assert "--force" not in said.err, "there is no such option in a conversation"
    assert talk("/save a\0b\n").is_refusal(2)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("stdin", [b"caf\xe9\n", b"x" * ((16 << 20) + 1)])
def test_input_that_is_no_text(stdin: bytes) -> None:
    assert talk(stdin).is_refusal(2)


def test_a_line_without_end_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def readline(self, limit: int) -> bytes:
            return b"x" * limit

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Endless()))
    lines = chat.piped_lines()
    with pytest.raises(InputError, match="longer than"):
        chat.line_of(next(lines))
    with pytest.raises(InputError, match="longer than"):  # nor is its end looked for for ever
        next(lines)


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
