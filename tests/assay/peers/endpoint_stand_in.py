"""A server in a thread that answers as OpenAI's completions do, or not quite, in all forms that endpoints know."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.peers.endpoint import Endpoint
from assay.reference.tokenizer import Tokenizer

FILE = open_model(BUILTIN)
TOKENIZER = Tokenizer(FILE.vocabulary)
SOME = {5: -0.5, 9: -1.5, 300: -3.0}
"""Tokens and the log-probabilities that they are named with."""


def spelt(token: int) -> str:
    return TOKENIZER.decode([token])


def in_ids(named: dict[int, float]) -> Any:
    return in_content([{"id": i, "token": "?", "bytes": None, "logprob": p} for i, p in named.items()])


def in_bytes(named: dict[int, float]) -> Any:
    return in_content([{"token": "?", "bytes": [*TOKENIZER.bytes_of(i)], "logprob": p} for i, p in named.items()])


def in_tokens(named: dict[int, float]) -> Any:
    return in_content([{"token": spelt(i), "logprob": p} for i, p in named.items()])


def in_content(top: Any) -> Any:
    return {"content": [{"token": "?", "logprob": 0, "top_logprobs": top}]}


def in_texts(named: dict[int, float]) -> Any:
    return {"tokens": ["?"], "top_logprobs": [{spelt(i): p for i, p in named.items()}]}


def in_vllm(named: Mapping[int, float | None]) -> Any:
    return {"tokens": ["token_id:5"], "top_logprobs": [{f"token_id:{i}": p for i, p in named.items()}]}


FORMS = (in_ids, in_bytes, in_tokens, in_texts, in_vllm)


class Patient(ThreadingHTTPServer):
    """Says nothing of clients that hung up: what a thread prints would stand in the next test's output."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """An endpoint that answers what ``answers`` says: a status and bytes, or an object, or logprobs of a choice."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models: Any = {"data": [{"id": "it"}]}
        self.answers: Callable[[dict[str, Any]], Any] = lambda body: (200, choice(in_ids(SOME)))
        self.location = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self.say(200, server.models)

            def do_POST(self) -> None:
                assert self.path == "/v1/completions"
                server.keys.append(self.headers["Authorization"])
                server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.say(*server.answers(server.bodies[-1]))

            def say(self, status: int, said: Any) -> None:
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                if server.location:
                    self.send_header("Location", server.location)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = Patient(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def endpoint(self, **options: Any) -> Endpoint:
        return Endpoint(self.address, FILE, TOKENIZER.bytes_of, **options)

    def says(self, said: Any, status: int = 200) -> Endpoint:
        """Answer everything so."""
        self.answers = lambda body: (status, said)
        return self.endpoint()


def choice(logprobs: Any) -> Any:
    return {"choices": [{"text": "?", "logprobs": logprobs}]}
