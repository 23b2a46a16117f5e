"""Conversion between GGUF, APR and Hugging Face folders: nothing lost that is not named, and nothing half written.

    census = convert("model.gguf", "model.apr")
    census = convert("model-q5_0.gguf", "model.apr", treatment="F32")

Tensors go over byte for byte where the target has their type (``formats/conversion/plan.py``); metadata in the target's
own terms (``model_card.py``), and what it has no terms for under a key of ours (``sidecar.py``), so that
GGUF to APR to GGUF gives the same file, byte for byte. The target is written under another name, opened again,
compared with the source (``formats/conversion/census.py``), and gets its name only if they agree.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.formats.containers.apr import COLUMN_MAJOR, KNOWN_FLAGS, REFUSED_FLAGS, ROW_MAJOR, SIGNED, Apr
from assay.formats.containers.apr_writer import write_apr
from assay.formats.containers.base import Container, Stored
from assay.formats.containers.gguf import GGUF
from assay.formats.containers.gguf_writer import VERSIONS, write_gguf
from assay.formats.containers.hf_folder import TEMPLATE, TOKENIZER, HFFolder
from assay.formats.containers.opening import open_container
from assay.formats.containers.safetensors_writer import write_shards
from assay.formats.contract.arguments import checked
from assay.formats.contract.config import tensor_shapes
from assay.formats.conversion import census, sidecar
from assay.formats.conversion.model_card import (
    FORMATS,
    Facts,
    apr_of,
    as_stated_in,
    differences,
    facts_of,
    gguf_of,
    hf_of,
)
from assay.formats.conversion.plan import EXACT, SAME, Planned, canonical_names, plan
from assay.formats.errors import FormatError, InputError, ModelError
from assay.formats.model_file import check_tensors, described, tensor_of
from assay.formats.qwen2.description import Qwen2
from assay.formats.qwen2.tensor_names import hf_name
from assay.formats.system.atomic_file import cannot_write, demand_apart, demand_free, place, replacing, unfinished
from assay.formats.system.atomic_folder import demand_replaceable, place_folder
from assay.formats.system.progress import Progress, quiet

TYPE_KEYS = ("general.file_type", "torch_dtype", "dtype")
"""Keys that state the types of tensors: not kept where a treatment changes those."""
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
FLAGS = KNOWN_FLAGS & ~(COLUMN_MAJOR | SIGNED | ROW_MAJOR) & ~sum(REFUSED_FLAGS)
"""Flags of an APR file that still hold for its contents written anew."""
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Opened:
    """A file, the model in it, and what it says beyond that."""

    container: Container
    model: Qwen2
    facts: Facts
    own: Mapping[str, Any]
    """Metadata without sidecars."""
    sidecars: Mapping[str, sidecar.Sidecar]

    @property
    def matrices(self) -> list[str]:
        """Types of its matrices."""
        return [info.type.name for info in self.model.tensors.values() if len(info.shape) > 1]


@checked
def convert(source: str | Path, target: str | Path, *, to: str | None = None, treatment: str | None = None,
            every: bool = False, force: bool = False, shard_bytes: int | None = SHARD_BYTES,
            progress: Progress = quiet) -> dict[str, Any]:  # fmt: skip
    """Convert a model and return the census, ready for JSON.

    ``to`` is ``"gguf"``, ``"apr"`` or ``"hf"``; None: by the name of ``target``. ``treatment`` and ``every`` are those
    of :func:`assay.formats.conversion.plan.plan`; ``shard_bytes`` cuts the weights of a folder (None: never).

    Raises InputError for a request that cannot be carried out (see there, and :func:`atomic_file.replacing`),
    FormatError and ModelError as :func:`open_model`, and ModelError if the target's format cannot
    state what the source says about text or numbers, or if what was written is not what was read.
    """
    begun = time.perf_counter()
    source, target = Path(source), Path(target)
    form = to or format_of(target)
    demand_distinct_places(source, target)
    demand_vacant(target, form, force=force)
    before = opened(source)
    demand_apart(target, before.container.parts)
    before.container.verify(progress)
    written = unfinished(target)
    try:
        planned = write(before, written, form, treatment, every, shard_bytes, progress)
        demand_strict(written)
        record = compared(before, opened(written), planned, progress)
        record["target"]["path"] = str(target)
        demand_vacant(target, form, force=force)
        (place_folder if form == "hf" else place)(written, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        discard(written)
    return {**record, "treatment": treatment, "seconds": round(time.perf_counter() - begun, 3)}


def opened(path: Path) -> Opened:
    """Open a file or folder and check that it holds a whole Qwen2 model."""
    container = open_container(path)
    model = described(container)
    tensors = {name: tensor_of(container, info, name) for name, info in model.tensors.items()}
    check_tensors(tensors, model.config, where=str(path))
    own, sidecars = sidecar.own_metadata(container)
    return Opened(container, model, facts_of(container, model), own, sidecars)


def format_of(target: Path) -> str:
    """The format that a name asks for. Raises InputError where it asks for none."""
    if target.suffix.lower() in (".gguf", ".apr"):
        return target.suffix.lower()[1:]
    if target.suffix == "" or target.is_dir():
        return "hf"
    raise InputError(f"the name {target.name!a} does not say which format is wanted", where=str(target),
                     remedy=f"End it in .gguf or .apr, name a folder, or give --to {' | '.join(FORMATS)}")  # fmt: skip


def demand_distinct_places(source: Path, target: Path) -> None:
    """Raise InputError if reading the one would be writing the other, or the target is a symbolic link."""
    if target.is_symlink():
        raise InputError("the target is a symbolic link", where=str(target),
                         remedy="Name the file itself, so that it is clear what is replaced")  # fmt: skip
    files = [source, *(source.iterdir() if source.is_dir() else ())]
    demand_apart(target, files)
    if target.is_dir() and any(target.resolve() in file.resolve().parents for file in files if file.exists()):
        raise InputError("the source lies in the folder that would be replaced", where=str(target),
                         remedy="Give another name")  # fmt: skip


def demand_vacant(target: Path, form: str, *, force: bool) -> None:
    """Raise InputError if the target may not be written, before any work is done."""
    if form == "hf":
        demand_replaceable(target, force=force)
    else:
        demand_free(target, force=force)
    if not target.parent.is_dir():
        raise InputError("there is no such folder", where=str(target.parent), remedy="Create it first")


def derived(form: str, facts: Facts, types: list[str], *, style: Mapping[str, bool] | None = None,
            copied_output: bool = False) -> dict[str, Any]:  # fmt: skip
    """Metadata of a file of format ``form`` that states just ``facts``."""
    if form == "gguf":
        return dict(gguf_of(facts, types))
    if form == "apr":
        return apr_of(facts, copied_output=copied_output)
    style = style or {}
    return hf_of(facts, types, merges_as_pairs=bool(style.get("merges_as_pairs", True)),
                 template_file=bool(style.get("template_file", False)))  # fmt: skip


def style_of(before: Opened) -> dict[str, bool]:
    """How a folder writes what can be written in two ways; {} if as usual, or if it is not a folder."""
    if not isinstance(before.container, HFFolder):
        return {}
    merges = before.own[TOKENIZER]["model"]["merges"]
    style = {"merges_as_pairs": not merges or isinstance(merges[0], list), "template_file": TEMPLATE in before.own}
    return {} if style == {"merges_as_pairs": True, "template_file": False} else style


def usual_names(form: str, before: Opened, *, copied_output: bool) -> list[str]:
    """Tensor names of a ``form`` file in the order in which it lists them."""
    names = [name for name in tensor_shapes(before.model.config) if name in before.model.tensors]
    if form == "gguf":
        return names
    return sorted(map(hf_name, [*names, OUTPUT] if copied_output else names))


def sidecar_of(before: Opened, target: str, planned: Sequence[Planned]) -> sidecar.Sidecar | None:
    """What a ``target`` file has to keep of the source, beyond the facts; None if nothing."""
    form = before.container.format
    copied = before.model.config.tied and any(hf_name(OUTPUT) == name for name in before.container.tensors)
    usual = derived(form, as_stated_in(before.facts, target), before.matrices, style=style_of(before),
                    copied_output=copied)  # fmt: skip
    own = without_types(before.own, usual) if treats(planned) else before.own
    keep: dict[str, Any] = {"metadata": sidecar.difference(own, usual), "style": style_of(before)}
    names = list(before.container.tensors)
    if names != usual_names(form, before, copied_output=form == "apr" and before.model.config.tied):
        keep["tensors"] = names
    keep["dtypes"] = {p.source.name: p.source.type.name for p in planned
                      if len(p.source.shape) < 2 and p.type.name == "F32" != p.source.type.name}  # fmt: skip
    if isinstance(before.container, Apr):
        keep["flags"] = before.container.header.flags & FLAGS
    if isinstance(before.container, GGUF) and before.container.version != VERSIONS[-1]:
        keep["version"] = before.container.version
    return {key: value for key, value in keep.items() if value} or None


def treats(planned: Sequence[Planned]) -> bool:
    """Whether a matrix changes its type."""
    return any(p.promise != SAME and len(p.source.shape) > 1 for p in planned)


def carried_on(before: Opened, form: str, target: str, planned: Sequence[Planned]) -> sidecar.Sidecar | None:
    """A sidecar of format ``form`` that the source has already, for a ``target`` file, which may state fewer facts."""
    keep = dict(before.sidecars[form])
    if "metadata" not in keep:
        return keep or None

    def usual(facts: Facts) -> dict[str, Any]:
        return derived(form, facts, before.matrices, style=keep.get("style"))

    whole = sidecar.restored(usual(before.facts), keep["metadata"])
    if treats(planned):
        whole = without_types(whole, usual(before.facts))
    difference = sidecar.difference(whole, usual(as_stated_in(before.facts, target)))
    rest = {key: value for key, value in keep.items() if key != "metadata"}
    return ({"metadata": difference} if difference else {}) | rest or None


def without_types(own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata in which the types of tensors are as they follow from the tensors."""
    result = {}
    for key, value in own.items():
        if isinstance(value, dict) and key == "config.json":
            value = without_types(value, usual.get(key, {}))
        result[key] = usual[key] if key in TYPE_KEYS and key in usual else value
    return result


