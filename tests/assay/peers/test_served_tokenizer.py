"""A server's tokenizer and template: asked as llama.cpp's server is, and nothing of its answers trusted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from assay.formats import InputError, open_model
from assay.goldens import BUILTIN
from assay.peers.served_tokenizer import ServedTokenizer
from assay.reference.chat import chat_prompt
from assay.reference.tokenizer import Tokenizer
from tests.assay.command_line import assay
from tests.assay.peers.endpoint_stand_in import Patient

FILE = open_model(BUILTIN)
TOKENIZER = Tokenizer(FILE.vocabulary)


class Server:
    """llama.cpp's three paths, answered by our oracle, or by what ``answers`` has for a path."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.bodies: list[tuple[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append((self.path, body))
                said = server.answers[self.path] if self.path in server.answers else server.right(self.path, body)
                data = json.dumps(said).encode()
                self.send_response(404 if said is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = Patient(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def right(self, path: str, body: Any) -> Any:
        if path == "/tokenize":
            return {"tokens": TOKENIZER.encode(body["content"], special=body["parse_special"])}
        if path == "/detokenize":
            return {"content": TOKENIZER.decode(body["tokens"])}
        if path == "/apply-template":
            return {"prompt": chat_prompt(FILE, body.pop("messages"), **body).text}
        return None


@pytest.fixture
def served() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def test_it_is_asked_as_llama_cpp_is(served: Server) -> None:
    tokenizer = ServedTokenizer(served.address, FILE)
    ids = tokenizer.encode("2?<|im_end|>")
    assert ids == TOKENIZER.encode("2?<|im_end|>") and tokenizer.decode(ids) == "2?<|im_end|>"
    assert tokenizer.chat_prompt([{"role": "user", "content": "Hi"}]).endswith("assistant\n")
    assert {path for path, _ in served.bodies} == {"/tokenize", "/detokenize", "/apply-template"}


@pytest.mark.parametrize("said", [None, [], {}, {"tokens": "1"}, {"tokens": [1.5]}, {"tokens": [True]}, {"tokens": []}])
def test_what_it_says_is_not_trusted(served: Server, said: Any) -> None:
    served.answers["/tokenize"] = said
    with pytest.raises(InputError):
        ServedTokenizer(served.address, FILE)


def test_audited_by_the_command(served: Server) -> None:
    """What it cannot know, which part of a text is content, is the only difference."""
    said = assay("tokenize", "--audit", "def f(x):\n  2 +  2?", "-e", served.address, "--json")
    assert said.code == 9
    found = json.loads(said.out)
    kinds = {kind["name"]: kind for kind in found["kinds"]}
    assert kinds["texts"]["cases"] == 2 and kinds["texts"]["differing"] == 0
    assert kinds["markers in content"]["differing"] == kinds["markers in content"]["cases"]
    served.answers["/detokenize"] = {"content": "\x1b[31m"}
    told = assay("tokenize", "--audit", "a", "-e", served.address)
    assert told.code == 9 and "\x1b" not in told.out and "texts: decoding the ids of 'a'" in told.out


def test_a_server_that_has_no_template_differs(served: Server) -> None:
    served.answers["/apply-template"] = None
    found = json.loads(assay("tokenize", "--audit", "a", "-e", served.address, "--json").out)
    first = next(kind for kind in found["kinds"] if kind["name"] == "system turn")["first"]
    assert first["found"].startswith("refused: HTTP 404") and first["oracle"] == "not refused"
