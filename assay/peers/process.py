"""An external engine's side of the line: what each of their processes does. What passes over the line is said in
``assay/peers/__init__.py``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


def announce(address: str) -> None:
    """Say that requests are answered at ``address``. Nobody reads standard output from here on: it joins the log."""
    print(f"\nready {address}", flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def wait_for_the_end() -> None:
    """Return when the process that started this one closes our standard input, or is gone."""
    while sys.stdin.read(4096):
        pass


def answer_requests(complete: Callable[[dict[str, Any]], Any]) -> None:
    """Answer every POST with what ``complete`` makes of it, until the end; what it raises becomes status 500.

    Requests are answered one by one in the calling thread: how many threads compute is a matter of each thread.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, answer = 200, complete(body)
            except Exception as error:
                status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    announce(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=lambda: (wait_for_the_end(), os._exit(0)), daemon=True).start()
    server.serve_forever()
