"""``assay chat``: a conversation. The history stays in the engine's cache, so each turn reads only what is new."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.commands.run import MAX_PROMPT_BYTES, decoded
from assay.engines import stream_generate
from assay.formats import InputError
from assay.output import write_generated

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


def command(
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Longest answer.")] = 512,
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
    """Talk to a model. Reads standard input line by line; with --json prints one object an answer."""
    sampling = options.sampling_of(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    loaded = options.open_engine(model, engine, arith, nfc, cache_weights, cache_type)
    conversation = Conversation(loaded, system, {"max_tokens": max_tokens, "sampling": sampling})
    on_terminal = sys.stdin.isatty()
    if on_terminal and not as_json:
        options.say(HELP)
    failures = converse(conversation, typed_lines() if on_terminal else piped_lines(), as_json)
    if failures and not on_terminal:  # nobody was there to see the line that said so
        raise typer.Exit(InputError.exit_code)


def converse(conversation: Conversation, lines: Iterator[str], as_json: bool) -> int:
    """Answer line after line until they end or say /exit; returns how many could not be answered."""
    failures = 0
    for line in lines:
        if line.strip() == "/exit":
            break
        if line.strip() == "/reset":
            conversation.reset()
        elif line.strip():
            try:
                answer(conversation, line, as_json)
            except InputError as error:
                failures += 1
                options.say(f"{error}. /reset forgets the conversation")
                if as_json:
                    typer.echo(json.dumps({"error": options.error_of(error)}, ensure_ascii=False))
    return failures


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


def piped_lines() -> Iterator[str]:
    """Lines of standard input; InputError for one that is not UTF-8, or too long to be a prompt."""
    while raw := sys.stdin.buffer.readline(MAX_PROMPT_BYTES + 1):
        yield decoded(raw, "standard input").rstrip("\r\n")


class Conversation:
    """The turns so far, and the cache that has read them."""

    def __init__(self, model: Any, system: str | None, how: dict[str, Any]) -> None:
        self.model, self.system, self.how = model, system, how
        self.last: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system text."""
        self.messages: list[dict[str, str]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})
        self.cache = self.model.new_cache()

    def say(self, text: str) -> Iterator[str]:
        """Add a user's turn; yields the answer piece by piece and adds it to the history, cut short or not.

        If the turn gets no answer at all (it is too long, say) the conversation stays as it was before it.
        ``last`` is the answer as ``--json`` prints it.
        """
        self.messages.append({"role": "user", "content": text})
        self.last = {"role": "assistant", "content": "", "ids": [], "finish_reason": "interrupted"}
        try:
            prompt = self.model.chat_prompt(self.messages)
            for step in stream_generate(self.model, prompt, cache=self.cache, **self.how):
                self.last["content"] += step.text
                self.last["ids"].append(step.id)
                self.last["finish_reason"] = step.finish_reason or "interrupted"
                yield step.text
        finally:
            if self.last["ids"]:
                self.messages.append({"role": "assistant", "content": self.last["content"]})
            else:
                self.messages.pop()
