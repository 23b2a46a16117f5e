"""How many tokens a text has at least, known without encoding it: 15 MB take half a minute to encode.

A token stands for at most as many bytes as the longest one does. Normal form C comes first, and may make a text
shorter: by no more than the bytes of the characters that it drops (the second of two that it composes) or spells
otherwise.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

from assay.formats.contract.vocabulary import NORMAL, Vocabulary

JAMO = frozenset(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
"""Hangul vowels and final consonants, which are composed by rule, not by a table."""


def least_tokens(text: str, vocabulary: Vocabulary) -> int:
    """No encoding of ``text`` has fewer tokens than this, normalised or not."""
    n_bytes = len(text.encode(errors="surrogatepass"))
    if not text.isascii():
        counts = Counter(text)
        n_bytes -= sum(counts[character] * len(character.encode()) for character in droppable() & counts.keys())
    return -(-n_bytes // longest(vocabulary))


def longest(vocabulary: Vocabulary) -> int:
    """Bytes that the longest token stands for; a normal one has a character for each."""
    sizes = (len(token) if kind == NORMAL else len(token.encode(errors="surrogatepass"))
             for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True))  # fmt: skip
    return max(1, *sizes)


@cache
def droppable() -> frozenset[str]:
    """The characters that normal form C may drop or spell otherwise."""
    found = set(JAMO)
    for character in map(chr, range(0x80, 0x110000)):
        parts = unicodedata.decomposition(character).split()
        if parts and not parts[0].startswith("<"):  # <compat> and the like are not the concern of form C
            found |= {chr(int(part, 16)) for part in parts[1:]}
            if not unicodedata.is_normalized("NFC", character):
                found.add(character)
    return frozenset(found)
