"""APR metadata: one JSON object, its keys known by many names.

Every writer of these files has its own name for the same number, and some write it twice. So a key is asked for by its
canonical name, and looked for under all of them; ``null`` is the same as absent, and two values that differ are an
error, never a choice. (Upstream's own reader met a null beside an alias, gave up on the object, and went on with
defaults: C-APR-MERGE-RUNNABLE.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from assay.formats.containers.cursor import shown
from assay.formats.containers.strict_json import parse_object
from assay.formats.errors import FormatError

MAX_METADATA = 16 << 20
ALIASES = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "num_heads": ("n_heads", "num_attention_heads", "n_head"),
    "num_kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
    "tokenizer.model": ("tokenizer.model_type",),
    "tokenizer.chat_template": ("chat_template",),
}
SHADOWED = frozenset({
    "architecture", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "intermediate_size",
    "max_position_embeddings", "rope_theta", "rms_norm_eps", "rope_type",
})  # fmt: skip
"""Keys of which an import from GGUF writes a second copy under ``model.``."""

T = TypeVar("T")


class Required:
    """Marks an accessor's key as one the file must have."""


REQUIRED = Required()


class AprMetadata(Mapping[str, Any]):
    """The JSON object as a mapping, and accessors that know the aliases and check the type.

    Every accessor raises FormatError: ``missing-key`` if no name of the key has a value and no default is given,
    ``bad-value`` if a value is of another type, or two names of the key have different ones.
    """

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self._values, self._path = values, path

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def names_of(self, key: str) -> tuple[str, ...]:
        """Every name under which the file has a value for ``key`` that is not null."""
        names = (key, *ALIASES.get(key, ()), *((f"model.{key}",) if key in SHADOWED else ()))
        return tuple(name for name in names if self._values.get(name) is not None)

    def string(self, key: str, default: T | Required = REQUIRED) -> str | T:
        return self._found(key, default, "a string", lambda v: isinstance(v, str))

    def integer(self, key: str, default: T | Required = REQUIRED) -> int | T:
        return self._found(key, default, "an integer", is_integer)

    def floating(self, key: str, default: T | Required = REQUIRED) -> float | T:
        """A number; names agree if they do in f32, the type in which most writers hold it."""
        value = self._found(key, default, "a number that a float can hold", is_float, same_f32)
        return float(value) if is_float(value) else value

    def boolean(self, key: str, default: T | Required = REQUIRED) -> bool | T:
        return self._found(key, default, "true or false", lambda v: isinstance(v, bool))

    def strings(self, key: str, default: T | Required = REQUIRED) -> list[str] | T:
        return self._found(key, default, "an array of strings", lambda v: is_list_of(v, {str}))

    def integers(self, key: str, default: T | Required = REQUIRED) -> list[int] | T:
        return self._found(key, default, "an array of integers", lambda v: is_list_of(v, {int}))

    def table(self, key: str, default: T | Required = REQUIRED) -> dict[str, Any] | T:
        return self._found(key, default, "an object", lambda v: isinstance(v, dict))

    def description(self, key: str, warnings: list[str]) -> str | None:
        """Text that only describes the model; None if there is none, or, said in ``warnings``, something else."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            warnings.append(f"{shown(key)} is not text but {kind_of(value)}: it is ignored")
            return None
        return value

    def fail(self, key: str, detail: str, code: str = "bad-value") -> FormatError:
        """The error to raise for the value of ``key``."""
        return FormatError(code, detail, path=self._path, field=f"metadata key {shown(key)}",
                           remedy="Convert the model again with a current converter.")  # fmt: skip

    def _found(self, key: str, default: Any, wanted: str, fits: Any, same: Any = None) -> Any:
        names = self.names_of(key)
        if not names:
            if default is REQUIRED:
                raise self.fail(key, "the file does not have this key", "missing-key")
            return default
        values = [self._values[name] for name in names]
        for name, value in zip(names, values, strict=True):
            if not fits(value):
                raise self.fail(name, f"the value is {kind_of(value)}, but must be {wanted}")
            if not (same or (lambda a, b: a == b))(value, values[0]):
                raise self.fail(name, f"it is {shown(str(value))}, but {shown(names[0])} is {shown(str(values[0]))}")
        return values[0]


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_float(value: Any) -> bool:
    """A number; an integer may be too large for any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def same_f32(a: float, b: float) -> bool:
    """Whether two numbers round to the same f32."""
    with np.errstate(over="ignore"):
        return a == b or bool(np.float32(a) == np.float32(b))


def is_list_of(value: Any, kinds: set[type]) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= kinds


def kind_of(value: Any) -> str:
    """What a JSON value is, for an error message."""
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def parse(raw: bytes, path: Path, offset: int) -> AprMetadata:
    """The metadata section as a mapping; of a key that occurs twice, the last value counts.

    Raises FormatError bad-metadata, whatever is wrong with it: never a default in place of what could not be read.
    """
    return AprMetadata(parse_object(raw, path, "metadata", offset=offset, code="bad-metadata", last_wins=True), path)
