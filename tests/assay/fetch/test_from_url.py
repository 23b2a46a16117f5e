"""A model from one URL: everything a server may do wrong, and continuing where a download broke off."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assay.fetch import from_url
from assay.fetch.catalogue import HuggingFace, Url
from assay.fetch.pull import locate
from assay.formats import SourceError
from tests.assay.fetch.stand_ins import BODY, NAME, Handler, Server, drop, left, quietly, started

pytestmark = pytest.mark.usefixtures("home")


def test_a_url_is_fetched_once(server: Server, offer: Callable[..., None], home: Path) -> None:
    offer(Url(f"{server.address}/toy"))
    seen: list[tuple[int, int, str]] = []
    path = locate(NAME, progress=lambda *at: seen.append(at))
    assert path == home / "models" / "toy.gguf"
    assert path.read_bytes() == BODY
    assert left(home) == {"toy.gguf"}
    assert (len(BODY), len(BODY), "downloading") in seen
    assert locate(NAME) == path
    assert len(server.seen) == 1


def test_a_file_url(tmp_path: Path, offer: Callable[..., None]) -> None:
    (tmp_path / "toy").write_bytes(BODY)
    offer(Url((tmp_path / "toy").as_uri()))
    assert quietly()[0].read_bytes() == BODY


def test_hugging_face(server: Server, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The token goes to Hugging Face and not to where it redirects to."""
    monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
    monkeypatch.setenv("HF_TOKEN", "secret\n")
    server.redirect = server.address + "/there"
    offer(HuggingFace("own/er", "a b.gguf"))
    assert quietly()[0].read_bytes() == BODY
    (path, headers), (_, forwarded) = server.seen
    assert path == "/own/er/resolve/main/a%20b.gguf"
    assert headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in forwarded


