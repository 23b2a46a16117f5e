"""``assay inspect``: what a file says about itself, and whether it is a model that Assay can run."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import typer

from assay.commands import options, tables
from assay.formats import FormatError, ModelError, ModelFile
from assay.formats.containers.base import Container
from assay.formats.containers.gguf import GGUF
from assay.formats.inspection.byte_map import sections
from assay.formats.model_file import model_in
from assay.formats.system.atomic_file import sha256_of_files
from assay.output import say

ITEMS_SHOWN = 4
TEXT_SHOWN = 160


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    keys: Annotated[bool, typer.Option("--keys", help="Show every metadata key with its type and value.")] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Hash the whole file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show a file's hyper-parameters, tensor types, vocabulary, chat template and sections.

    A well-formed file that holds no model Assay can run is shown as far as it goes, with the reason; the exit code is
    0 then too ("runnable" in the JSON tells). Only a damaged file is refused.
    """
    container = options.open_any(model)
    for warning in container.warnings:
        say(f"warning: {warning}")
    try:
        file, refusal = model_in(container), None
    except (ModelError, FormatError) as error:
        file, refusal = None, error
    facts = facts_of(container, file, refusal)
    if sha256:
        facts["model"]["sha256"] = sha256_of_files(container.parts)
    if keys:
        facts["metadata"] = metadata_of(container)
    if as_json:
        typer.echo(json.dumps(tables.finite(facts), ensure_ascii=False))
        return
    show_facts(container, file, facts)
    show_sections(container)
    if keys:
        show_keys(facts["metadata"])
    if refusal is not None:
        tables.line(("not a model that Assay can run: ", "yellow"), refusal.what)


def facts_of(container: Container, file: ModelFile | None, refusal: ModelError | FormatError | None) -> dict[str, Any]:
    """Everything ``inspect`` knows, ready for JSON. Sizes are in bytes."""
    infos = container.tensors.values()
    parameters, weight_bytes = sum(math.prod(i.shape) for i in infos), sum(i.nbytes for i in infos)
    census = Counter(info.type.name for info in infos)
    return {
        "model": model_facts(container, file),
        "container": container_facts(container),
        "sizes": {
            "file": container.size,
            "weights": weight_bytes,
            "parameters": parameters,
            "bits_per_weight": round(8 * weight_bytes / parameters, 3) if parameters else None,
        },
        "tensors": {"count": len(infos), **dict(sorted(census.items(), key=lambda item: (-item[1], item[0])))},
        **({} if file is None else contents_of(file)),
        "runnable": file is not None,
        "refusal": None if refusal is None else options.error_of(refusal),
        "warnings": list(container.warnings if file is None else file.warnings),
    }


def contents_of(file: ModelFile) -> dict[str, Any]:
    """What only a model has."""
    return {
        "config": asdict(file.config),
        "vocabulary": {
            "tokens": len(file.vocabulary),
            "merges": len(file.vocabulary.merges),
            "pre_tokenizer": file.vocabulary.pre,
            "control_tokens": len(file.vocabulary.control_tokens),
            "bos": file.vocabulary.text_of(file.vocabulary.bos_id),
            "add_bos": file.vocabulary.add_bos,
            "ends_at": sorted(file.vocabulary.tokens[i] for i in file.vocabulary.end_ids),
        },
        "chat_template": file.chat_template,
    }


def model_facts(container: Container, file: ModelFile | None) -> dict[str, Any]:
    if file is not None:
        return options.model_of(file)
    architecture = container.metadata.get("general.architecture", container.metadata.get("architecture"))
    said = architecture if isinstance(architecture, str) else None
    return {"path": str(container.path), "format": container.format, "architecture": said, "name": container.path.stem}


def container_facts(container: Container) -> dict[str, Any]:
    """Header, alignment, and the byte ranges of all sections; ``stop`` is the byte after the last."""
    version = {"version": container.version, "alignment": container.alignment} if isinstance(container, GGUF) else {}
    files = {"files": [part.name for part in container.parts]} if len(container.parts) > 1 else {}
    return {
        "format": container.format,
        **version,
        **files,
        "metadata_keys": len(container.metadata),
        "sections": [{"name": s.name, "start": s.start, "stop": s.stop} for s in gathered(container)],
    }


def gathered(container: Container) -> list[Any]:
    """The sections, gaps between tensors counted as part of the tensor data."""
    found: list[Any] = []
    every = sections(container)
    for i, section in enumerate(every):
        inside = 0 < i < len(every) - 1 and every[i - 1].name == every[i + 1].name == "tensor data"
        if found and found[-1].name == "tensor data" and (inside or section.name == "tensor data"):
            found[-1] = type(section)("tensor data", found[-1].start, section.stop)
        else:
            found.append(section)
    return found


def metadata_of(container: Container) -> dict[str, Any]:
    """Every key: its type, and its value; of a long array the number of items and the first few."""
    found: dict[str, Any] = {}
    for key in container.metadata:
        kind = container.metadata.type_of(key) if isinstance(container, GGUF) else None
        try:
            value = container.metadata[key]
        except FormatError as error:  # a string that is not UTF-8, say: shown, not fatal
            found[key] = {"type": kind, "error": error.what}
            continue
        value = value.tolist() if isinstance(value, np.ndarray) else value
        kind = kind or type(value).__name__
        if isinstance(value, list) and len(value) > ITEMS_SHOWN:
            found[key] = {"type": kind, "count": len(value), "first": value[:ITEMS_SHOWN]}
        else:
            found[key] = {"type": kind, "value": value}
    return found


def show_facts(container: Container, file: ModelFile | None, facts: dict[str, Any]) -> None:
    """The facts as a table of two columns."""
    rows = []
    for section, values in facts.items():
        if section in ("metadata", "refusal", "warnings"):  # printed apart
            continue
        for name, value in (values if isinstance(values, dict) else {section: values}).items():
            if name in ("sections", "warnings"):
                continue
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            if name == "chat_template" and isinstance(value, str):
                shown = f"{len(value)} characters (--json shows it)"
            rows.append((f"{section}.{name}" if isinstance(values, dict) else name, shown))
    title = facts["model"]["name"]
    what = f"{container.format}, {facts['model']['architecture'] or 'no architecture'}"
    options.show(f"{title} ({what})", ("", ""), rows)


def show_sections(container: Container) -> None:
    rows = [(s.name, f"{s.start:,}", f"{s.stop - 1:,}", f"{s.nbytes:,}", tables.share(s.nbytes / container.size))
            for s in gathered(container)]  # fmt: skip
    tables.columns(("section", "first byte", "last byte", "bytes", "share"), rows,
                   right=("first byte", "last byte", "bytes", "share"))  # fmt: skip


def show_keys(metadata: dict[str, Any]) -> None:
    tables.line()
    rows = [(key, str(value["type"]), short(value)) for key, value in metadata.items()]
    tables.columns(("key", "type", "value"), rows)


def short(value: dict[str, Any]) -> str:
    """A value in one cell."""
    if "error" in value:
        return f"({value['error']})"
    if "first" in value:
        return f"{value['count']:,} items: {', '.join(repr(item) for item in value['first'])} ..."
    text = repr(value["value"])
    if len(text) <= TEXT_SHOWN:
        return text
    return f"{text[:TEXT_SHOWN]}... ({len(str(value['value'])):,} characters)"
