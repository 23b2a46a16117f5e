"""``assay tokenize``: what a text becomes before a model sees it."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Annotated

import typer

from assay.commands import options, tables
from assay.commands.asked import Messages, PromptFile, asked_text
from assay.engines import ENGINES
from assay.formats import InputError, ModelFile, SampleError
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import Conversation
from assay.judging.audit import audit_tokenizer, reader_of


def command(
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    prompt_file: PromptFile = None,
    messages: Messages = None,
    special: options.Special = True,
    nfc: options.NFC = True,
    audit: Annotated[
        bool, typer.Option("--audit", help="Hold the engine's tokenizer and chats against the oracle's instead.")
    ] = False,
    insecure_key: Annotated[
        bool, typer.Option("--insecure-key", help="Send a server's key over plain http to another machine, too.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show the token ids of a text or a conversation, by either engine's template and tokenizer.

    With --audit a built-in corpus of some 3,400 cases is read by the engine and by the oracle (with a text or a file:
    its lines, and the conversations); exit code 9 if they differ anywhere. --engine may then be tokenizers, too
    (Hugging Face's library, on a folder's own tokenizer.json), llama.cpp (extra 'peers'), or the address of its server.
    """
    if audit:
        for option, idle in (("--messages", messages is not None), ("--no-special", not special)):
            options.demand_effect(option, idle, "the corpus is audited")
        lines = None if (text, prompt_file) == (None, None) else str(asked_text(text, prompt_file, None)).splitlines()
        show_audit(options.open_file(model), engine, lines, as_json, nfc=nfc, insecure_key=insecure_key)
        return
    options.demand_effect("--insecure-key", insecure_key, "no server is asked")
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


def show_audit(file: ModelFile, engine: str, lines: list[str] | None, as_json: bool, *, nfc: bool,
               insecure_key: bool) -> None:  # fmt: skip
    """What the two sides make of the corpus; exits with the code of a sample that is not the same if they differ."""
    with reader_of(engine, file, nfc=nfc, insecure_key=insecure_key) as reader:
        kinds = audit_tokenizer(reader, file, lines, nfc=nfc)
    differing = sum(kind.differing for kind in kinds)
    if as_json:
        found = [{**kind._asdict(), "first": kind.first and kind.first._asdict()} for kind in kinds]
        typer.echo(json.dumps({"model": options.model_of(file), "engine": engine, "differing": differing,
                               "cases": sum(kind.cases for kind in kinds), "kinds": found}))  # fmt: skip
    else:
        rows = [(kind.name, f"{kind.cases:,}", f"{kind.differing:,}") for kind in kinds if not kind.skipped]
        tables.columns(("kind", "cases", "different"), rows, right=("cases", "different"))
        tables.line()
        for kind in kinds:
            if kind.first is not None:
                tables.line((kind.name, "bold red"), f": {kind.first.case}: {engine} {kind.first.found}; oracle "
                            f"{kind.first.oracle}")  # fmt: skip
        for why in dict.fromkeys(kind.skipped for kind in kinds if kind.skipped):
            names = ", ".join(kind.name for kind in kinds if kind.skipped == why)
            tables.line(f"not audited, as {why}: {names}")
        tables.line(f"{differing:,} of {sum(kind.cases for kind in kinds):,} cases differ")
    raise typer.Exit(SampleError.exit_code if differing else 0)
