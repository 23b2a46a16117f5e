"""The vocabulary as a model file states it: token strings, their kinds, and the merge list.

Both tokenizers start from this record and share nothing else. Token strings are written in the byte-level
alphabet of GPT-2 (a printable character for each of the 256 bytes), exactly as the file stores them; turning
text into ids and back is the business of ``reference/tokenizer.py`` and ``accel/tokenizer.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Token kinds, as GGUF numbers them (``tokenizer.ggml.token_type``).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

UNDEFINED = "<undefined {}>"
"""How an UNUSED id is read: it stands for no text. Its name (``[PAD151665]``) is a filler, a converter's or ours."""
DAMAGED_VOCABULARY = "The vocabulary is damaged; fetch the file again, or convert it again from the original"
"""What to do about tokens or merges that do not fit together."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file says about tokens. Token id = index into ``tokens``."""

    tokens: Sequence[str]
    """[n_vocab] token strings; NORMAL ones in the byte-level alphabet, others as plain text."""
    kinds: Sequence[int]
    """[n_vocab] one of NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE."""
    merges: Sequence[str]
    """Byte-pair merges, best first, each ``"left right"`` in the byte-level alphabet."""
    pre: str
    """Name of the pre-tokeniser, e.g. ``"qwen2"``."""
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    """Whether an encoded raw prompt starts with ``bos_id``."""
    end_ids: frozenset[int]
    """Every id that ends a generation: eos, end of turn, end of text, as named by the file."""

    def __len__(self) -> int:
        return len(self.tokens)

    def text_of(self, token_id: int | None) -> str:
        """The token's string as stored, or "" for None."""
        return "" if token_id is None else self.tokens[token_id]

    @property
    def control_tokens(self) -> list[str]:
        """Spellings of all CONTROL tokens, which content must never be able to write."""
        return [self.tokens[i] for i in self.ids_of_kind(CONTROL)]

    def ids_of_kind(self, *kinds: int) -> list[int]:
        """Ids of all tokens of the given kinds, ascending."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]
