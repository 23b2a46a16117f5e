"""What is doubtful about a file though it can be run: known when it is opened, said by every command that uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from assay.formats.containers.cursor import shown
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import CONTROL, Vocabulary

CHATML = frozenset({"<|im_start|>", "<|im_end|>"})
"""What Qwen2's turns are made of."""
MARKER = re.compile(r"<\|[^<>|\s]{1,64}\|>|<\uff5c[^<>\uff5c\s]{1,64}\uff5c>")
NAMED_AT_MOST = 4
LEAST_THETA = 1e5
SHORT_CONTEXT = 4096


def doubts(config: Config, vocabulary: Vocabulary) -> Iterator[str]:
    """What makes any answer doubtful, a line each."""
    if not vocabulary.end_ids:
        yield "no token ends a text: an answer goes on until it is cut"
    if lost_theta(config):
        yield (f"rope_theta is {config.rope_theta:g} with a context of {config.context_length}: if it is a "
               "converter's default, answers are right for some tokens, and drift from there")  # fmt: skip


def lost_theta(config: Config) -> bool:
    """Whether ``rope_theta`` is one that converters put in where they lost the file's, and the context is long."""
    return config.rope_theta < LEAST_THETA and config.context_length > SHORT_CONTEXT


def chat_doubts(vocabulary: Vocabulary, chat_template: str | None) -> Iterator[str]:
    """What makes a chat doubtful, a line each: markers in the template that are not control tokens of the vocabulary.

    Such a marker reaches the model in pieces, or could be written by content: not what it was trained with. One that
    is not in the vocabulary at all may be meant as text, unless it is ChatML's.
    """
    markers = set(MARKER.findall(chat_template or ""))
    if not markers:
        return
    kinds = {token: vocabulary.kinds[i] for i, token in enumerate(vocabulary.tokens) if token in markers}
    found = [f"{shown(marker)} is not a control token (kind {kind})"
             for marker, kind in kinds.items() if kind != CONTROL]  # fmt: skip
    found += [f"{shown(marker)} is not a token, and is read in pieces" for marker in (CHATML & markers) - kinds.keys()]
    for culprit in sorted(found)[:NAMED_AT_MOST]:
        yield f"chats are in doubt: the template's {culprit}"
    if len(found) > NAMED_AT_MOST:
        yield f"chats are in doubt: {len(found) - NAMED_AT_MOST} more of the template's markers are not control tokens"
