"""The peer of ``peer_stand_in.py`` in the list of peers, and what it was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay import peers


class StandIn:
    """Puts the peer ``stand-in`` on the list; the only one there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self._monkeypatch = folder / "stand-in.log", monkeypatch
        monkeypatch.setenv("STAND_IN_LOG", str(self.log))
        monkeypatch.setattr("assay.benchmark.bench.read_bandwidth", lambda: 1e10)  # another test measures it
        self.recipe(reserves=True)

    def recipe(self, *, package: str = "pytest", reserves: bool = False) -> None:
        """The packages it claims to need, and whether it says that it reserves memory."""
        recipe = peers.Recipe("tests.assay.peers.peer_stand_in", "f64", (package,), "an-extra", reserves)
        self._monkeypatch.setattr(peers, "PEERS", {"stand-in": recipe})

    def misbehave(self, fault: str) -> None:
        """See there."""
        self._monkeypatch.setenv("STAND_IN", fault)

    def processes(self) -> list[tuple[list[str], list[dict[str, Any]]]]:
        """Of each process its arguments and the requests it got."""
        runs: list[tuple[list[str], list[dict[str, Any]]]] = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            value = json.loads(line)
            if isinstance(value, list):
                runs.append((value, []))
            else:
                runs[-1][1].append(value)
        return runs
