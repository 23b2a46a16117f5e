r"""tokenizer.json: the vocabulary of a Hugging Face folder, read with doubt, and written.

    model             {"type": "BPE", "vocab": {token: id}, "merges": ["left right", ...] or [[left, right], ...]}
    added_tokens      [{"id", "content", "special", "normalized", "lstrip", "rstrip", "single_word"}, ...]
    normalizer        NFC
    pre_tokenizer     split by Qwen2's regular expression, then the byte-level alphabet
    post_processor    nothing but offsets;  decoder   the byte-level alphabet

The file can describe any tokenizer, and Assay has one. So every part is held against Qwen2's, and what would encode
text otherwise is refused: an option ignored is a prompt the model never saw.

Token kinds are not in the file. As llama.cpp's converter concludes them, so that either container of a model gives
one vocabulary: what is in ``model.vocab`` alone is NORMAL; an added token is CONTROL if it is ``special`` or spelled
``<|...|>`` (Qwen2.5's ``<|fim_prefix|>`` is not marked special, and must not be writable by content), otherwise
USER_DEFINED; a row of the embedding that has no token is ``[PAD151665]``, UNUSED.

Source: huggingface/tokenizers (serialisation); tokenizer.json of Qwen2.5; ggml-org/llama.cpp, conversion of
vocabularies. Normalising is not part of a Vocabulary: an engine does it unless told otherwise (``--no-nfc``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.formats.containers.cursor import shown
from assay.formats.contract.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from assay.formats.errors import ModelError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE = "qwen2"
"""What GGUF calls the pre-tokeniser with this pattern."""
SAME_PATTERN = frozenset({PRE, "deepseek-r1-qwen"})
"""All of GGUF's names for it."""
ALSO_SPECIAL = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
FRAME: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]},
    "post_processor": BYTE_LEVEL,
    "decoder": BYTE_LEVEL,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
              "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": {}, "merges": []},
}  # fmt: skip
"""The file of a Qwen2 tokenizer without its tokens, in the order in which the library writes it."""