def test_the_token_goes_to_no_other_server(server: Server, offer: Callable[..., None],
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Not even to one that it is redirected to under the same name: another port is another server."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with started() as other:
        server.redirect = other.address + "/there"
        offer(HuggingFace("own/er", "a.gguf"))
        assert quietly()[0].read_bytes() == BODY
        assert [headers.get("Authorization") for _, headers in other.seen] == [None]


@pytest.mark.parametrize("endpoint", ["http://example.com", "http://10.0.0.1:8080", "http://localhost.example.com"])
def test_a_token_is_not_sent_over_plain_http(endpoint: str, offer: Callable[..., None],
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The next source is tried."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(from_url, "transfer", lambda *_: pytest.fail("it was sent"))
    offer(HuggingFace("own/er", "a.gguf"))
    with pytest.raises(SourceError, match="HF_TOKEN: the key would go over plain http") as caught:
        quietly()
    assert "hf_secret" not in str(caught.value)


def test_a_token_is_not_sent_through_a_proxy_to_this_machine(server: Server, offer: Callable[..., None],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    offer(HuggingFace("own/er", "a.gguf"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with started() as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        assert quietly()[0].read_bytes() == BODY
    assert server.seen[0][1]["Authorization"] == "Bearer hf_secret" and not proxy.seen


@pytest.mark.parametrize("token", ["hf_secret\x01x", "hf_secret x", "hf_secret\u20ac"])
def test_a_token_that_cannot_be_sent_is_not_shown(token: str, server: Server, offer: Callable[..., None],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", token)
    offer(HuggingFace("own/er", "a.gguf"))
    with pytest.raises(SourceError, match="HF_TOKEN: the key has characters that cannot be sent") as caught:
        quietly()
    assert "hf_secret" not in str(caught.value) and not server.seen


def test_a_server_that_repeats_the_token_is_not_quoted(server: Server, offer: Callable[..., None],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(Handler, "do_GET", lambda h: h.send_error(401, "no such token: hf_secret"))
    offer(HuggingFace("own/er", "a.gguf"))
    with pytest.raises(SourceError, match=r"HTTP 401 no such token: \(key\)"):
        quietly()


def test_a_signature_is_not_shown(server: Server, offer: Callable[..., None]) -> None:
    server.redirect, server.status = f"{server.address}/there?Signature=secret", 403
    offer(Url(server.address))
    with pytest.raises(SourceError, match=r"HTTP 403 .*/there\)") as caught:
        quietly()
    assert "secret" not in str(caught.value)


def test_a_silent_server_is_left_after_a_while(offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_url, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        offer(Url(f"http://127.0.0.1:{silent.getsockname()[1]}/"))
        with pytest.raises(SourceError, match="no answer within"):  # a hang here is the failure
            quietly()


def test_a_dropped_download_is_continued(server: Server, offer: Callable[..., None], home: Path) -> None:
    offer(Url(server.address))
    drop(server)
    assert left(home) == {"toy.gguf.part", "toy.gguf.part.json"}
    assert quietly()[0].read_bytes() == BODY
    headers = server.seen[1][1]
    assert (headers["Range"], headers["If-Range"]) == ("bytes=300000-", '"v1"')
    assert left(home) == {"toy.gguf"}


@pytest.mark.parametrize("change", ["no ranges", "new etag", "new etag, If-Range ignored", "weak etag", "no memory",
                                    "other URL", "torn memory", "416", "wrong range"])  # fmt: skip
def test_what_cannot_be_continued_is_begun_again(change: str, server: Server, offer: Callable[..., None], home: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The partial file is spoilt, so that only starting afresh can give the right bytes."""
    offer(Url(server.address))
    server.etag = 'W/"v1"' if change == "weak etag" else server.etag
    drop(server)
    part, memory = home / "models/toy.gguf.part", home / "models/toy.gguf.part.json"
    part.write_bytes(bytes(300_000))
    server.ranges = change != "no ranges"
    if change.startswith("new etag"):
        server.etag = '"v2"'
    if change.endswith("ignored"):
        answer = Handler.do_GET
        monkeypatch.setattr(Handler, "do_GET", lambda self: (self.headers.__delitem__("If-Range"), answer(self)))
    if change == "416":
        part.write_bytes(bytes(300_001))
        whole = Handler.do_GET
        monkeypatch.setattr(Handler, "do_GET", lambda h: h.send_error(416) if h.headers["Range"] else whole(h))
    if change == "wrong range":
        send = Handler.send_header
        monkeypatch.setattr(Handler, "send_header", lambda h, name, text: send(h, name, text.replace("s 3", "s 2")))
    if change == "other URL":
        offer(Url(f"{server.address}/other"))
    if change == "no memory":
        memory.unlink()
    if change == "torn memory":
        memory.write_text('{"url')
    assert quietly()[0].read_bytes() == BODY


def test_a_download_that_died_before_the_rename_is_not_fetched_again(
    server: Server, offer: Callable[..., None], home: Path
) -> None:
    offer(Url(server.address))
    drop(server)
    (home / "models/toy.gguf.part").write_bytes(BODY)
    assert quietly()[0].read_bytes() == BODY
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 404}, "HTTP 404 Not Found"),
        ({"status": 503}, "HTTP 503"),
        ({"body": BODY[:-1]}, "the server has 700000 bytes, but the catalogue says 700001"),
        ({"length": 10**15}, "the server has 1000000000000000 bytes"),
        ({"chunked": True, "body": BODY + b"x", "stop_after": 10**9}, "sends more than the 700001 bytes"),
        ({"chunked": True, "stop_after": 5}, "ended after 5 of 700001 bytes"),
        ({"body": BODY[:-1] + b"?"}, "the contents are wrong"),
        ({"body": b"<html>" + BODY[6:]}, "the contents are wrong"),
        ({"status": 206}, "a range that was not asked for"),
    ],
)
def test_a_bad_answer_is_one_line_and_no_file(fault: dict[str, Any], message: str, server: Server,
                                              offer: Callable[..., None], home: Path) -> None:  # fmt: skip
    for name, value in fault.items():
        setattr(server, name, value)
    offer(Url(server.address))
    with pytest.raises(SourceError, match=message) as caught:
        quietly()
    assert "\n" not in str(caught.value)
    assert "toy.gguf" not in left(home)
    if message == "the contents are wrong":
        assert left(home) == set()
