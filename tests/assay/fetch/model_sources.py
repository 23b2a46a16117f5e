"""What the tests of ``assay pull`` share: a small model, a catalogue that holds it, and a puller that watches."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from assay.fetch.catalogue import Entry, Source
from assay.fetch.pull import pull

NAME, FILENAME = "tiny-model", "tiny.gguf"
DATA = random.Random(7).randbytes(100_000)  # no two pieces of it are alike, so order and overlap show


class Fetcher:
    """Pulls ``tiny-model`` into ``folder`` and checks that its final name stays free until all is verified."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.final = folder, folder / FILENAME
        self.lines: list[str] = []
        self.labels: list[str] = []
        self.monkeypatch = monkeypatch

    def offer(self, *sources: Source, size: int = len(DATA)) -> None:
        """Make the catalogue hold one model with these sources."""
        entry = Entry(NAME, "tiny", FILENAME, size, hashlib.sha256(DATA).hexdigest(), "MIT", sources)
        self.monkeypatch.setattr("assay.fetch.pull.catalogue", lambda: {NAME: entry})

    def pull(self, *sources: Source, force: bool = False, watch: bool = True) -> Path:
        """Pull; with ``watch`` the final name must not exist while there is progress to tell of."""

        def progress(done: int, total: int, label: str) -> None:
            self.labels.append(label)
            assert 0 <= done <= total == len(DATA)
            assert not (watch and self.final.exists())

        self.offer(*sources)
        return pull(NAME, folder=self.folder, force=force, report=self.lines.append, progress=progress)

    def left(self) -> list[str]:
        """Names in the folder."""
        return sorted(path.name for path in self.folder.iterdir())
