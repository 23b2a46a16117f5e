r"""Pre-tokens: the pieces over whose edges no token reaches, cut as Qwen2 cuts them, one alternative a function.

The pre-tokeniser is published as a regular expression. Its alternatives are the functions ``contraction`` ..
``spaces`` below, in this order::

    (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}
    | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+

Where readers of that expression differ, this file follows Hugging Face ``tokenizers`` (Oniguruma):

- ``(?i:'s)`` also matches ``'ſ``: U+017F folds to s. llama.cpp writes out ``[sS]``. No token of Qwen2.5 joins
  ſ to a neighbour, so there the ids are the same either way.
- ``\s`` is the property White_Space. Python's ``str.isspace`` adds U+001C..U+001F, which are symbols here.
- ``\p{L}`` and ``\p{N}`` come from the interpreter's ``unicodedata``: Unicode 14 in Python 3.11, where
  tokenizers 0.23 has 16. A letter or number newer than 14 (9,392 of them, U+1C89..U+323AF) is a symbol here.
  On every code point assigned in Unicode 14 the two agree. With Qwen2.5's merges only the Kaktovik numerals,
  U+1D2C0..U+1D2D3, were seen to change an id; llama.cpp sides with tokenizers.

Source: ``tokenizer.json`` of Qwen2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unicodedata import category

PRE_TOKENISERS = ("qwen2", "deepseek-r1-qwen")
"""Values of ``tokenizer.ggml.pre`` that stand for the pattern above."""

WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""The 25 characters with the Unicode property White_Space."""

CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")


# ---- what the classes of the pattern hold ---------------------------------------------------------


def is_letter(character: str) -> bool:
    r"""``\p{L}``: general category L*. Combining marks (M*) are not letters to Qwen2."""
    return category(character)[0] == "L"


def is_number(character: str) -> bool:
    r"""``\p{N}``: general category N*, which includes ½ and Ⅷ."""
    return category(character)[0] == "N"


def is_space(character: str) -> bool:
    r"""``\s``: the property White_Space."""
    return character in WHITE_SPACE


def is_line_break(character: str) -> bool:
    r"""``[\r\n]``."""
    return character in "\r\n"


def is_symbol(character: str) -> bool:
    r"""``[^\s\p{L}\p{N}]``: everything else, marks, controls and unassigned code points included."""
    return character not in WHITE_SPACE and category(character)[0] not in "LN"


def run_end(text: str, start: int, belongs: Callable[[str], bool]) -> int:
    """Where the longest run of characters that belong, beginning at ``start``, ends."""
    end = start
    while end < len(text) and belongs(text[end]):
        end += 1
    return end


# ---- the alternatives: each returns where its match ends, or ``start`` if there is none -----------


def contraction(text: str, start: int) -> int:
    """``(?i:'s|'t|'re|'ve|'m|'ll|'d)``: the tail of "it's", "we'RE"."""
    if text[start] == "'":
        for tail in CONTRACTIONS:
            end = start + 1 + len(tail)
            if text[start + 1 : end].casefold() == tail:
                return end
    return start


def word(text: str, start: int) -> int:
    r"""``[^\r\n\p{L}\p{N}]?\p{L}+``: letters, with at most one other character (often the space) before."""
    first = text[start]
    letters = start + (not (is_line_break(first) or is_letter(first) or is_number(first)))
    end = run_end(text, letters, is_letter)
    return end if end > letters else start


def number(text: str, start: int) -> int:
    r"""``\p{N}``: one digit a token."""
    return start + is_number(text[start])


def symbols(text: str, start: int) -> int:
    r"""`` ?[^\s\p{L}\p{N}]+[\r\n]*``: punctuation, with one space before and all line breaks after."""
    first = start + (text[start] == " ")
    end = run_end(text, first, is_symbol)
    return run_end(text, end, is_line_break) if end > first else start


def line_breaks(text: str, start: int) -> int:
    r"""``\s*[\r\n]+``: blanks up to and including the last line break among them."""
    end = run_end(text, start, is_space)
    while end > start and not is_line_break(text[end - 1]):
        end -= 1
    return end


def spaces(text: str, start: int) -> int:
    r"""``\s+(?!\S)|\s+``: blanks, the last one left for the word that follows, if they are two or more."""
    end = run_end(text, start, is_space)
    return end - 1 if end < len(text) and end - start > 1 else end


ALTERNATIVES = (contraction, word, number, symbols, line_breaks, spaces)


def pre_tokens(text: str) -> Iterator[str]:
    """Cut ``text`` up: at each point the first alternative that matches. Joined they are ``text``."""
    start = 0
    while start < len(text):
        ends = (alternative(text, start) for alternative in ALTERNATIVES)
        end = next(end for end in ends if end > start)
        yield text[start:end]
        start = end
