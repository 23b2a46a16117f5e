"""What a file says beyond the facts of its model, kept in a file of another format, so that the way back is exact.

A GGUF file may say who made it, how its template is called and with which type it stores its context length; APR has
no keys for that, and a folder has others. A conversion puts such things under one key of its own, ``assay.gguf`` (or
``assay.apr``, ``assay.hf``), of the target:

    GGUF    a string, JSON         APR    a top-level key         folder    a key of config.json

    {"metadata": {"keys": ["general.architecture",                      follows from the facts, so only named
                           {"key": "tokenizer.ggml.tokens", "first": 9},   the first 9 of what follows from the facts
                           {"key": "general.license", "type": "string", "value": "mit"},   has to be kept
                           {"key": "general.tags", "type": "array of string", "hex": ["ff"]},   is not text
                           {"key": "config.json", "inner": {"keys": [...], "absent": [...]}}],   an object, key by key
                  "absent": ["general.type"]},     follows from the facts, but the file does not say it
     "tensors": ["output.weight", ...],            their names in the file's order, unless that is the usual one
     "dtypes": {"model.norm.weight": "BF16"},      types of tensors that were widened, exactly
     "style": {"merges_as_pairs": false}, "flags": 1536,
     "version": 2}                                 of the GGUF file, unless it is 3

The order of keys is kept, too. Where everything follows from the facts there is no sidecar. On the way back the facts
are those of the file at hand: a template changed in between stays changed, only what is kept here is restored. A
sidecar is read from an untrusted file: what is restored is held against the facts afterwards, like anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from assay.formats.containers.apr import Apr
from assay.formats.containers.base import Container
from assay.formats.containers.cursor import shown
from assay.formats.containers.gguf import GGUF
from assay.formats.containers.gguf_metadata import DTYPES, Value, typed
from assay.formats.containers.gguf_writer import VERSIONS
from assay.formats.containers.hf_folder import CONFIG, HFFolder
from assay.formats.containers.strict_json import parse_object
from assay.formats.conversion.model_card import FORMATS
from assay.formats.errors import AssayError, ModelError

PREFIX = "assay."
KEYS = frozenset(f"{PREFIX}{name}" for name in FORMATS)
Sidecar = dict[str, Any]


def difference(original: Mapping[str, Any], derived: Mapping[str, Any]) -> dict[str, Any] | None:
    """What has to be kept to make ``original`` of ``derived``; None if they are the same, order included.

    Values are JSON, or GGUF's :class:`Value`.
    """
    keys = [key if key in derived and alike(value, derived[key]) else entry(key, value, derived.get(key))
            for key, value in original.items()]  # fmt: skip
    absent = [key for key in derived if key not in original]
    if not absent and keys == list(derived):
        return None
    return {"keys": keys, "absent": absent}


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same to the bit: 1 is neither 1.0 nor true, and the order of keys counts."""
    if isinstance(a, Value) and isinstance(b, Value):
        return (a.type, a.is_array) == (b.type, b.is_array) and raw_items(a) == raw_items(b)
    return type(a) is type(b) and json.dumps(a) == json.dumps(b)


def raw_items(value: Value) -> Any:
    return value.items if isinstance(value.items, list) else value.items.tobytes()


def entry(key: str, value: Any, derived: Any) -> dict[str, Any]:
    """How one value is kept."""
    if isinstance(value, dict) and isinstance(derived, dict):
        return {"key": key, "inner": difference(value, derived)}
    if isinstance(value, Value):
        if isinstance(derived, Value) and alike(value, first_of(derived, len(value.items))):
            return {"key": key, "first": len(value.items)}
        return {"key": key, "type": f"array of {value.type}" if value.is_array else value.type, **kept(value)}
    return {"key": key, "value": value}


def first_of(value: Value, n: int) -> Value:
    return Value(value.type, value.is_array, value.items[:n]) if value.is_array else value


def kept(value: Value) -> dict[str, Any]:
    """``{"value": ...}``, or ``{"hex": ...}`` for what JSON cannot say: text that is not UTF-8, NaN, a bool of 2."""
    try:
        if isinstance(value.items, list):
            items: list[Any] = [item.decode() for item in value.items]
        elif value.type == "bool":
            items = [{0: False, 1: True}[item] for item in value.items.tolist()]
        else:
            items = value.items.tolist()
        json.dumps(items, allow_nan=False)
    except (UnicodeDecodeError, KeyError, ValueError):
        return {"hex": [item.hex() for item in value.items] if isinstance(value.items, list)
                else value.items.tobytes().hex()}  # fmt: skip
    return {"value": items if value.is_array else items[0]}


