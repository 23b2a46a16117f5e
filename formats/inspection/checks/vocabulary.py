"""Checks on the vocabulary and the chat template: whether text can be encoded as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from assay.formats.contract.vocabulary import CONTROL, NORMAL, Vocabulary
from assay.formats.inspection.checks.check import Check, judged, skipped
from assay.formats.qwen2.description import Qwen2

MOST_PADDING = 1024
"""Rows of the embedding beyond the vocabulary: Qwen2.5 has 271 (151,936 for 151,665 tokens), the 7B 399."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_LIMITS = {
    "vocabulary.rows": f"0 .. {MOST_PADDING} rows without a token",
    "vocabulary.bytes": "256 byte tokens",
    "vocabulary.merges": "0 broken",
    "vocabulary.control": "CONTROL tokens",
    "vocabulary.end": ">= 1 end of turn or text, CONTROL",
    "chat.template": "present and known to the oracle",
}


def checks(qwen2: Qwen2 | None, knows_template: Callable[[str], bool] | None) -> Iterator[Check]:
    if qwen2 is None:
        for name, limit in _LIMITS.items():
            yield skipped(name, limit, "the file describes no Qwen2 model")
        return
    vocabulary = qwen2.vocabulary
    yield _rows(vocabulary, qwen2.config.n_vocab)
    yield _bytes(vocabulary)
    yield _merges(vocabulary)
    yield _control(vocabulary)
    plain = [f"{vocabulary.tokens[i]!r} is not CONTROL" for i in vocabulary.end_ids if vocabulary.kinds[i] != CONTROL]
    yield judged("vocabulary.end", len(vocabulary.end_ids), _LIMITS["vocabulary.end"],
                 "without one a generation never stops; as plain text a user could write it",
                 fail=[] if vocabulary.end_ids else ["no token ends a generation"], warn=plain)  # fmt: skip
    yield _template(qwen2.chat_template, knows_template)


def _rows(vocabulary: Vocabulary, n_rows: int) -> Check:
    padding = n_rows - len(vocabulary)
    bad = [f"{len(vocabulary)} tokens, {n_rows} embedding rows"]
    return judged("vocabulary.rows", padding, _LIMITS["vocabulary.rows"],
                  "rows are padded for speed (by 271 in Qwen2.5); more means another model's vocabulary",
                  fail=bad if padding < 0 else [], warn=bad if padding > MOST_PADDING else [])  # fmt: skip


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes: themselves where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def _bytes(vocabulary: Vocabulary) -> Check:
    known = set(vocabulary.tokens)
    missing = [repr(token) for token in byte_alphabet() if token not in known]
    return judged("vocabulary.bytes", 256 - len(missing), _LIMITS["vocabulary.bytes"],
                  "byte-level BPE starts from single bytes; text with a missing one cannot be encoded",
                  fail=missing)  # fmt: skip


def _merges(vocabulary: Vocabulary) -> Check:
    known = set(vocabulary.tokens)
    broken = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if absent := [part for part in (left, right, left + right) if part not in known]:
            broken.append(f"{merge!r}: no token {absent[0]!r}")
    twice = len(vocabulary.merges) - len(set(vocabulary.merges))
    longer = [i for i in vocabulary.ids_of_kind(NORMAL) if len(vocabulary.tokens[i]) > 1]
    if not vocabulary.merges and longer:
        broken.append(f"no merges for {len(longer)} tokens longer than a byte")
    return judged("vocabulary.merges", len(broken), _LIMITS["vocabulary.merges"],
                  "both halves and the result must be tokens, or the merge cannot be applied",
                  fail=broken, warn=[f"{twice} merges occur twice"] if twice else [])  # fmt: skip


def _control(vocabulary: Vocabulary) -> Check:
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    absent = [f"{token} is not a token" for token in SPECIAL if token not in ids]
    plain = [f"{token} is of kind {vocabulary.kinds[ids[token]]}" for token in SPECIAL
             if token in ids and vocabulary.kinds[ids[token]] != CONTROL]  # fmt: skip
    return judged("vocabulary.control", len(SPECIAL) - len(absent) - len(plain),
                  f"{len(SPECIAL)} {_LIMITS['vocabulary.control']}",
                  "ChatML is made of these; one of another kind is split into pieces, or can be written by a user",
                  fail=plain, warn=absent)  # fmt: skip


def _template(template: str | None, knows: Callable[[str], bool] | None) -> Check:
    limit = _LIMITS["chat.template"]
    if template is None:
        return judged("chat.template", "none", limit, "a base model has none; with it no chat is possible",
                      warn=["the file has no chat template"])  # fmt: skip
    if knows is None:
        return skipped("chat.template", limit, "nobody said which templates are known")
    known = knows(template)
    return judged("chat.template", "known" if known else "unknown", limit,
                  "only a template known by hash is rendered by both engines",
                  warn=[] if known else ["the oracle does not know it; accel runs it in its sandbox"])  # fmt: skip
