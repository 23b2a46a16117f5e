"""What a container says about the Qwen2 model in it, in the terms of this project and no longer in its own.

Each format has a module that reads this record out of its metadata (``from_gguf.py``, ...). What they share is
here: the doubts that apply to any file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assay.formats.containers.base import TensorInfo
from assay.formats.containers.cursor import shown, shown_number
from assay.formats.contract.config import Config
from assay.formats.contract.vocabulary import CONTROL, Vocabulary
from assay.formats.errors import ModelError

ARCHITECTURE = "qwen2"
END_SPELLINGS = ("<|endoftext|>", "<|im_end|>")
"""Control tokens that end a Qwen2 turn or text; base and chat files each name only one of them as eos."""
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "n_layers": (1, 1 << 10), "hidden_size": (1, 1 << 16), "n_heads": (1, 1 << 10), "n_kv_heads": (1, 1 << 10),
    "head_dim": (1, 1 << 10), "ffn_size": (1, 1 << 20), "n_vocab": (1, 1 << 24), "context_length": (1, 1 << 24),
    "rope_theta": (1.0, 1e12), "rms_norm_eps": (1e-12, 1e-2),
}  # fmt: skip
"""By the names of ``Config``: the range that any real model keeps to."""


@dataclass(frozen=True)
class Qwen2:
    """A Qwen2 model as its file states it, its tensors not yet held against the config."""

    name: str
    config: Config
    vocabulary: Vocabulary
    chat_template: str | None
    tensors: Mapping[str, TensorInfo]
    """By the names of ``contract.config.tensor_shapes``; a tensor that has none there keeps the file's name."""
    warnings: tuple[str, ...] = ()
    """What the file leaves to be concluded, one line each."""


def demand_plausible(field: str, value: float, key: str, where: str) -> None:
    """Raise ModelError unless ``value``, which the file calls ``key``, can be the ``field`` of a Config."""
    low, high = PLAUSIBLE[field]
    if not low <= value <= high:  # nor is NaN; an integer of JSON may be larger than any float
        given = f"{value:g}" if isinstance(value, float) else shown_number(value)
        raise ModelError(f"{key} = {given} is outside {low:g}..{high:g}", where=where,
                         remedy="No Qwen2 model has such a value; the file is damaged")  # fmt: skip


def demand_heads(config: Config, where: str, *, head_dim_stated: bool) -> None:
    """Raise ModelError unless the heads of ``config`` divide what they must."""
    rules = {
        f"{config.n_kv_heads} key/value heads do not divide {config.n_heads} heads": config.n_heads % config.n_kv_heads,
        f"{config.n_heads} heads do not divide hidden size {config.hidden_size}":
            not head_dim_stated and config.hidden_size % config.n_heads,
        f"head_dim {config.head_dim} is odd, so it has no rotation pairs": config.head_dim % 2,
    }  # fmt: skip
    for complaint, broken in rules.items():
        if broken:
            raise ModelError(complaint, where=where, remedy="Assay does not run such a model")


def checked_vocabulary(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], *, pre: str, add_bos: bool,
                       special: Mapping[str, int | None], n_rows: int, where: str) -> Vocabulary:  # fmt: skip
    """The vocabulary of a file, its parts held against one another.

    ``special`` has the ids of bos and of all that end a text, by the file's keys (``bos_token_id``, ``eos_token_id``,
    ...); ``n_rows`` is the number of embedding rows, which may exceed that of tokens.

    Raises ModelError for lengths that do not fit one another, for duplicate tokens and ids outside the vocabulary.
    """

    def refuse(complaint: str) -> ModelError:
        return ModelError(complaint, where=where, remedy="Text could not be encoded reliably with this file")

    if not 0 < len(tokens) <= n_rows:
        raise refuse(f"{len(tokens)} tokens do not fit the {n_rows} embedding rows")
    if len(kinds) != len(tokens):
        raise refuse(f"{len(kinds)} token types for {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise refuse(f"{len(tokens) - len(ids)} tokens occur twice")
    if bad := [m for m in merges if m.count(" ") != 1 or m[0] == " " or m[-1] == " "]:
        raise refuse(f"merge {shown(bad[0])} is not a pair of tokens")
    for key, value in special.items():
        if value is not None and not 0 <= value < len(tokens):
            raise refuse(f"{key} {shown_number(value)} is outside the vocabulary of {len(tokens)}")
    ends = {value for key, value in special.items() if key != "bos_token_id"}
    ends |= {ids[s] for s in END_SPELLINGS if s in ids and kinds[ids[s]] == CONTROL}
    return Vocabulary(tokens=tokens, kinds=kinds, merges=merges, pre=pre, add_bos=add_bos,
                      bos_id=special.get("bos_token_id"), eos_id=special.get("eos_token_id"),
                      end_ids=frozenset(i for i in ends if i is not None))  # fmt: skip
