"""Stand-ins for what models are fetched from: a web server on this machine, and a package index without pip."""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from assay.fetch.catalogue import Wheels
from assay.fetch.pull import pull
from assay.formats import SourceError

BODY = hashlib.shake_256(b"a model").digest(700_001)  # several chunks of from_url, no round number
NAME = "toy"
WHEELS = Wheels(package="toy-part{n}", count=4, version="1.0", member="toy_part{n}/data/part{n:02}.bin")
CUTS = (0, 200_000, 400_000, 600_000, len(BODY))


class Server(ThreadingHTTPServer):
    """Serves ``body`` at every path, as the attributes say, and keeps the requests' headers."""

    body, etag, ranges, stop_after, length, status = BODY, '"v1"', True, len(BODY), None, 200
    redirect, chunked = "", False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in mid-body is what some tests are about; the rest is worth seeing."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def started() -> Iterator[Server]:
    """A server, for as long as the block lasts."""
    with Server() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server, first, status = self.server, 0, self.server.status
        server.seen.append((self.path, dict(self.headers)))
        if server.redirect and not self.path.startswith("/there"):
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        asked = self.headers.get("Range")
        if server.ranges and asked and self.headers.get("If-Range") in (server.etag, None):
            first, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
        self.send_response(status)
        self.send_header("ETag", server.etag)
        body = server.body[first:]
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/{len(server.body)}")
        if not server.chunked:
            self.send_header("Content-Length", str(server.length or len(body)))
        self.end_headers()
        self.wfile.write(body[: max(server.stop_after - first, 0)])

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Index:
    """A fake pip: copies wheels made here, counts what was asked for, and fails where ``faults`` says so."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, Counter[str]()
        self.faults: dict[str, BaseException] = {}
        folder.mkdir()
        for n in range(1, WHEELS.count + 1):
            self.make(n, BODY[CUTS[n - 1] : CUTS[n]])

    def make(self, n: int, data: bytes, member: str = WHEELS.member) -> Path:
        path = self.folder / f"toy_part{n}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"toy_part{n}/__init__.py", "raise SystemExit('imported')")
            archive.writestr(member.format(n=n), data)
        return path

    def run_pip(self, requirement: str, folder: Path, stop: threading.Event) -> None:
        self.asked[requirement] += 1
        if requirement in self.faults:
            raise self.faults[requirement]
        stem = requirement.replace("-", "_").replace("==", "-")
        shutil.copy(self.folder / f"{stem}-py3-none-any.whl", folder)


def left(home: Path) -> set[str]:
    """The files of the models folder, without the sidecar and the lock."""
    return {p.name for p in (home / "models").iterdir()} - {"toy.gguf.verified", "toy.gguf.lock"}


def quietly(**options: Any) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return pull(NAME, report=lines.append, **options), lines


def drop(server: Server) -> None:
    """Let the server drop the connection once, in mid-body; then let it behave."""
    server.stop_after = 300_000
    with pytest.raises(SourceError, match="ended after 300000 of 700001 bytes"):
        quietly()
    server.stop_after = len(server.body)
