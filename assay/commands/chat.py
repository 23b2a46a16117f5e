"""``assay chat``: a conversation. The history stays in the engine's cache, so each turn reads only what is new."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.commands.asked import MAX_BYTES, decoded
from assay.engines import stream_generate
from assay.formats import AssayError, InputError
from assay.formats.system.atomic_file import replacing
from assay.output import write_generated

HELP = (
    "/help lists the commands",
    "/reset forgets the conversation",
    "/save FILE writes it as JSON, which --messages of other commands reads",
    "/exit, /quit or Ctrl-D leaves",
    "Ctrl-C stops an answer",
    "//text sends /text to the model; so does a space before the first /",
)
SKIPPED_AT_MOST = 4 * MAX_BYTES
"""Bytes read in search of the end of a line that is too long."""


def command(
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Longest answer, in tokens.")] = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = 0,
    nfc: options.NFC = True,
    cache_weights: options.CacheWeights = False,
    cache_type: options.CacheType = None,
    as_json: options.Json = False,
) -> None:
    """Talk to a model. Reads standard input line by line; with --json prints one object for each answer.

    /help lists the commands. A line that cannot be answered is reported, and the next one read; the exit code is then
    that of the first such line.
    """
    sampling = options.sampling_of(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    loaded = options.open_engine(model, engine, arith, nfc, cache_weights, cache_type)
    conversation = Conversation(loaded, system, max_tokens, {"sampling": sampling})
    on_terminal = sys.stdin.isatty()
    if on_terminal and not as_json:
        say_commands()
    failures = converse(conversation, typed_lines() if on_terminal else piped_lines(), as_json)
    if failures and not on_terminal:  # nobody was there to see the line that said so
        raise typer.Exit(failures[0].exit_code)


def converse(conversation: Conversation, lines: Iterator[str | bytes], as_json: bool) -> list[AssayError]:
    """Answer line after line until they end or say /exit; returns why some could not be answered."""
    failures = []
    for line in lines:
        try:
            if not answered(conversation, line if isinstance(line, str) else line_of(line), as_json):
                break
        except AssayError as error:
            failures.append(error)
            options.say(str(error))
            if as_json:
                typer.echo(json.dumps({"error": options.error_of(error)}, ensure_ascii=False))
    return failures


def answered(conversation: Conversation, line: str, as_json: bool) -> bool:
    """Carry out a command or answer a line; False where it says to leave. Raises AssayError where it cannot be done."""
    if not line.startswith("/") or line.startswith("//"):
        if line.strip():
            answer(conversation, line.removeprefix("/"), as_json)
        return True
    word, _, rest = line.rstrip().partition(" ")
    if word == "/save" and rest:
        conversation.save(rest.strip())
    elif rest or word not in ("/help", "/reset", "/exit", "/quit"):
        raise InputError(f"{line[:40]!r} is not a command", where="chat", remedy="; ".join(HELP[1:]))
    elif word == "/help":
        say_commands()
    elif word == "/reset":
        conversation.reset()
    return word not in ("/exit", "/quit")


def say_commands() -> None:
    """What can be typed besides a text."""
    for line in HELP:
        options.say(line)


def answer(conversation: Conversation, line: str, as_json: bool) -> None:
    """Print the answer to one line; Ctrl-C ends the answer, and what was said of it stays in the history."""
    stopped = False
    try:
        for text in conversation.say(line):
            if not as_json:
                write_generated(text)
    except KeyboardInterrupt:
        stopped = True
    typer.echo(json.dumps(conversation.last, ensure_ascii=False) if as_json else "")
    if stopped:
        options.say("stopped")
    elif conversation.is_full:
        options.say("the context is full: /reset forgets the conversation")


def typed_lines() -> Iterator[str]:
    """Lines typed at a terminal, with a prompt; Ctrl-C while typing only clears the line."""
    import readline  # noqa: F401  importing it is what gives input() line editing and history

    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)


def piped_lines() -> Iterator[bytes]:
    """Lines of standard input; of one that is too long its beginning, which is still too long.

    Raises InputError where such a line does not end soon, either.
    """
    stdin = sys.stdin.buffer
    while raw := stdin.readline(MAX_BYTES + 1):
        yield raw
        skipped = len(raw)
        while len(raw) > MAX_BYTES and not raw.endswith(b"\n"):  # the rest of this line is not a line of its own
            if skipped > SKIPPED_AT_MOST:
                raise InputError(f"a line is longer than {SKIPPED_AT_MOST} bytes", where="standard input",
                                 remedy="Give a shorter line")  # fmt: skip
            raw = stdin.readline(MAX_BYTES + 1)
            skipped += len(raw)


def line_of(raw: bytes) -> str:
    """A line as text, without its end; InputError if it is not UTF-8, or too long."""
    return decoded(raw, "standard input").rstrip("\r\n")


class Conversation:
    """The turns so far, and the cache that has read them."""

    def __init__(self, model: Any, system: str | None, max_tokens: int, how: dict[str, Any]) -> None:
        self.model, self.system, self.max_tokens, self.how = model, system, max_tokens, how
        self.last: dict[str, Any] = {}
        self.is_full = False
        """Whether the last answer ended since the context did."""
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system text."""
        self.messages: list[dict[str, str]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})
        self.cache = self.model.new_cache()

    def save(self, name: str) -> None:
        """Write the turns so far as JSON, which --messages reads; InputError for a file that is there already."""
        if "\0" in name:
            raise InputError(f"{name!r} is not the name of a file", where="/save", remedy="Give another")
        path = os.path.expanduser(name)
        if os.path.isfile(path):
            raise InputError("the file exists already", where=path, remedy="Give another name")
        with replacing(path) as file:
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1).encode() + b"\n")

    def say(self, text: str) -> Iterator[str]:
        """Add a user's turn; yields the answer piece by piece and adds it to the history, cut short or not.

        An answer is as long as ``max_tokens`` and the context allow. If the turn gets none at all (it is too
        long, say) the conversation stays as it was before it. ``last`` is the answer as ``--json`` prints it.
        """
        self.messages.append({"role": "user", "content": text})
        self.last = {"role": "assistant", "content": "", "ids": [], "finish_reason": "interrupted"}
        self.is_full = False
        try:
            ids = self.model.tokenizer.encode(self.model.chat_prompt(self.messages))
            n = self.room_after(ids)
            for step in stream_generate(self.model, ids, max_tokens=n, cache=self.cache, **self.how):
                self.last["content"] += step.text
                self.last["ids"].append(step.id)
                self.last["finish_reason"] = step.finish_reason or "interrupted"
                self.is_full = step.finish_reason == "length" and n < self.max_tokens
                yield step.text
        finally:
            if self.last["ids"]:
                self.messages.append({"role": "assistant", "content": self.last["content"]})
            else:
                self.messages.pop()

    def room_after(self, ids: list[int]) -> int:
        """Tokens that the answer to a prompt may have; InputError, which says what to do, where it may have none."""
        try:
            return self.model.file.room_left(ids, self.max_tokens)
        except InputError as error:
            raise InputError(error.what, where=error.where,
                             remedy="Say less, or /reset, which forgets the conversation") from None  # fmt: skip
