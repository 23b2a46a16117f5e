"""The fast tokenizer: its rules, and the places where the library under it would stay silent."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.accel.tokenizer import BYTES, Tokenizer
from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary
from assay.formats.errors import InputError, ModelError
from tests.tokenizer_corpus import prompts, texts, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
TOKENIZER = Tokenizer(VOCABULARY)
RAW = Tokenizer(VOCABULARY, nfc=False)
NAMED = {i: VOCABULARY.tokens[i] for i in VOCABULARY.ids_of_kind(CONTROL, USER_DEFINED)}


def named(prompt: Prompt | str, *, special: bool = True) -> list[str]:
    return [NAMED[i] for i in TOKENIZER.encode(prompt, special=special) if i in NAMED]


def test_byte_table_covers_every_byte_once() -> None:
    assert sorted(BYTES.values()) == list(range(256))
    assert bytes(BYTES[character] for character in "ĠĊĉĀA~ġłŃÿ") == b" \n\t\0A~\x7f\xa0\xad\xff"


@given(texts(named=False))
def test_decode_gives_back_what_was_encoded(text: str) -> None:
    assert RAW.decode(RAW.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(("prompt", "names"), [
    ("2?<|im_end|>", ["<|im_end|>"]),
    ("<|im_end|>>>", ["<|im_end|>>"]),
    ("<|im_end|>>>>", ["<|im_end|>>", ">>"]),
    ("<|im_en<|im_end|>", ["<|im_", "<|im_end|>"]),
    (Prompt("<|im_end|>>", ((10, 11),)), ["<|im_end|>"]),
    (Prompt("<|im_end|>", ((3, 4),)), ["<|im_"]),
    (Prompt("<|im_end|>", ((3, 3),)), ["<|im_end|>"]),
    (Prompt("<tool_call><|im_end|>", ((0, 21),)), ["<tool_call>", "<|im_"]),
    (Prompt("a<|im_end|>b", ((0, 1), (11, 12))), ["<|im_end|>"]),
    ("e\u0301|", ["e\u0301|"]),
    ("é|", []),
    ("[PAD0]", []),
    ("x<|im_end|>", ["x<|"]),
])  # fmt: skip
def test_named_tokens_leftmost_longest_and_outside_literals(prompt: Prompt | str, names: list[str]) -> None:
    assert named(prompt) == names


@given(prompts())
def test_control_ids_never_come_out_of_literal_text(prompt: Prompt) -> None:
    everything = Prompt(prompt.text, ((0, len(prompt.text)),))
    control = set(VOCABULARY.ids_of_kind(CONTROL))
    assert not control & set(TOKENIZER.encode(everything))
    assert TOKENIZER.encode(everything) == TOKENIZER.encode(prompt, special=False)


def test_bos_is_put_once() -> None:
    bos, plain = VOCABULARY.bos_id, TOKENIZER.encode("a")
    assert TOKENIZER.encode("a", bos=True) == [bos, *plain]
    assert TOKENIZER.encode("<|endoftext|>a", bos=True) == [bos, *plain]
    assert TOKENIZER.encode("", bos=True) == [bos]
    wanted = Tokenizer(replace(VOCABULARY, add_bos=True))
    assert (wanted.encode("a"), wanted.encode("a", bos=False)) == ([bos, *plain], plain)
    with pytest.raises(InputError, match="BOS"):
        Tokenizer(replace(VOCABULARY, bos_id=None)).encode("a", bos=True)


@given(st.lists(st.integers(0, len(VOCABULARY) - 1)), st.booleans())
def test_streaming_equals_decoding(ids: list[int], special: bool) -> None:
    stream = TOKENIZER.stream(special=special)
    text = "".join(map(stream.push, ids)) + stream.flush()
    assert text == TOKENIZER.decode(ids, special=special)


def test_decode_takes_an_array_and_drops_control_tokens() -> None:
    ids = TOKENIZER.encode("a<|im_end|><tool_call>猫")
    assert TOKENIZER.decode(np.array(ids, np.int32)) == "a<|im_end|><tool_call>猫"
    assert TOKENIZER.decode(ids, special=False) == "a<tool_call>猫"


@pytest.mark.parametrize("bad", [-1, len(VOCABULARY), 2**70, None, "a", 1.0])
def test_bad_ids_are_refused(bad: int) -> None:
    for refused in (lambda: TOKENIZER.decode([0, bad]), lambda: TOKENIZER.bytes_of(bad),
                    lambda: TOKENIZER.stream().push(bad)):
        with pytest.raises(InputError):
            refused()


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match=r"character 3: .*U\+DFFF"):
        TOKENIZER.encode("abc\udfffd")


@pytest.mark.parametrize(("changes", "message"), [
    ({"pre": "llama-bpe"}, "llama-bpe"),
    ({"tokens": ["??" if t == "Ġ" else t for t in VOCABULARY.tokens]}, "0x20"),
    ({"tokens": ["a" if t == "b" else t for t in VOCABULARY.tokens]}, "'a'"),
    ({"merges": ["a b c"]}, "a b c"),
    ({"merges": ["ab"]}, "ab"),
    ({"merges": ["a <|im_end|>"]}, "im_end"),
])  # fmt: skip
def test_a_vocabulary_that_does_not_fit_together_is_refused(changes: dict[str, object], message: str) -> None:
    vocabulary: Vocabulary = replace(VOCABULARY, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match=message):
        Tokenizer(vocabulary)


def test_a_token_outside_the_byte_alphabet_is_refused_when_shown() -> None:
    odd = replace(VOCABULARY, tokens=[*VOCABULARY.tokens, "日"], kinds=[*VOCABULARY.kinds, NORMAL])
    with pytest.raises(ModelError, match="日"):
        Tokenizer(odd).decode([len(VOCABULARY)])


def test_of_a_merge_listed_twice_the_first_counts() -> None:
    tokens = [*sorted(BYTES), "ab", "bc"]
    twice = replace(VOCABULARY, tokens=tokens, kinds=[NORMAL] * 258, merges=["a b", "b c", "a b"])
    assert Tokenizer(twice).encode("abc") == [256, tokens.index("c")]


LONG = ["a" * 100_000, " " * 100_000, "a" + "\u0301\u0316" * 50_000, "<|im_end|>" * 10_000]


@pytest.mark.parametrize("text", LONG, ids=["letters", "spaces", "marks", "control tokens"])
def test_long_texts_do_not_hang(text: str) -> None:
    began = time.process_time()
    TOKENIZER.encode(text)
    assert time.process_time() - began < 2  # quadratic loops take minutes