def write(before: Opened, path: Path, form: str, treatment: str | None, every: bool, shard_bytes: int | None,
          progress: Progress) -> list[Planned]:  # fmt: skip
    """Write the target under a name of its own."""
    same_form = form == before.container.format
    keep = dict(before.sidecars.get(form) or {})
    names = sidecar.names_of(keep)
    planned = plan(before.container, before.model, form, treatment=treatment, every=every,
                   dtypes=sidecar.dtypes_of(keep), names=canonical_names(names))  # fmt: skip
    others = {name: carried_on(before, name, form, planned) for name in before.sidecars}
    if own_keep := sidecar_of(before, form, planned):
        others[before.container.format] = own_keep
        if same_form:
            keep, names = own_keep, sidecar.names_of(own_keep)
    others = {name: kept for name, kept in others.items() if kept}
    copied = form == "apr" and before.model.config.tied and (not names or OUTPUT in canonical_names(names))
    types = [p.type.name for p in planned if len(p.source.shape) > 1]
    metadata = sidecar.restored(derived(form, before.facts, types, style=keep.get("style"), copied_output=copied),
                                 keep.get("metadata"))  # fmt: skip
    if form == "gguf":
        sidecar.demand_values(metadata)
    metadata = sidecar.with_sidecars(metadata, others, form)
    order = {name: i for i, name in enumerate(names or usual_names(form, before, copied_output=copied))}
    tensors = [p.stored() for p in sorted(planned, key=lambda p: order.get(p.renamed, len(order)))]
    if form == "gguf":
        write_gguf(path, metadata, tensors, version=sidecar.version_of(keep), progress=progress)
    elif form == "apr":
        if copied:
            tensors += copy_of_embedding(planned, canonical_names(names))
        flags = keep.get("flags", 0)
        write_apr(path, metadata, tensors, flags=flags & FLAGS if isinstance(flags, int) else 0, progress=progress)
    else:
        write_folder(path, metadata, tensors, shard_bytes, progress)
    return planned


