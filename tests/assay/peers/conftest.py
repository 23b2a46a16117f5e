"""Endpoints that are started for a test, and ended with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.assay.peers.endpoint_stand_in import Server


@pytest.fixture
def serving() -> Iterator[Callable[[], Server]]:
    started: list[tuple[Server, threading.Thread]] = []

    def start() -> Server:
        server = Server()
        thread = threading.Thread(target=partial(server.http.serve_forever, poll_interval=0.01))
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@pytest.fixture
def served(serving: Callable[[], Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv("ASSAY_API_KEY", raising=False)
    return serving()
