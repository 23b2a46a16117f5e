r"""Text to token ids and back, as Qwen2 does it: byte-level BPE, one step a function.

    text -> (named tokens | plain pieces); a piece -> NFC -> pre-tokens -> byte alphabet -> merges -> ids

*Named tokens* such as ``<|im_end|>`` are cut out first; what lies between is plain text. Plain text is
brought into normal form C, so that "é" has one spelling, and cut into *pre-tokens*: a word with the space
before it, a digit, a run of punctuation, a run of blanks. No token reaches over the edge of a pre-token. A
pre-token is then a string of bytes, each written as one printable character (the *byte alphabet*), and
*merges* glue neighbours together, best-ranked pair first, until no neighbouring pair is on the list. What is
left are tokens.

``pre_tokenizer.py`` cuts the pre-tokens. NFC is that of the interpreter's ``unicodedata``. The NFC of Hugging
Face ``tokenizers`` 0.23 knows Unicode 9: it does not sort 98 marks of newer scripts, nor compose U+11935
U+11930. The normal form of an assigned character never changes (Unicode's stability policy), so in this one
point the oracle keeps to the standard, not to the library.

GGUF stores no normaliser and llama.cpp applies none: compare with it under ``nfc=False``.

Sources: Sennrich et al. 2016 (BPE); Radford et al. 2019 (byte-level BPE); Unicode Standard Annex 15 (NFC);
``tokenizer.json`` of Qwen2.5 (normaliser).
"""

from __future__ import annotations

import codecs
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from unicodedata import combining, normalize