def copy_of_embedding(planned: Sequence[Planned], names: Mapping[str, str]) -> list[Stored]:
    """The output matrix that readers of APR expect of a model that has none."""
    embedding = next(p for p in planned if p.name == EMBEDDING).stored()
    return [Stored(names.get(OUTPUT, hf_name(OUTPUT)), embedding.type, embedding.shape, embedding.read)]


def write_folder(path: Path, files: Mapping[str, Any], tensors: Sequence[Stored], shard_bytes: int | None,
                 progress: Progress) -> None:  # fmt: skip
    """Write a Hugging Face folder; small files first."""
    path.mkdir()
    for name, values in files.items():
        with replacing(path / name) as file:
            text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, indent=2) + "\n"
            file.write(text.encode())
    write_shards(path, tensors, {"format": "pt"}, shard_bytes=shard_bytes, progress=progress)


def compared(before: Opened, after: Opened, planned: Sequence[Planned], progress: Progress) -> dict[str, Any]:
    """The census of the two files. Raises ModelError if the target is not what was promised."""
    source, target = before.container, after.container
    tensors = census.tensor_census(source, before.model.tensors, target, after.model.tensors, progress)
    promised = {p.name: p.promise for p in planned}
    allowed = {name: {SAME, promise, *([EXACT] if promise != SAME else [])} for name, promise in promised.items()}
    if bad := [f"{r['name']}: {r['verdict']}" for r in tensors if r["verdict"] not in allowed.get(r["name"], ())]:
        raise broken(bad)
    if differing := differences(before.facts, after.facts):
        raise ModelError(f"a {target.format} file cannot state the source's {', '.join(differing)}",
                         where=str(source.path), remedy="Nothing was written; convert to another format")  # fmt: skip
    return {
        "source": side(before),
        "target": side(after),
        "tensors": tensors,
        "metadata": metadata_compared(before, after) + census.left_behind(source),
    }


