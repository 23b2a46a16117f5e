"""What was carried from one model file to another, counted by opening both: the target as any reader would.

Nothing here knows what the conversion meant to do. Tensors are compared by the SHA-256 of their bytes, and by their
decoded values where the bytes differ; metadata by restoring the source's from the target, which is what a conversion
back would write; vocabulary, merges and template as the two files give them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from assay.formats.containers.base import Container, TensorInfo
from assay.formats.containers.hf_folder import HFFolder
from assay.formats.conversion.model_card import FORMATS, NAMES, Facts
from assay.formats.conversion.plan import EXACT, ROUNDED, SAME, decoded_pieces, raw_pieces
from assay.formats.conversion.sidecar import alike
from assay.formats.qwen2.no_effect import repeats_rotation
from assay.formats.system.progress import Progress, quiet

CARRIED, ASIDE, CHANGED, DROPPED = "carried", "kept aside", "changed", "dropped"
OPTIONAL_FILES = {
    "vocab.json": "tokenizer.json has it", "merges.txt": "tokenizer.json has it",
    "added_tokens.json": "tokenizer.json has it", "special_tokens_map.json": "tokenizer_config.json has it",
}  # fmt: skip
Tensors = Mapping[str, TensorInfo]


def tensor_census(source: Container, tensors: Tensors, target: Container, written: Tensors,
                  progress: Progress = quiet) -> list[dict[str, Any]]:  # fmt: skip
    """One record a tensor of either file, by our names: both sides' name, type, shape, bytes, SHA-256, and a verdict.

    The verdict is ``same bytes`` (type and shape, too), ``same values`` (decoded to f32, all equal), ``rounded`` (with
    the largest and the root mean square error, the latter relative to the values'), ``missing`` or ``added``.
    """
    names = dict.fromkeys([*tensors, *written])
    total = sum(info.nbytes for info in tensors.values())
    done, records = 0, []
    for name in names:
        a, b = tensors.get(name), written.get(name)
        record: dict[str, Any] = {"name": name, **sides(source, a, target, b)}
        if a is None or b is None:
            record["verdict"] = "added" if a is None else "missing"
        elif record["source"] | {"name": ""} == record["target"] | {"name": ""}:
            record["verdict"] = SAME
        else:
            record |= values_compared(source, a, target, b)
        records.append(record)
        done += a.nbytes if a else 0
        progress(done, total, "comparing")
    return records


def sides(source: Container, a: TensorInfo | None, target: Container, b: TensorInfo | None) -> dict[str, Any]:
    """``source`` and ``target`` of a record; the two are hashed at the same time."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda side: None if side[1] is None else side_of(*side), ((source, a), (target, b)))
    return {"source": first, "target": second}


def side_of(container: Container, info: TensorInfo) -> dict[str, Any]:
    digest = hashlib.sha256()
    for piece in raw_pieces(container, info.name):
        digest.update(piece.data)
    return {"name": info.name, "type": info.type.name, "shape": list(info.shape), "bytes": info.nbytes,
            "sha256": digest.hexdigest()}  # fmt: skip


def values_compared(source: Container, a: TensorInfo, target: Container, b: TensorInfo) -> dict[str, Any]:
    """The verdict on two tensors whose bytes differ."""
    if a.shape != b.shape:
        return {"verdict": "other shape"}
    largest, squares, reference = 0.0, 0.0, 0.0
    for x, y in zip(decoded_pieces(source, a), decoded_pieces(target, b), strict=True):
        if not np.array_equal(x, y):
            error = x.astype(np.float64) - y
            largest = max(largest, float(np.abs(error).max()))
            squares += float((error * error).sum())
        reference += float(np.einsum("ij,ij->", x, x, dtype=np.float64))
    if largest == 0:
        return {"verdict": EXACT}
    return {"verdict": ROUNDED, "max_abs_error": largest, "rms_relative_error": (squares / reference) ** 0.5}


def types_of(tensors: Iterable[TensorInfo]) -> dict[str, dict[str, int]]:
    """Number of tensors and of bytes by type, most bytes first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for info in tensors:
        counts[info.type.name] += 1
        sizes[info.type.name] += info.nbytes
    return {kind: {"tensors": counts[kind], "bytes": size} for kind, size in sizes.most_common()}


def metadata_census(original: Mapping[str, Any], back: Mapping[str, Any], derived: Mapping[str, Any], source: str,
                    target: str, reasons: Mapping[str, str]) -> list[dict[str, str]]:  # fmt: skip
    """What became of each key of the source.

    ``original``: the source's metadata; ``back``: what a conversion of the target back into the source's format would
    write; ``derived``: that without what a sidecar adds; ``reasons`` why a key could not be carried.
    """
    records, returned, stated = [], flat(back), flat(derived)
    for key, value in flat(original).items():
        restored = returned.get(key)
        if key in returned and alike(value, restored):
            fate = CARRIED if source == target or alike(value, stated.get(key)) else ASIDE
        else:
            fate = CHANGED if key in returned else DROPPED
        where = counterpart(key, source, target) if fate == CARRIED else f"assay.{source}" if fate == ASIDE else ""
        reason = "" if fate in (CARRIED, ASIDE) else reasons.get(key, "the target's format has no place for it")
        records.append({"key": key, "fate": fate, "where": where, "reason": reason})
    return records


def flat(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's keys as ``config.json: hidden_size``; other formats' are flat already."""
    if not any(key.endswith(".json") for key in metadata):
        return dict(metadata)
    keys: dict[str, Any] = {}
    for file, values in metadata.items():
        inner = {f"{file}: {key}": value for key, value in values.items()} if isinstance(values, dict) else {}
        keys |= inner or {file: values}
    return keys


def counterpart(key: str, source: str, target: str) -> str:
    """Under which key the target's format states what ``key`` does; "" if it goes without saying."""
    a, b = FORMATS.index(source), FORMATS.index(target)
    if a == b:
        return key
    return ", ".join(dict.fromkeys(names[b] for names in NAMES.values() if names[a] == key and names[b]))


def vocabulary_census(facts: Facts) -> dict[str, Any]:
    """Sizes and hashes of what text is encoded with; tokens that only fill up rows are counted apart."""
    vocabulary = facts.vocabulary
    kinds = Counter(vocabulary.kinds)
    return {
        "tokens": len(vocabulary),
        "kinds": {str(kind): n for kind, n in sorted(kinds.items())},
        "merges": len(vocabulary.merges),
        "tokens_sha256": sha256_of_lines(vocabulary.tokens),
        "merges_sha256": sha256_of_lines(vocabulary.merges),
        "template_characters": len(facts.chat_template or ""),
        "template_sha256": None if facts.chat_template is None else sha256_of_lines([facts.chat_template]),
        "ends_at": sorted(vocabulary.end_ids),
    }


def sha256_of_lines(lines: Iterable[str]) -> str:
    """SHA-256 of strings as JSON, so that no two lists have one text."""
    return hashlib.sha256(json.dumps(list(lines), ensure_ascii=False).encode()).hexdigest()


def left_behind(source: Container) -> list[dict[str, str]]:
    """What was not even read as metadata: tensors that repeat a number of it; of a folder also other files, and notes
    inside the safetensors files."""
    left = {f"tensor {name}": "it repeats what rope_theta says" for name in source.tensors if repeats_rotation(name)}
    left |= files_left_behind(source) if isinstance(source, HFFolder) else {}
    return [{"key": key, "fate": DROPPED, "where": "", "reason": reason} for key, reason in left.items()]


def files_left_behind(folder: HFFolder) -> dict[str, str]:
    """Files and notes of a folder that were not read, and why."""
    read = {path.name for path in folder.files}
    left = {path.name: OPTIONAL_FILES.get(path.name, "Assay does not read it")
            for path in sorted(folder.path.iterdir()) if path.name not in read}  # fmt: skip
    for file in folder.shards:
        notes: Mapping[str, str] = folder.metadata.get(file, {})
        left |= {f"{file}: {key}": "a folder written by Assay says format: pt" for key, value in notes.items()
                 if (key, value) != ("format", "pt")}  # fmt: skip
    return left
