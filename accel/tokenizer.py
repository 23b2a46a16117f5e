r"""Text to token ids and back at full speed: the ``tokenizers`` library, named tokens found here.

The library gets plain text only. Control and user-defined tokens are found in this file, because the library
cannot be told that ``<|im_end|>`` inside a user's message is text (a ``literal`` range of the prompt).

Where this twin and ``reference/tokenizer.py`` part, the Unicode tables are the reason. In tokenizers 0.23,
letters and numbers are those of Unicode 16 and NFC is that of Unicode 9; the reference takes both from its
Python (3.11: Unicode 14). So code points unassigned in Unicode 14 may be split otherwise, and combining marks
newer than Unicode 9, typed out of canonical order, may be encoded in the order they were typed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

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

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"qwen2": QWEN2, "deepseek-r1-qwen": QWEN2}
"""Pre-tokeniser pattern by its name in the file, ``tokenizer.ggml.pre``."""

MASK = "\udfff"
"""Stands for user text while control tokens are looked for. A surrogate: no token can contain it."""


def _byte_table() -> dict[str, int]:
    """Byte by byte-level character. The library's alphabet: 188 Latin-1 characters stand for themselves, the
    others, in order, for the bytes that are left, in order."""
    alphabet = sorted(ByteLevel.alphabet())
    table = {character: ord(character) for character in alphabet if ord(character) < 256}
    left = sorted(set(range(256)) - set(table.values()))
    return table | dict(zip(alphabet[len(table) :], left, strict=True))


BYTES = _byte_table()


def _pipeline(vocabulary: Vocabulary, nfc: bool) -> Pipeline:
    """The library's normaliser, pre-tokeniser and BPE model over the NORMAL tokens.

    ModelError where the library would stay silent (it drops a character without a token) or fail its own way.
    """
    if vocabulary.pre not in PATTERNS:
        raise ModelError(f"the pre-tokeniser {vocabulary.pre!r} is unknown", where="tokenizer.ggml.pre",
                         remedy=f"Assay knows {', '.join(PATTERNS)}.")
    normal = vocabulary.ids_of_kind(NORMAL)
    tokens = {vocabulary.tokens[i]: i for i in normal}
    if len(tokens) != len(normal):
        twice = next(vocabulary.tokens[i] for i in normal if tokens[vocabulary.tokens[i]] != i)
        raise ModelError(f"two tokens are spelled {twice!r}", where="vocabulary",
                         remedy=DAMAGED_VOCABULARY)
    if missing := [byte for character, byte in BYTES.items() if character not in tokens]:
        raise ModelError(f"no token stands for byte 0x{min(missing):02X}", where="vocabulary",
                         remedy="A byte-level BPE vocabulary has a token for each of the 256 bytes.")
    merges = []
    for line in dict.fromkeys(vocabulary.merges):  # of a merge listed twice the first counts
        left, _, right = line.partition(" ")
        if left not in tokens or right not in tokens or left + right not in tokens:
            raise ModelError(f"merge {line!r} needs a token that does not exist", where="vocabulary",
                             remedy=DAMAGED_VOCABULARY)
        merges.append((left, right))
    pipeline = Pipeline(BPE(vocab=tokens, merges=merges))
    if nfc:
        pipeline.normalizer = NFC()
    split = Split(Regex(PATTERNS[vocabulary.pre]), "isolated")
    pipeline.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    return pipeline


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of ``names``, the longest first; for none of them, a pattern that never matches."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class Tokenizer:
    """Text to ids and back, for one vocabulary; reads and answers exactly as the reference's.

    ModelError if the file names an unknown pre-tokeniser, or its tokens and merges do not fit together.
    """

    @checked
    def __init__(self, vocabulary: Vocabulary, *, nfc: bool = True) -> None:
        self.vocabulary = vocabulary
        self._pipeline = _pipeline(vocabulary, nfc)
        self._control = {vocabulary.tokens[i]: i for i in vocabulary.ids_of_kind(CONTROL)}
        self._user_defined = {vocabulary.tokens[i]: i for i in vocabulary.ids_of_kind(USER_DEFINED)}
        self._any_control, self._any_user_defined = _any_of(self._control), _any_of(self._user_defined)

    @checked
    def encode(self, prompt: Prompt | str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """Ids of a prompt.

        ``special``: whether the spelling of a control token means the token; never inside ``prompt.literal``.
        ``bos``: whether to begin with the BOS token; None is what the file says. It is never put twice.
        InputError for a lone surrogate, or if BOS is wanted and the vocabulary has none.
        """
        if isinstance(prompt, str):
            prompt = Prompt(prompt)
        text, ids, done = prompt.text, [], 0
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds a lone surrogate, U+{ord(text[error.start]):04X}",
                             where=f"prompt, character {error.start}",
                             remedy="Pass text that can be written as UTF-8.") from None
        for start, stop, token_id in self._named_tokens(prompt, special):
            ids += self._pipeline.encode(text[done:start], add_special_tokens=False).ids
            ids.append(token_id)
            done = stop
        ids += self._pipeline.encode(text[done:], add_special_tokens=False).ids
        if not (self.vocabulary.add_bos if bos is None else bos):
            return ids
        bos_id = self.vocabulary.bos_id
        if bos_id is None:
            raise InputError("a BOS token was asked for, but the vocabulary names none", where="prompt",
                             remedy="Encode with bos=False.")
        return ids if ids and ids[0] == bos_id else [bos_id, *ids]

    @checked
    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD. ``special=False`` drops control tokens.

        An UNUSED id, to which the file gives no text, is read as ``<undefined 151665>``.
        """
        return b"".join([self._shown(token_id, special) for token_id in ids]).decode("utf-8", "replace")

    @checked
    def stream(self, *, special: bool = True) -> Stream:
        """A decoder that takes one id at a time."""
        return Stream(self, special)

    @checked
    def bytes_of(self, token_id: int) -> bytes:
        """The bytes one token stands for. InputError for an id outside the vocabulary."""
        return self._shown(token_id, special=True)

    def _shown(self, token_id: int, special: bool) -> bytes:
        if not 0 <= token_id < len(self.vocabulary):
            raise InputError(f"token id {token_id} is outside the vocabulary of {len(self.vocabulary)}", where="ids",
                             remedy="Decode with the tokenizer that encoded")
        token, kind = self.vocabulary.tokens[token_id], self.vocabulary.kinds[token_id]
        if kind == UNUSED:
            return UNDEFINED.format(token_id).encode()
        if kind != NORMAL:
            return b"" if kind == CONTROL and not special else token.encode()
        try:
            return bytes([BYTES[character] for character in token])
        except KeyError as error:
            raise ModelError(f"{error.args[0]!r} in token {token_id} ({token!r}) stands for no byte",
                             where="vocabulary", remedy=DAMAGED_VOCABULARY) from None

    def _named_tokens(self, prompt: Prompt, special: bool) -> Iterator[tuple[int, int, int]]:
        """``(start, stop, id)`` of each named token: leftmost, longest first.

        Control tokens are looked for in a copy of the text in which user content is masked.
        """
        text = prompt.text
        masked = _masked(prompt) if special else ""
        control, user_defined = self._any_control.search(masked), self._any_user_defined.search(text)
        while control or user_defined:
            found = min(filter(None, (control, user_defined)), key=lambda m: (m.start(), -m.end()))
            names = self._control if found is control else self._user_defined
            yield found.start(), found.end(), names[found[0]]
            if control and control.start() < found.end():
                control = self._any_control.search(masked, found.end())
            if user_defined and user_defined.start() < found.end():
                user_defined = self._any_user_defined.search(text, found.end())


def _masked(prompt: Prompt) -> str:
    """The prompt's text with every character of a literal range replaced by MASK; of the same length."""
    characters = list(prompt.text)
    for start, stop in prompt.literal:
        characters[start:stop] = MASK * len(characters[start:stop])
    return "".join(characters)


class Stream:
    """Decodes ids as they come, holding back the bytes of a character until it is whole."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @checked
    def push(self, token_id: int) -> str:
        """Text that became certain with this id, often empty in the middle of a character."""
        return self._utf8.decode(self._tokenizer._shown(token_id, self._special))

    def flush(self) -> str:
        """What is still held back: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", True)
