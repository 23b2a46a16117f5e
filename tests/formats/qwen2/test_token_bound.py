"""The least number of tokens is never more than there are; a text that is far too long is refused without encoding."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import assay
from assay.accel import tokenizer as accel
from assay.formats import InputError, open_model
from assay.formats.qwen2.token_bound import droppable, least_tokens, longest
from assay.goldens import BUILTIN
from assay.reference import tokenizer as reference
from tests.assay.command_line import assay as typed
from tests.examples import examples
from tests.tokenizer_corpus import SAMPLES, texts, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
COMPOSING = ("e\u0301A\u030a\u0301K\u212a\u030c\u1100\u1161\u11a8"
             "\u03a9\u2126\u0345\u0313\u0344\u0958\u1fef;\u037e\U0001d15e")  # fmt: skip


@given(st.one_of(texts(), st.text(st.sampled_from(COMPOSING))), st.booleans())
@examples(300)
def test_it_is_a_lower_bound(text: str, nfc: bool) -> None:
    for tokenizer in (reference.Tokenizer(VOCABULARY, nfc=nfc), accel.Tokenizer(VOCABULARY, nfc=nfc)):
        assert least_tokens(text, VOCABULARY) <= len(tokenizer.encode(text))


def test_the_samples_and_what_the_bound_is_made_of() -> None:
    vocabulary = open_model(BUILTIN).vocabulary
    tokenizer = accel.Tokenizer(vocabulary)
    for text in SAMPLES.values():
        ids = tokenizer.encode(text)
        assert len(text.encode()) / len(ids) / 40 < least_tokens(text, vocabulary) <= len(ids)
    assert longest(vocabulary) == max(len(tokenizer.bytes_of(i)) for i in range(len(vocabulary)))
    assert least_tokens("x" * 33, vocabulary) == -(-33 // longest(vocabulary))


def test_normalising_drops_no_more_than_is_taken_off() -> None:
    """Every character that has a canonical decomposition, in every spelling that composes to it."""
    for code in range(0x110000):
        character = chr(code)
        spelt = unicodedata.normalize("NFD", character)
        if spelt == character:
            continue
        dropped = sum(len(c.encode()) for c in spelt if c in droppable())
        assert len(unicodedata.normalize("NFC", spelt).encode()) >= len(spelt.encode()) - dropped, hex(code)
        if unicodedata.normalize("NFC", character) != character:
            assert character in droppable(), hex(code)


@pytest.mark.parametrize("arguments", [
    ("run",), ("run", "-e", "reference"), ("run", "--no-nfc"), ("parity",), ("bisect",),
    ("trace", "-e", "reference", "-o", "never"),
])  # fmt: skip
def test_a_text_that_cannot_fit_is_not_encoded(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in (reference, accel):
        monkeypatch.setattr(engine.Tokenizer, "encode", lambda *_, **__: pytest.fail("this takes half a minute"))
    long = tmp_path / "long.txt"
    for text in ("def fib(n):\n" * 1_300_000, "漢字" * 50_000, "e\u0301" * 500_000):
        long.write_text(text)
        refusal = typed(*arguments, "-f", str(long))
        assert refusal.is_refusal(2) and "at least" in refusal.err, refusal.err


def test_what_fits_is_not_refused() -> None:
    model = assay.load("builtin", engine="reference")
    longest_token = max(model.file.vocabulary.tokens, key=len)
    with pytest.raises(InputError, match="at least"):
        assay.generate(model, "x" * (len(longest_token) * model.file.config.context_length + 1))
    model.file.check_text("x" * (longest(model.file.vocabulary) * model.file.config.context_length))