def side(opened: Opened) -> dict[str, Any]:
    """What the census says of one file."""
    container = opened.container
    return {
        "path": str(container.path),
        "format": container.format,
        "bytes": container.size,
        "stored_tensors": len(container.tensors),
        "types": census.types_of(opened.model.tensors.values()),
        "vocabulary": census.vocabulary_census(opened.facts),
    }


def metadata_compared(before: Opened, after: Opened) -> list[dict[str, str]]:
    """What became of the source's metadata, seen from the target: what it would give on the way back."""
    source, target = before.container.format, after.container.format
    if source == target:
        back = usual = after.own
    else:
        keep = after.sidecars.get(source) or {}
        copied = source == "apr" and before.model.config.tied
        usual = derived(source, after.facts, after.matrices, style=keep.get("style"), copied_output=copied)
        back = sidecar.restored(usual, keep.get("metadata"))
    reasons = dict.fromkeys([*TYPE_KEYS, *(f"config.json: {key}" for key in TYPE_KEYS)],
                            "the tensors' types are others")  # fmt: skip
    return census.metadata_census(before.own, back, usual, source, target, reasons)


def demand_strict(path: Path) -> None:
    """Raise ModelError unless the strict reader takes the file, its checksum included. Odd metadata is the source's."""
    try:
        open_container(path, strict=True)
    except FormatError as error:
        if error.code not in ("bad-key", "bad-value", "bad-alignment"):
            raise broken([str(error)]) from error


def broken(findings: Sequence[str]) -> ModelError:
    return ModelError(f"what was written is not what was read: {'; '.join(findings[:4])}", where="convert",
                      remedy="Nothing was kept. Check that no other program writes to these files")  # fmt: skip


def discard(path: Path) -> None:
    """Remove what was not finished; after success there is nothing by this name."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
