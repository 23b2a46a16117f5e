"""``assay chat``: a conversation. The history stays in the engine's cache, so each turn reads only what is new."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.engines import stream_generate
from formats.protocol import Sampling

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
    as_json: options.Json = False,
) -> None:
    """Talk to a model. Reads standard input line by line; with --json prints one object an answer."""
    sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    loaded = options.open_engine(model, engine, arith, nfc, cache_weights)
    conversation = Conversation(loaded, system, {"max_tokens": max_tokens, "sampling": sampling})
    if sys.stdin.isatty() and not as_json:
        options.say(HELP)
    for line in lines():
        if line.strip() == "/exit":
            break
        if line.strip() == "/reset":
            conversation.reset()
        elif line.strip():
            answer(conversation, line, as_json)


def answer(conversation: Conversation, line: str, as_json: bool) -> None:
    """Print the answer to one line; Ctrl-C ends the answer, and what was said of it stays in the history."""
    try:
        for text in conversation.say(line):
            if not as_json:
                sys.stdout.write(text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        options.say("stopped")
    if as_json:
        typer.echo(json.dumps(conversation.messages[-1] | conversation.last, ensure_ascii=False))
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()


def lines() -> Iterator[str]:
    """Lines of standard input, with a prompt on a terminal; Ctrl-C while typing only clears the line."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        import readline  # noqa: F401  importing it is what gives input() line editing and history
    while True:
        try:
            yield input("> " if on_terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            print(file=sys.stderr)


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

        If the turn cannot be answered at all (too long, say) the conversation stays as it was before it.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        self.last = {"ids": [], "finish_reason": "interrupted"}
        try:
            prompt = self.model.chat_prompt(self.messages)
            for step in stream_generate(self.model, prompt, cache=self.cache, **self.how):
                pieces.append(step.text)
                self.last["ids"].append(step.id)
                self.last["finish_reason"] = step.finish_reason or "interrupted"
                yield step.text
        except BaseException:
            if not self.last["ids"]:
                self.messages.pop()
            else:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            raise
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
