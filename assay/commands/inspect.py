"""``assay inspect``: what a model file says about itself."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import typer

from assay.commands import options
from formats import ModelFile


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    sha256: Annotated[bool, typer.Option("--sha256", help="Hash the whole file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show a model's hyper-parameters, tensor types, vocabulary and chat template."""
    file = options.open_file(model)
    facts = facts_of(file)
    if sha256:
        facts["model"]["sha256"] = file.sha256
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    rows = []
    for section, values in facts.items():
        for name, value in (values if isinstance(values, dict) else {section: values}).items():
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            if name == "chat_template" and isinstance(value, str):
                shown = f"{len(value)} characters (--json shows it)"
            rows.append((f"{section}.{name}" if isinstance(values, dict) else name, shown))
    options.show(f"{file.name} ({file.format}, {file.architecture})", ("", ""), rows)


def facts_of(file: ModelFile) -> dict[str, Any]:
    """Everything ``inspect`` knows, ready for JSON. Sizes are in bytes."""
    vocabulary, tensors = file.vocabulary, file.tensors.values()
    parameters = sum(math.prod(t.shape) for t in tensors)
    weight_bytes = sum(t.nbytes for t in tensors)
    return {
        "model": options.model_of(file),
        "sizes": {
            "file": file.size,
            "weights": weight_bytes,
            "parameters": parameters,
            "bits_per_weight": round(8 * weight_bytes / parameters, 3),
        },
        "config": asdict(file.config),
        "tensors": {"count": len(tensors), **file.census()},
        "vocabulary": {
            "tokens": len(vocabulary),
            "merges": len(vocabulary.merges),
            "pre_tokenizer": vocabulary.pre,
            "control_tokens": len(vocabulary.control_tokens),
            "bos": vocabulary.text_of(vocabulary.bos_id),
            "add_bos": vocabulary.add_bos,
            "ends_at": sorted(vocabulary.tokens[i] for i in vocabulary.end_ids),
        },
        "chat_template": file.chat_template,
        "warnings": list(file.warnings),
    }
