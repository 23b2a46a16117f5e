"""``assay tokenize``: what a text becomes before a model sees it."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Annotated

import typer

from assay.commands import options
from assay.engines import ENGINES
from assay.formats import InputError
from assay.formats.contract.engine import Prompt


def command(
    text: Annotated[str, typer.Argument(help="The text.")],
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    special: options.Special = True,
    nfc: options.NFC = True,
    as_json: options.Json = False,
) -> None:
    """Show the token ids of a text, by either engine's tokenizer."""
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", where="--engine",
                         remedy=f"Choose one of {', '.join(ENGINES)}")  # fmt: skip
    file = options.open_file(model)
    tokenizer = import_module(f"assay.{engine}.tokenizer").Tokenizer(file.vocabulary, nfc=nfc)
    ids = tokenizer.encode(Prompt(text), special=special)
    pieces = [tokenizer.decode([i]) for i in ids]
    if as_json:
        typer.echo(json.dumps({"model": options.model_of(file), "engine": engine, "text": text, "ids": ids,
                               "tokens": [file.vocabulary.tokens[i] for i in ids],
                               "decoded": tokenizer.decode(ids)}, ensure_ascii=False))  # fmt: skip
        return
    rows = [(str(i), file.vocabulary.tokens[i], repr(piece)) for i, piece in zip(ids, pieces, strict=True)]
    options.show(f"{len(ids)} tokens", ("id", "token", "text"), rows)
