"""The two tokenizers share no code, so where they agree on everything, a slip would have to be made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import assay.accel.tokenizer
import assay.reference.tokenizer
from assay.formats import InputError, open_model
from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import NORMAL
from assay.formats.conversion.convert import convert
from tests import hf_builder
from tests.examples import examples
from tests.model_builder import TOKENS, Shape
from tests.tokenizer_corpus import SAMPLES, mixed_text, prompts, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
TWINS = {
    nfc: (
        assay.reference.tokenizer.Tokenizer(VOCABULARY, nfc=nfc),
        assay.accel.tokenizer.Tokenizer(VOCABULARY, nfc=nfc),
    )
    for nfc in (False, True)
}


@pytest.mark.parametrize("nfc", [False, True])
@pytest.mark.parametrize("language", SAMPLES)
def test_samples(language: str, nfc: bool) -> None:
    oracle, fast = TWINS[nfc]
    for special in (False, True):
        text = SAMPLES[language]
        assert fast.encode(text, special=special) == oracle.encode(text, special=special)


@pytest.mark.parametrize("nfc", [False, True])
def test_mixed_text(nfc: bool) -> None:
    oracle, fast = TWINS[nfc]
    text = mixed_text(100_000)
    for start in range(0, len(text), 500):  # a failure shows 500 characters, not all
        assert fast.encode(text[start : start + 500]) == oracle.encode(text[start : start + 500])
    assert fast.encode(text) == oracle.encode(text)


@examples(300)
@given(prompts(), st.booleans(), st.booleans(), st.booleans())
def test_encoding(prompt: Prompt, nfc: bool, special: bool, bos: bool) -> None:
    oracle, fast = TWINS[nfc]
    assert fast.encode(prompt, special=special, bos=bos) == oracle.encode(prompt, special=special, bos=bos)


@given(st.lists(st.integers(0, len(VOCABULARY) - 1)), st.booleans())
def test_decoding(ids: list[int], special: bool) -> None:
    oracle, fast = TWINS[True]
    assert fast.decode(ids, special=special) == oracle.decode(ids, special=special)
    streams = oracle.stream(special=special), fast.stream(special=special)
    for token_id in ids:
        assert streams[0].push(token_id) == streams[1].push(token_id)
    assert streams[0].flush() == streams[1].flush()


@settings(max_examples=50)
@given(st.data())
def test_arbitrary_merge_lists(data: st.DataObject) -> None:
    """Merges in any order, several ways to one product, some listed twice: files may hold them."""
    symbols = ["a", "b", "Ã"]  # Ã is the first byte of é
    lines = []
    for _ in range(data.draw(st.integers(1, 15))):
        left, right = (data.draw(st.sampled_from(symbols)) for _ in range(2))
        lines.append(f"{left} {right}")
        symbols.append(left + right)
    lines = data.draw(st.permutations([*lines, *lines[:2]]))
    bytes_only = [t for t in VOCABULARY.tokens[:256] if len(t) == 1]
    tokens = list(dict.fromkeys([*bytes_only, *symbols]))
    vocabulary = replace(VOCABULARY, tokens=tokens, kinds=[NORMAL] * len(tokens), merges=lines)
    oracle, fast = assay.reference.tokenizer.Tokenizer(vocabulary), assay.accel.tokenizer.Tokenizer(vocabulary)
    text = data.draw(st.text("abé", max_size=30))
    assert fast.encode(text) == oracle.encode(text)


def test_every_token_has_the_same_bytes() -> None:
    oracle, fast = TWINS[True]
    for token_id in range(len(VOCABULARY)):
        assert fast.bytes_of(token_id) == oracle.bytes_of(token_id)


def test_an_id_that_stands_for_no_text_is_called_undefined(tmp_path: Path) -> None:
    """A row of the embedding without a token: its filler's name was read as a text, as if the model had written it."""
    n = len(TOKENS)
    folder = hf_builder.build(tmp_path / "hf", Shape(n_padding=3))
    convert(folder, tmp_path / "x.gguf")
    convert(folder, tmp_path / "x.apr")
    for file in map(open_model, (folder, tmp_path / "x.gguf", tmp_path / "x.apr")):
        assert file.vocabulary.tokens[n] == f"[PAD{n}]", "the name is kept, for converters"
        for package in (assay.reference, assay.accel):
            tokenizer = package.tokenizer.Tokenizer(file.vocabulary)
            assert tokenizer.decode([0, n, n + 2]) == f"!<undefined {n}><undefined {n + 2}>"
            stream = tokenizer.stream()
            assert stream.push(n + 1) + stream.flush() == f"<undefined {n + 1}>"
            with pytest.raises(InputError):
                tokenizer.decode([n + 3])
