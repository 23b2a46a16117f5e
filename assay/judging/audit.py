"""Tokenizers and chat renderers before the oracle's: what ``assay tokenize --audit`` does.

No weights are read: the oracle's side needs a file's vocabulary and template only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from assay.engines import ENGINES, engine_package
from assay.formats import InputError, ModelFile
from assay.formats.contract.arguments import checked
from assay.parity.audit import Kind, Reader, audit
from assay.parity.corpus import Corpus, corpus
from assay.peers import running
from assay.peers.endpoint import is_address
from assay.peers.served_tokenizer import ServedTokenizer
from assay.reference.chat import chat_prompt
from assay.reference.tokenizer import Tokenizer

LIBRARY = "tokenizers"


class Reading:
    """A tokenizer and a renderer under the names by which they are audited; ``render`` None: it has none."""

    def __init__(self, tokenizer: Any, render: Any) -> None:
        self.encode, self.decode, self.chat_prompt = tokenizer.encode, tokenizer.decode, render


@checked
def audit_tokenizer(engine: Any, file: ModelFile, texts: Sequence[str] | None = None, *,
                    nfc: bool = True) -> list[Kind]:  # fmt: skip
    """What ``engine`` makes of the built-in corpus, or of ``texts``, beside what the oracle makes of it.

    ``engine`` is anything with ``encode(text) -> ids`` and ``decode(ids) -> text``, or with a ``tokenizer`` that has
    them; if it has ``chat_prompt`` as our engines have, conversations are compared, too. ``nfc``: whether the oracle
    normalises, as Qwen2's own tokenizer does. Raises InputError for an engine that has none of this.
    """
    oracle = Tokenizer(file.vocabulary, nfc=nfc)
    candidate: Reader = Reading(getattr(engine, "tokenizer", engine), getattr(engine, "chat_prompt", None))
    asked = corpus(file.vocabulary, oracle.bytes_of)
    if texts is not None:
        asked = Corpus({"texts": list(texts)}, {}, {}, asked.conversations)
    return audit(Reading(oracle, partial(chat_prompt, file)), candidate, asked)


@contextmanager
def reader_of(engine: str, file: ModelFile, *, nfc: bool = True, insecure_key: bool = False) -> Iterator[Any]:
    """What reads texts for an engine: one of ours, ``tokenizers`` (Hugging Face's library, on a folder's own
    tokenizer.json), ``llama.cpp`` (its server), or the address of such a server.

    Raises InputError for an engine that is none of these, or does not read this file.
    """
    if engine in ENGINES:
        package = engine_package(engine)
        render = import_module(f"{package.__name__}.chat").chat_prompt
        tokenizer = import_module(f"{package.__name__}.tokenizer").Tokenizer(file.vocabulary, nfc=nfc)
        yield Reading(tokenizer, partial(render, file))
    elif engine == LIBRARY:
        yield LibraryTokenizer(file)
    elif engine == "llama.cpp":
        with running(engine, file.path, context=64) as peer:
            yield ServedTokenizer(peer.address, file)
    elif is_address(engine):
        yield ServedTokenizer(engine, file, insecure_key=insecure_key)
    else:
        raise InputError(f"there is no engine {engine!r} with a tokenizer of its own", where="--engine",
                         remedy=f"Choose one of {', '.join(ENGINES)}, {LIBRARY}, llama.cpp, or an address")  # fmt: skip


class LibraryTokenizer:
    """The tokenizer of a Hugging Face folder as the library reads it; it renders no conversations."""

    def __init__(self, file: ModelFile) -> None:
        path = file.path / "tokenizer.json"
        if not path.is_file():
            raise InputError("there is no tokenizer.json", where=str(file.path),
                             remedy="Give a Hugging Face folder, or another --engine")  # fmt: skip
        self.library = import_module("tokenizers").Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens spelt out."""
        return self.library.decode(list(ids), skip_special_tokens=False)
