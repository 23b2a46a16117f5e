"""The oracle's tokenizer, step by step, against definitions written out another way."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import replace
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import CONTROL, Vocabulary
from assay.formats.errors import InputError, ModelError
from assay.reference.pre_tokenizer import is_space, pre_tokens
from assay.reference.tokenizer import ALPHABET, Tokenizer, merge, nfc
from tests.tokenizer_corpus import characters_the_tables_disagree_on, mixed_text, prompts, texts, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
TOKENIZER = Tokenizer(VOCABULARY)
RAW = Tokenizer(VOCABULARY, nfc=False)
IM_END = VOCABULARY.tokens.index("<|im_end|>")
PATTERN = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def naive_merge(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    symbols = list(word)
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


@st.composite
def merge_lists(draw: st.DrawFn) -> dict[tuple[str, str], int]:
    """Merges over {a, b, c} in any order, so that a product may rank before the merge that makes its part."""
    symbols = ["a", "b", "c"]
    pairs = []
    for _ in range(draw(st.integers(0, 12))):
        pairs.append((draw(st.sampled_from(symbols)), draw(st.sampled_from(symbols))))
        symbols.append("".join(pairs[-1]))
    return {pair: rank for rank, pair in enumerate(draw(st.permutations(sorted(set(pairs)))))}


@given(st.text("abc", max_size=40), merge_lists())
def test_merge_takes_the_lowest_rank_then_the_leftmost(word: str, ranks: dict[tuple[str, str], int]) -> None:
    assert merge(word, ranks) == naive_merge(word, ranks)


@pytest.mark.parametrize("length", range(1, 12))
def test_merge_of_a_run_of_equal_letters(length: int) -> None:
    ranks = {("a", "a"): 0, ("aa", "aa"): 1, ("aa", "a"): 2}
    assert merge("a" * length, ranks) == naive_merge("a" * length, ranks)


def test_merge_undoes_nothing_when_a_neighbour_was_taken() -> None:
    assert merge("abc", {("b", "c"): 0, ("a", "b"): 1}) == ["a", "bc"]


def test_byte_alphabet_is_one_printable_character_a_byte() -> None:
    assert len(set(ALPHABET)) == 256
    assert all(character.isprintable() and not character.isspace() for character in ALPHABET)
    assert "".join(ALPHABET[byte] for byte in b" \n\t\0A~\x7f\xa0\xad\xff") == "ĠĊĉĀA~ġłŃÿ"


@given(texts())
def test_pre_tokens_are_the_matches_of_the_pattern(text: str) -> None:
    pieces = list(pre_tokens(text))
    assert "".join(pieces) == text
    assert pieces == PATTERN.findall(text)


@pytest.mark.parametrize(("text", "pieces"), [
    ("it's WE'RE 'ſo", ["it", "'s", " WE", "'RE", " '", "ſo"]),
    ("x'ſo", ["x", "'ſ", "o"]),
    ("a1234", ["a", "1", "2", "3", "4"]),
    ("   Title", ["  ", " Title"]),
    ("(x):\n\n  y", ["(x", "):\n\n", " ", " y"]),
    ("a \n \n  b", ["a", " \n \n", " ", " b"]),
    ("a\x1cb c\x85d", ["a", "\x1cb", " c", "\x85d"]),
    ("\x1c\x1c", ["\x1c\x1c"]),
    ("e\u0301t", ["e", "\u0301t"]),
    ("end  ", ["end", "  "]),
])  # fmt: skip
def test_pre_tokens_by_hand(text: str, pieces: list[str]) -> None:
    assert list(pre_tokens(text)) == pieces


def test_white_space_is_not_what_python_calls_space() -> None:
    differing = [chr(c) for c in range(0x110000) if chr(c).isspace() != is_space(chr(c))]
    assert differing == ["\x1c", "\x1d", "\x1e", "\x1f"]


@given(st.one_of(texts(), st.text("aeo\u0301\u0316\u0323\u0344\u0f71\u0f72\u0f73\u1100\u1161\u11a8\u212b")))
def test_nfc_is_that_of_the_standard_library(text: str) -> None:
    assert nfc(text) == unicodedata.normalize("NFC", text)


def test_the_libraries_disagree_on_few_marks_only() -> None:
    drifting = characters_the_tables_disagree_on()
    assert "\u0eba" in drifting  # a Lao mark of Unicode 12
    assert len(drifting) <= 250, "the docstring counts 98 marks in Python 3.11; newer Pythons know some more"
    assert not [c for c in drifting if unicodedata.category(c)[0] not in "LM"]


@given(texts(named=False))
def test_decode_gives_back_what_was_encoded(text: str) -> None:
    assert RAW.decode(RAW.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == unicodedata.normalize("NFC", text)


@given(prompts())
def test_control_ids_never_come_out_of_literal_text(prompt: Prompt) -> None:
    everything = Prompt(prompt.text, ((0, len(prompt.text)),))
    assert not set(VOCABULARY.ids_of_kind(CONTROL)) & set(TOKENIZER.encode(everything))
    assert TOKENIZER.encode(everything) == TOKENIZER.encode(prompt, special=False)


def test_named_tokens_leftmost_longest_and_before_everything_else() -> None:
    def spelled(prompt: Prompt | str, **options: bool) -> list[str]:
        ids = TOKENIZER.encode(prompt, **options)
        return [VOCABULARY.tokens[i] for i in ids if i > VOCABULARY.tokens.index("<|endoftext|>")]

    text = "2?<|im_end|>>"
    assert spelled(text) == ["<|im_end|>>"]
    assert spelled(text + ">>") == ["<|im_end|>>", ">>"]
    assert spelled(text, special=False) == ["<|im_"]  # user-defined tokens always count
    assert spelled(Prompt(text, ((12, 14),))) == ["<|im_end|>"]  # the longer one reaches into the literal
    assert spelled(Prompt(text, ((4, 5),))) == ["<|im_", ">>"]
    assert spelled(Prompt(text, ((5, 5),))) == ["<|im_end|>>"]  # an empty range holds nothing
    assert spelled("e\u0301|") == ["e\u0301|"]  # before NFC
    assert spelled("[PAD0]") == []
    assert spelled("x<|im_end|>") == ["x<|"]


def test_bos_is_put_once() -> None:
    bos = VOCABULARY.bos_id
    plain = TOKENIZER.encode("a")
    assert TOKENIZER.encode("a", bos=True) == [bos, *plain]
    assert TOKENIZER.encode("<|endoftext|>a", bos=True) == [bos, *plain]
    assert TOKENIZER.encode("", bos=True) == [bos]
    wanted = Tokenizer(replace(VOCABULARY, add_bos=True))
    assert wanted.encode("a") == [bos, *plain]
    assert wanted.encode("a", bos=False) == plain
    with pytest.raises(InputError, match="BOS"):
        Tokenizer(replace(VOCABULARY, bos_id=None)).encode("a", bos=True)


@given(st.lists(st.integers(0, len(VOCABULARY) - 1)), st.booleans())
def test_streaming_equals_decoding(ids: list[int], special: bool) -> None:
    stream = TOKENIZER.stream(special=special)
    text = "".join(map(stream.push, ids)) + stream.flush()
    assert text == TOKENIZER.decode(ids, special=special)


def test_streaming_holds_back_half_a_character() -> None:
    first, *rest = (VOCABULARY.tokens.index(ALPHABET[byte]) for byte in "猫".encode())
    stream = TOKENIZER.stream()
    assert [stream.push(first), *map(stream.push, rest)] == ["", "", "猫"]
    assert stream.push(first) == ""
    assert stream.push(VOCABULARY.tokens.index("a")) == "\ufffda"
    assert (stream.push(first), stream.flush(), stream.flush()) == ("", "\ufffd", "")


def test_decode_shows_or_drops_control_tokens() -> None:
    ids = TOKENIZER.encode("a<|im_end|><tool_call>")
    assert TOKENIZER.decode(ids) == "a<|im_end|><tool_call>"
    assert TOKENIZER.decode(ids, special=False) == "a<tool_call>"
    assert TOKENIZER.bytes_of(IM_END) == b"<|im_end|>"


@pytest.mark.parametrize("bad", [-1, len(VOCABULARY), 2**70, None, "a", 1.0])
def test_bad_ids_are_refused(bad: int) -> None:
    with pytest.raises(InputError):
        TOKENIZER.decode([0, bad])
    with pytest.raises(InputError):
        TOKENIZER.bytes_of(bad)
    with pytest.raises(InputError):
        TOKENIZER.stream().push(bad)


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match=r"character 3: .*U\+D800"):
        TOKENIZER.encode("abc\ud800d")


def broken(**changes: object) -> Vocabulary:
    return replace(VOCABULARY, **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("vocabulary", "message"), [
    (broken(pre="llama-bpe"), "llama-bpe"),
    (broken(tokens=["??" if t == "Ġ" else t for t in VOCABULARY.tokens]), "0x20"),
    (broken(tokens=["a" if t == "b" else t for t in VOCABULARY.tokens]), "'a'"),
    (broken(merges=["a b c"]), "b c"),
    (broken(merges=["ab"]), "ab"),
    (broken(merges=["a <|im_end|>"]), "im_end"),
])  # fmt: skip
def test_a_vocabulary_that_does_not_fit_together_is_refused(vocabulary: Vocabulary, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Tokenizer(vocabulary)


def test_a_token_outside_the_byte_alphabet_is_refused_when_shown() -> None:
    odd = broken(tokens=[*VOCABULARY.tokens, "日"], kinds=[*VOCABULARY.kinds, VOCABULARY.kinds[0]])
    with pytest.raises(ModelError, match="日"):
        Tokenizer(odd).decode([len(VOCABULARY)])


def test_of_a_merge_listed_twice_the_first_counts() -> None:
    twice = broken(merges=[*VOCABULARY.merges, VOCABULARY.merges[0]])
    text = mixed_text(500)
    assert Tokenizer(twice).encode(text) == TOKENIZER.encode(text)


def test_marks_in_a_bad_order_do_not_hang() -> None:
    began = time.process_time()
    assert nfc("q" + "\u0301\u0316" * 50_000) == "q" + "\u0316" * 50_000 + "\u0301" * 50_000
    assert time.process_time() - began < 3  # unicodedata.normalize alone takes 15 s


@pytest.mark.parametrize("text", ["a" * 20_000, " " * 20_000, "क" * 7_000, "a" + "\u0301\u0316" * 10_000])
def test_long_pre_tokens_do_not_hang(text: str) -> None:
    began = time.process_time()
    ids = TOKENIZER.encode(text)
    assert time.process_time() - began < 2  # the naive loops take minutes
    assert TOKENIZER.decode(ids) == nfc(text)


def test_text_of_every_kind_survives() -> None:
    text = mixed_text(20_000, seed=7)
    assert RAW.decode(RAW.encode(text)) == text