def restored(derived: Mapping[str, Any], difference: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inverse of :func:`difference`; keys that are new among the facts since then come last.

    Raises ModelError for a sidecar that is damaged.
    """
    if difference is None:
        return dict(derived)
    try:
        keys, absent = difference["keys"], set(difference["absent"])
        values: dict[str, Any] = {}
        for item in keys:
            key = item if isinstance(item, str) else item["key"]
            if key in values or not isinstance(key, str):
                damaged(f"the key {shown(str(key))} is kept twice, or is not text")
            if isinstance(item, str):
                if key in derived:  # otherwise it is a fact no more
                    values[key] = derived[key]
            else:
                values[key] = value_of(item, derived.get(key))
        return values | {key: value for key, value in derived.items() if key not in absent and key not in values}
    except AssayError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        damaged(f"{type(error).__name__}: {error}")


def value_of(item: Mapping[str, Any], derived: Any) -> Any:
    """The value that one entry keeps."""
    if "inner" in item:
        return restored(derived if isinstance(derived, dict) else {}, item["inner"])
    if "first" in item:
        return first_of(derived, item["first"])
    if "type" not in item:
        return item["value"]
    if "hex" not in item:
        return typed(item["type"], item["value"])
    name = item["type"].removeprefix("array of ")
    if isinstance(item["hex"], list):
        return Value(name, name != item["type"], [bytes.fromhex(text) for text in item["hex"]])
    return Value(name, name != item["type"], np.frombuffer(bytes.fromhex(item["hex"]), DTYPES[name]))


def damaged(detail: str) -> NoReturn:
    raise ModelError(f"the sidecar, what was kept of another format, is damaged: {shown(detail)}", where=f"{PREFIX}*",
                     remedy="Convert the original again")  # fmt: skip


def own_metadata(container: Container) -> tuple[dict[str, Any], dict[str, Sidecar]]:
    """(metadata without sidecars: GGUF's as Value, others' as JSON; sidecars by format)."""
    if isinstance(container, GGUF):
        values: dict[str, Any] = dict(container.metadata.stored)
        found = {key: parse_object(container.metadata.string(key).encode(), container.path, key)
                 for key in values if key in KEYS}  # fmt: skip
    elif isinstance(container, Apr):
        values = dict(container.metadata)
        found = {key: values[key] for key in values if key in KEYS}
    elif isinstance(container, HFFolder):
        config = container.metadata[CONFIG]
        found = {key: config[key] for key in config if key in KEYS}
        values = {**container.metadata, CONFIG: {key: config[key] for key in config if key not in found}}
        values = {key: value for key, value in values.items() if not key.endswith(".safetensors")}
    else:
        values, found = dict(container.metadata), {}
    if not all(isinstance(sidecar, dict) for sidecar in found.values()):
        damaged("it is not an object")
    own = {key: value for key, value in values.items() if key not in found}
    return own, {key.removeprefix(PREFIX): sidecar for key, sidecar in found.items()}


def demand_values(metadata: Mapping[str, Any]) -> None:
    """Raise ModelError unless every value of what is to be GGUF metadata has a type."""
    if odd := [key for key, value in metadata.items() if not isinstance(value, Value)]:
        damaged(f"{odd[0]} has no type")


def with_sidecars(metadata: Mapping[str, Any], sidecars: Mapping[str, Sidecar], target: str) -> dict[str, Any]:
    """``metadata`` of a ``target`` file with the sidecars of other formats in it."""
    keys = {f"{PREFIX}{name}": sidecar for name, sidecar in sorted(sidecars.items()) if name != target}
    if target == "gguf":
        return {**metadata, **{key: typed("string", json.dumps(value, ensure_ascii=False, separators=(",", ":")))
                               for key, value in keys.items()}}  # fmt: skip
    if target == "hf":
        return {**metadata, CONFIG: {**metadata[CONFIG], **keys}}
    return {**metadata, **keys}


def names_of(keep: Mapping[str, Any]) -> list[str]:
    """The file's tensor names that were kept, in its order; [] if they are the usual ones."""
    names = keep.get("tensors", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        damaged("tensors is not a list of names")
    return names


def version_of(keep: Mapping[str, Any]) -> int:
    """The version of the GGUF file that was kept."""
    version = keep.get("version", VERSIONS[-1])
    if type(version) is not int or version not in VERSIONS:
        damaged(f"there is no GGUF version {version!r}")
    return version


def dtypes_of(keep: Mapping[str, Any]) -> dict[str, str]:
    """Types that vectors had before they were widened."""
    dtypes = keep.get("dtypes", {})
    if not isinstance(dtypes, dict) or not all(isinstance(kind, str) for kind in dtypes.values()):
        damaged("dtypes is not an object of names")
    return dtypes
