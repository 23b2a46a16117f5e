"""The audit of tokenizers and renderers: planted faults, each named by the kind of case that has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from assay.formats import ModelError, TemplateError, open_model
from assay.formats.contract.engine import Prompt
from assay.goldens import BUILTIN
from assay.judging.audit import Reading
from assay.parity.audit import Kind, audit
from assay.parity.corpus import Corpus, corpus
from assay.reference import pre_tokenizer
from assay.reference.chat import chat_prompt
from assay.reference.tokenizer import Tokenizer

FILE = open_model(BUILTIN)
TOKENIZER = Tokenizer(FILE.vocabulary)
RAW = Tokenizer(FILE.vocabulary, nfc=False)
OTHER = Tokenizer(FILE.vocabulary)
RENDER = partial(chat_prompt, FILE)
ORACLE = Reading(TOKENIZER, RENDER)
WHOLE = corpus(FILE.vocabulary, TOKENIZER.bytes_of)
DIGITS = [TOKENIZER.encode(digit)[0] for digit in "0123456789"]


def some(kinds: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """Eight cases of each kind: a test of the judge needs no more."""
    return {name: Random(0).sample(cases, min(8, len(cases))) for name, cases in kinds.items() if name != "all at once"}


CORPUS = Corpus(some(WHOLE.texts), some(WHOLE.contents), some(WHOLE.ids), WHOLE.conversations)
TEXTS = replace(CORPUS, conversations=dict(list(WHOLE.conversations.items())[:1]))
"""For faults that no conversation is needed for."""


class Candidate:
    """The oracle's own, until a part of it is replaced."""

    def __init__(self, **parts: Callable[..., Any]) -> None:
        self.encode, self.decode, self.chat_prompt = TOKENIZER.encode, TOKENIZER.decode, RENDER
        vars(self).update(parts)


def found(kind: str = "", **parts: Callable[..., Any]) -> dict[str, Kind]:
    """The kinds in which a candidate with these parts differs; ``kind``: one of which every case is tried."""
    asked = CORPUS if "chat_prompt" in parts else TEXTS
    if kind in WHOLE.texts:
        asked = replace(asked, texts={**asked.texts, kind: WHOLE.texts[kind]})
    return {kind.name: kind for kind in audit(ORACLE, Candidate(**parts), asked) if kind.differing}


def test_the_oracle_does_not_differ_from_itself() -> None:
    kinds = audit(ORACLE, Candidate(), CORPUS)
    assert not [kind for kind in kinds if kind.differing or kind.skipped]
    assert all(kind.cases for kind in kinds)


def test_the_corpus_is_large_and_says_everything_once() -> None:
    kinds = {**WHOLE.texts, **WHOLE.contents, **WHOLE.ids, **WHOLE.conversations}
    assert len(kinds) == sum(map(len, (WHOLE.texts, WHOLE.contents, WHOLE.ids, WHOLE.conversations)))
    assert sum(map(len, kinds.values())) > 3_000
    assert not [name for name, cases in WHOLE.texts.items() if len(set(cases)) < len(cases)]