class Reader:
    """One tokenizer.json; ``warnings`` collects what had to be concluded."""

    def __init__(self, values: Mapping[str, Any], path: Path, warnings: list[str]) -> None:
        self.values, self.path, self.warnings = values, path, warnings

    def refuse(self, field: str, complaint: str) -> ModelError:
        return ModelError(complaint, where=f"{self.path}: {field}",
                          remedy="Assay has Qwen2's tokenizer only, and would encode text differently")  # fmt: skip

    def vocabulary(self, n_rows: int) -> tuple[list[str], list[int], list[str]]:
        """(tokens, kinds, merges) of a model whose embedding has ``n_rows`` rows. Raises ModelError."""
        self.demand_pipeline()
        model = self.demand_model()
        tokens, kinds = self.numbered(model["vocab"], n_rows)
        return tokens, kinds, self.merges(model)

    def demand_pipeline(self) -> None:
        """Everything but the tokens must be Qwen2's own."""
        values = self.values
        normalizer = values.get("normalizer")
        if normalizer in (None, {"type": "Sequence", "normalizers": []}):
            self.warnings.append("tokenizer.json normalises nothing; --no-nfc does the same, the default is NFC")
        elif normalizer not in ({"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}):
            raise self.refuse("normalizer", "it is not NFC")
        if steps_of(values.get("pre_tokenizer"), "pretokenizers") != [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            raise self.refuse("pre_tokenizer", "it does not cut text as Qwen2 does")
        for field, inner in (("post_processor", "processors"), ("decoder", "decoders")):
            steps = steps_of(values.get(field), inner)
            if any(step.get("type") != "ByteLevel" for step in steps) or (field == "decoder" and not steps):
                raise self.refuse(field, "it is not the byte-level one")

    def demand_model(self) -> Mapping[str, Any]:
        """``model``, its options Qwen2's."""
        model = self.values.get("model")
        if not isinstance(model, dict) or model.get("type") != "BPE":
            raise self.refuse("model.type", "the tokenizer is not byte-level BPE")
        for field, usual in FRAME["model"].items():
            if field not in ("type", "vocab", "merges") and (model.get(field) or None) != (usual or None):
                raise self.refuse(f"model.{field}", f"{shown(str(model.get(field)))} is not what Qwen2 has")
        if not isinstance(model.get("vocab"), dict):
            raise self.refuse("model.vocab", "there is no vocabulary")
        return model

    def numbered(self, vocab: Mapping[str, Any], n_rows: int) -> tuple[list[str], list[int]]:
        """(tokens, kinds), both [n_rows]: rows that have no token are filled up."""
        tokens: list[str | None] = [None] * n_rows
        kinds = [UNUSED] * n_rows

        def put(field: str, token_id: Any, token: Any, kind: int) -> None:
            if type(token_id) is not int or not isinstance(token, str) or not 0 <= token_id < n_rows:
                raise self.refuse(field, f"{shown(str(token))} has the id {shown(str(token_id))}, which is not one of "
                                  f"the embedding's {n_rows} rows")  # fmt: skip
            if tokens[token_id] not in (None, token):
                raise self.refuse(field, f"id {token_id} is {shown(str(tokens[token_id]))} and {shown(token)}")
            tokens[token_id], kinds[token_id] = token, kind

        for token, token_id in vocab.items():
            put("model.vocab", token_id, token, NORMAL)
        for added in self.added_tokens():
            content = added["content"]
            if vocab.get(content, added.get("id")) != added.get("id"):
                raise self.refuse("added_tokens", f"{shown(content)} has two ids")
            special = added.get("special") is True or looks_special(content)
            put("added_tokens", added.get("id"), content, CONTROL if special else USER_DEFINED)
        return [pad_token(i) if token is None else token for i, token in enumerate(tokens)], kinds

    def added_tokens(self) -> list[dict[str, Any]]:
        """``added_tokens``, matched as Assay matches them: anywhere, and nothing around them is swallowed."""
        added = self.values.get("added_tokens", [])
        if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
            raise self.refuse("added_tokens", "it is not a list of objects")
        for token in added:
            content = token.get("content")
            if not isinstance(content, str) or not content:
                raise self.refuse("added_tokens", "a token has no content")
            if any(token.get(option) for option in ("single_word", "lstrip", "rstrip")):
                raise self.refuse("added_tokens", f"{shown(content)} is matched together with what surrounds it")
            if token.get("normalized") and not content.isascii():  # NFC leaves ASCII as it is
                raise self.refuse("added_tokens", f"{shown(content)} is matched after normalising")
        return added

    def merges(self, model: Mapping[str, Any]) -> list[str]:
        """Merges as ``"left right"``, whichever way the file writes them."""
        merges = model.get("merges")
        if not isinstance(merges, list):
            raise self.refuse("model.merges", "there are no merges")
        if all(isinstance(merge, str) for merge in merges):
            return merges
        pairs = [merge for merge in merges if isinstance(merge, list) and len(merge) == 2
                 and all(isinstance(part, str) and " " not in part for part in merge)]  # fmt: skip
        if len(pairs) != len(merges):
            raise self.refuse("model.merges", "a merge is not a pair of tokens")
        return [f"{left} {right}" for left, right in pairs]


def steps_of(value: Any, inner: str) -> list[dict[str, Any]]:
    """A step or a sequence of them, without ``trim_offsets``, which changes no id."""
    steps = value.get(inner) if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    if not isinstance(steps, list) or not all(isinstance(step, dict | None) for step in steps):
        return [{}]
    return [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps if step is not None]


def looks_special(token: str) -> bool:
    """Whether an added token is a control token by its spelling, as llama.cpp's converter has it."""
    return token in ALSO_SPECIAL or any(
        token.startswith(start) and token.endswith(end)
        for start, end in (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">")))  # fmt: skip


def pad_token(token_id: int) -> str:
    """The name of an embedding row that has no token."""
    return f"[PAD{token_id}]"


def padded(tokens: Sequence[str], kinds: Sequence[int], n_rows: int) -> tuple[list[str], list[int]]:
    """``tokens`` and ``kinds`` with a name for every row of the embedding."""
    extra = range(len(tokens), n_rows)
    return [*tokens, *map(pad_token, extra)], [*kinds, *[UNUSED] * len(extra)]


def tokenizer_json(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], *,
                   merges_as_pairs: bool = True) -> dict[str, Any]:  # fmt: skip
    """The file for a vocabulary; the inverse of :meth:`Reader.vocabulary`, which fills up the rows again.

    Raises ModelError for a kind of token that the file cannot state.
    """
    vocab, added = {}, []
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == NORMAL:
            vocab[token] = i
        elif kind == CONTROL or (kind == USER_DEFINED and not looks_special(token)):
            added.append(added_token(i, token, special=kind == CONTROL))
        elif kind != UNUSED or token != pad_token(i):
            raise ModelError(f"token {i}, {shown(token)}, is of kind {kind}, which tokenizer.json cannot state",
                             where="vocabulary", remedy="Convert to GGUF or APR instead")  # fmt: skip
    pairs = [merge.split(" ", 1) for merge in merges] if merges_as_pairs else list(merges)
    return {**FRAME, "added_tokens": added, "model": {**FRAME["model"], "vocab": vocab, "merges": pairs}}


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    """One entry of ``added_tokens``."""
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}  # fmt: skip