from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import (
    CONTROL,
    DAMAGED_VOCABULARY,
    NORMAL,
    UNDEFINED,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from assay.formats.errors import InputError, ModelError
from assay.reference.pre_tokenizer import PRE_TOKENISERS, pre_tokens

# ---- the byte alphabet ----------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The character that stands for each byte: [256] strings of one character.

    Printable bytes of Latin-1 (``!``..``~``, ``¡``..``¬``, ``®``..``ÿ``) stand for themselves. The other 68
    (controls, space, soft hyphen) take U+0100, U+0101, ... in order: space, for one, becomes ``Ġ``.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


ALPHABET = byte_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


# ---- normal form C --------------------------------------------------------------------------------


def nfc(text: str) -> str:
    """Normal form C of ``text``: decompose, put each run of combining marks in canonical order, compose.

    ``unicodedata.normalize`` alone would do, but it sorts marks by insertion: 100,000 of them in a bad order
    take it 15 s. On sorted marks it is linear, so they are sorted here (Annex 15, canonical ordering).
    """
    if text.isascii():
        return text
    decomposed = "".join(normalize("NFD", character) for character in text)
    runs = groupby(decomposed, key=lambda character: combining(character) > 0)
    ordered = (sorted(run, key=combining) if is_marks else run for is_marks, run in runs)
    return normalize("NFC", "".join(character for run in ordered for character in run))


# ---- merges ---------------------------------------------------------------------------------------


def merge(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of a pre-token in the byte alphabet; it begins as one symbol a byte.

    Of all neighbouring pairs on the list glue the one with the lowest rank, of equals the leftmost, until
    none is left. Pairs wait in a heap: looking through all each time is O(n^2), a hang for a long word.
    """
    symbol = list(word)  # symbol[i] begins at byte i; "" once it is glued to the one before
    begin = list(range(-1, len(word)))  # begin[j]: where the symbol that ends at byte j begins
    heap: list[tuple[int, int, str, str]] = []

    def offer(left: int) -> None:
        right = left + len(symbol[left])
        if left >= 0 and right < len(word) and (pair := (symbol[left], symbol[right])) in ranks:
            heapq.heappush(heap, (ranks[pair], left, *pair))

    for left in range(len(word)):
        offer(left)
    while heap:
        _, left, first, second = heapq.heappop(heap)
        right = left + len(first)
        if (symbol[left], symbol[right]) == (first, second):  # else one of them is part of another by now
            symbol[left], symbol[right], begin[right + len(second)] = first + second, "", left
            offer(begin[left])
            offer(left)
    return [text for text in symbol if text]


# ---- the tokenizer --------------------------------------------------------------------------------


def normal_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids of the tokens that BPE can produce. ModelError if two have one spelling or a byte has no token."""
    ids: dict[str, int] = {}
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind == NORMAL and ids.setdefault(token, token_id) != token_id:
            raise ModelError(f"tokens {ids[token]} and {token_id} are both spelled {token!r}", where="vocabulary",
                             remedy=DAMAGED_VOCABULARY)
    for byte, character in enumerate(ALPHABET):
        if character not in ids:
            raise ModelError(f"no token stands for byte 0x{byte:02X}", where="vocabulary",
                             remedy="A byte-level BPE vocabulary has a token for each of the 256 bytes.")
    return ids


def merge_ranks(merges: Sequence[str], ids: dict[str, int]) -> dict[tuple[str, str], int]:
    """Rank of each pair on the list, 0 the best; of one listed twice, the first. ModelError for a bad one."""
    ranks: dict[tuple[str, str], int] = {}
    for rank, line in enumerate(merges):
        left, _, right = line.partition(" ")
        for token in (left, right, left + right):
            if token not in ids:
                raise ModelError(f"merge {rank} ({line!r}) needs the token {token!r}, which does not exist",
                                 where="vocabulary", remedy=DAMAGED_VOCABULARY)
        ranks.setdefault((left, right), rank)
    return ranks


def require_utf8(text: str) -> None:
    """InputError if ``text`` cannot be written as UTF-8: it holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text holds a lone surrogate, U+{ord(text[error.start]):04X}",
                         where=f"prompt, character {error.start}",
                         remedy="Pass text that can be written as UTF-8.") from None


def overlaps(ranges: Iterable[tuple[int, int]], start: int, stop: int) -> bool:
    """Whether ``start..stop`` has a character in common with one of ``ranges``; an empty range has none."""
    return any(max(first, start) < min(last, stop) for first, last in ranges)


class Tokenizer:
    """Text to ids and back, for one vocabulary.

    ModelError if the file names an unknown pre-tokeniser, or its tokens and merges do not fit together.
    """

    @checked
    def __init__(self, vocabulary: Vocabulary, *, nfc: bool = True) -> None:
        if vocabulary.pre not in PRE_TOKENISERS:
            raise ModelError(f"the pre-tokeniser {vocabulary.pre!r} is unknown", where="tokenizer.ggml.pre",
                             remedy=f"Assay knows {', '.join(PRE_TOKENISERS)}.")
        self.vocabulary, self._nfc = vocabulary, nfc
        self._ids = normal_ids(vocabulary)
        self._ranks = merge_ranks(vocabulary.merges, self._ids)
        self._control = self._named(CONTROL)
        self._user_defined = self._named(USER_DEFINED)
        self._lengths = sorted({len(name) for name in self._control | self._user_defined}, reverse=True)
        self._bpe = lru_cache(maxsize=2**16)(self._pre_token_ids)  # words recur

    @checked
    def encode(self, prompt: Prompt | str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """Ids of a prompt.

        ``special``: whether the spelling of a control token means the token; never inside ``prompt.literal``.
        ``bos``: whether to begin with the BOS token; None is what the file says. It is never put twice.
        InputError for a lone surrogate, or if BOS is wanted and the vocabulary has none.
        """
        prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
        require_utf8(prompt.text)
        ids: list[int] = []
        done = 0
        for start, stop, token_id in self._named_tokens(prompt, special):
            ids += [*self._plain_ids(prompt.text[done:start]), token_id]
            done = stop
        ids += self._plain_ids(prompt.text[done:])
        wanted = self.vocabulary.add_bos if bos is None else bos
        return self._with_bos(ids) if wanted else ids

    @checked
    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD. ``special=False`` drops control tokens.

        An UNUSED id, to which the file gives no text, is read as ``<undefined 151665>``.
        """
        return b"".join(self._shown_bytes(token_id, special) for token_id in ids).decode(errors="replace")

    @checked
    def stream(self, *, special: bool = True) -> Stream:
        """A decoder that takes one id at a time."""
        return Stream(lambda token_id: self._shown_bytes(token_id, special))

    @checked
    def bytes_of(self, token_id: int) -> bytes:
        """The bytes one token stands for. InputError for an id outside the vocabulary."""
        if not 0 <= token_id < len(self.vocabulary):
            raise InputError(f"token id {token_id} is outside the vocabulary of {len(self.vocabulary)}", where="ids",
                             remedy="Decode with the tokenizer that encoded")
        token = self.vocabulary.tokens[token_id]
        if self.vocabulary.kinds[token_id] == UNUSED:
            return UNDEFINED.format(token_id).encode()
        if self.vocabulary.kinds[token_id] != NORMAL:
            return token.encode()
        try:
            return bytes(BYTE_OF[character] for character in token)
        except KeyError as error:
            raise ModelError(f"{error.args[0]!r} in token {token_id} ({token!r}) stands for no byte",
                             where="vocabulary", remedy=DAMAGED_VOCABULARY) from None

    def _named(self, kind: int) -> dict[str, int]:
        tokens = self.vocabulary.tokens
        return {tokens[i]: i for i in self.vocabulary.ids_of_kind(kind) if tokens[i]}

    def _named_tokens(self, prompt: Prompt, special: bool) -> Iterator[tuple[int, int, int]]:
        """``(start, stop, id)`` of each control or user-defined token: leftmost, longest first."""
        start = 0
        while start < len(prompt.text):
            matches = (self._match(prompt, start, length, special) for length in self._lengths)
            found = next((match for match in matches if match), None)
            if found:
                yield found
            start = found[1] if found else start + 1

    def _match(self, prompt: Prompt, start: int, length: int, special: bool) -> tuple[int, int, int] | None:
        """The named token of ``length`` characters at ``start``, if there is one and it counts here."""
        stop = start + length
        name = prompt.text[start:stop]
        if special and name in self._control and not overlaps(prompt.literal, start, stop):
            return start, stop, self._control[name]
        return (start, stop, self._user_defined[name]) if name in self._user_defined else None

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of text without named tokens: NFC, pre-tokens, BPE."""
        text = nfc(text) if self._nfc else text
        return [token_id for pre_token in pre_tokens(text) for token_id in self._bpe(pre_token)]

    def _pre_token_ids(self, pre_token: str) -> tuple[int, ...]:
        word = "".join(ALPHABET[byte] for byte in pre_token.encode())
        return tuple(self._ids[token] for token in merge(word, self._ranks))

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos_id = self.vocabulary.bos_id
        if bos_id is None:
            raise InputError("a BOS token was asked for, but the vocabulary names none", where="prompt",
                             remedy="Encode with bos=False.")
        return ids if ids[:1] == [bos_id] else [bos_id, *ids]

    def _shown_bytes(self, token_id: int, special: bool) -> bytes:
        shown = self.bytes_of(token_id)
        return shown if special or self.vocabulary.kinds[token_id] != CONTROL else b""


class Stream:
    """Decodes ids as they come, holding back the bytes of a character until it is whole."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @checked
    def push(self, token_id: int) -> str:
        """Text that became certain with this id, often empty in the middle of a character."""
        return self._decoder.decode(self._bytes_of(token_id))

    def flush(self) -> str:
        """What is still held back: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