def text_of(prompt: str | Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.text


def by_threes(prompt: str | Prompt) -> list[int]:
    ids: list[int] = []
    for token in TOKENIZER.encode(prompt):
        if token in DIGITS and len(ids) > 1 and {ids[-1], ids[-2]} <= set(DIGITS):
            ids.pop()
        ids.append(token)
    return ids


def small_letters_only(text: str, start: int) -> int:
    tails = ("re", "ve", "ll", "s", "t", "m", "d")
    return next((start + 1 + len(t) for t in tails if text.startswith("'" + t, start)), start)


def case_sensitive(prompt: str | Prompt) -> list[int]:
    with patch.object(pre_tokenizer, "ALTERNATIVES", (small_letters_only, *pre_tokenizer.ALTERNATIVES[1:])):
        return OTHER.encode(prompt)  # which remembers its own pre-tokens


def one_blank(prompt: str | Prompt) -> list[int]:
    return TOKENIZER.encode(re.sub(" +", " ", text_of(prompt)))


def not_after_punctuation(prompt: str | Prompt) -> list[int]:
    """A named token after a question mark or a full stop is read as text, as one engine did."""
    text = text_of(prompt)
    literal = prompt.literal if isinstance(prompt, Prompt) else ()
    spelt = re.compile(r"(?<=[?.])<\|[a-z_]+\|>")
    return TOKENIZER.encode(Prompt(text, tuple(one.span() for one in spelt.finditer(text))) if not literal else prompt)


def zero_for_unknown(ids: Sequence[int]) -> str:
    """Bytes that are no UTF-8 are dropped."""
    return b"".join(map(TOKENIZER.bytes_of, ids)).decode(errors="ignore")


ENCODERS: dict[str, tuple[Callable[..., Any], str]] = {
    "no normal form C": (RAW.encode, "normal form C"),
    "digits by threes": (by_threes, "digits"),
    "contractions of small letters only": (case_sensitive, "contraction by case"),
    "runs of spaces are one": (one_blank, "runs of spaces"),
    "control tokens out of content": (lambda prompt: TOKENIZER.encode(text_of(prompt)), "control tokens in content"),
    "a named token after punctuation is text": (not_after_punctuation, "named token after"),
    "a token at the beginning": (lambda prompt: TOKENIZER.encode(prompt, bos=True), "nothing"),
    "named tokens are text": (lambda prompt: TOKENIZER.encode(prompt, special=False), "special tokens"),
    "blanks at the end are cut off": (lambda prompt: TOKENIZER.encode(text_of(prompt).rstrip()), "runs of line breaks"),
}


@pytest.mark.parametrize("fault", ENCODERS)
def test_planted_in_an_encoder(fault: str) -> None:
    encode, kind = ENCODERS[fault]
    assert found(kind, encode=encode)[kind].first is not None


def test_what_has_no_marks_has_no_normal_form() -> None:
    """The fault is named, and not everything else with it."""
    differing = set(found(encode=RAW.encode))
    assert not differing & {"digits", "contraction by case", "runs of spaces", "Chinese", "no system turn", "emoji"}


def test_planted_in_a_decoder() -> None:
    assert set(found(decode=zero_for_unknown)) >= {"bytes that are not UTF-8"}
    skipping = found(decode=lambda ids: TOKENIZER.decode(ids, special=False))
    assert "special tokens" in skipping and "digits" not in skipping


def changed(change: Callable[[str], str]) -> Callable[..., str]:
    return lambda **options: change(RENDER(**options).text)


def opening(messages: Any, **options: Any) -> Prompt:
    return RENDER(messages, tools=options["tools"])


def without_tools(messages: Any, tools: Any, **options: Any) -> Prompt:
    return RENDER(messages, tools=None, **options)


def without_calls(messages: Any, **options: Any) -> Prompt:
    return RENDER([{**one, "tool_calls": []} if one.get("content") else one for one in messages], **options)


def trimmed(messages: Any, **options: Any) -> Prompt:
    return RENDER([{**one, "content": one["content"] and one["content"].strip()} for one in messages], **options)


DEFAULT = re.compile(r"^<\|im_start\|>system\nYou are Qwen.*?<\|im_end\|>\n", re.DOTALL)
RENDERERS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "default system text lost": (changed(lambda text: DEFAULT.sub("", text)), {"no system turn", "tool definitions"}),
    "no newline after a turn": (changed(lambda text: text.replace("<|im_end|>\n", "<|im_end|>")), {"system turn"}),
    "always opens an answer": (opening, {"no generation prompt", "answer to be continued"}),
    "tools forgotten": (without_tools, {"tool definitions"}),
    "calls forgotten": (without_calls, {"tool calls"}),
    "content trimmed": (trimmed, {"blanks in content"}),
    "content's markers are control tokens": (changed(str), {"markers in content"}),
    "escaped as HTML": (changed(lambda text: text.replace("'", "&#39;")), {"tool definitions"}),
}


@pytest.mark.parametrize("fault", RENDERERS)
def test_planted_in_a_renderer(fault: str) -> None:
    render, kinds = RENDERERS[fault]
    differing = found(chat_prompt=render)
    assert set(differing) >= kinds and "digits" not in differing
    assert all(differing[kind].first for kind in kinds)


def test_what_is_not_offered_is_named() -> None:
    class TwoFunctions:
        encode, decode = staticmethod(TOKENIZER.encode), staticmethod(TOKENIZER.decode)

    kinds = audit(ORACLE, TwoFunctions(), TEXTS)
    assert {kind.skipped for kind in kinds} == {"", "it renders no conversations"}
    as_text = audit(ORACLE, Candidate(chat_prompt=changed(str)), TEXTS)
    (skipped,) = [kind for kind in as_text if kind.skipped]
    assert (skipped.name, skipped.cases) == ("control tokens in content", 0)


def test_a_template_that_the_oracle_does_not_know_is_named() -> None:
    def unknown(**_: Any) -> Prompt:
        raise TemplateError("the oracle does not know the chat template")

    kinds = audit(Reading(TOKENIZER, unknown), Candidate(), TEXTS)
    assert {kind.skipped for kind in kinds} == {"", "the oracle does not know the chat template"}


def test_foreign_code_may_raise_and_return_anything() -> None:
    def failing(_: Any) -> Any:
        raise KeyError("\x1b[31m" * 100)

    differing = found(encode=failing)
    first = differing["digits"].first
    assert first is not None and "KeyError" in first.found and first.oracle == "not refused"
    assert "bytes that are not UTF-8" not in differing
    assert found(decode=lambda ids: b"bytes")["digits"].differing
    assert found(encode=lambda text: [0.5])["digits"].differing
    assert found(chat_prompt=lambda **_: None).keys() == CORPUS.conversations.keys()
    assert not found(encode=lambda text: np.array(TOKENIZER.encode(text), np.int32))


def test_what_both_refuse_is_no_difference() -> None:
    def refuses(_: Any) -> Any:
        raise ModelError("no")

    kinds = audit(Reading(type("T", (), {"encode": refuses, "decode": refuses}), RENDER), Candidate(encode=refuses),
                  TEXTS)  # fmt: skip
    assert not next(kind for kind in kinds if kind.name == "digits").differing


def test_a_difference_shows_where_and_commands_no_terminal() -> None:
    first = found(decode=lambda ids: TOKENIZER.decode(ids).replace("\x1b", "?"))["controls"].first
    assert first is not None and "\x1b" not in "".join(first)
    assert "\\x1b" in first.oracle and "?" in first.found
