"""``assay tokenize``: what a text becomes before a model sees it."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Annotated

import typer

from assay.commands import options
from assay.commands.asked import Messages, PromptFile, asked_text
from assay.engines import ENGINES
from assay.formats import InputError
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import Conversation


def command(
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    prompt_file: PromptFile = None,
    messages: Messages = None,
    special: options.Special = True,
    nfc: options.NFC = True,
    as_json: options.Json = False,
) -> None:
    """Show the token ids of a text or a conversation, by either engine's template and tokenizer."""
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", where="--engine",
                         remedy=f"Choose one of {', '.join(ENGINES)}")  # fmt: skip
    what = asked_text(text, prompt_file, messages)
    file = options.open_file(model)
    if isinstance(what, Conversation):
        prompt = import_module(f"assay.{engine}.chat").chat_prompt(file, **vars(what))
    else:
        prompt = Prompt(what)
    tokenizer = import_module(f"assay.{engine}.tokenizer").Tokenizer(file.vocabulary, nfc=nfc)
    ids = tokenizer.encode(prompt, special=special)
    pieces = [tokenizer.decode([i]) for i in ids]
    if as_json:
        typer.echo(json.dumps({"model": options.model_of(file), "engine": engine, "text": prompt.text, "ids": ids,
                               "tokens": [file.vocabulary.tokens[i] for i in ids],
                               "decoded": tokenizer.decode(ids)}, ensure_ascii=False))  # fmt: skip
        return
    rows = [(str(i), file.vocabulary.tokens[i], repr(piece)) for i, piece in zip(ids, pieces, strict=True)]
    options.show(f"{len(ids)} tokens", ("id", "token", "text"), rows)
