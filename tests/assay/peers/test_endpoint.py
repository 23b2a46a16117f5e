"""Endpoints before the judge: every form of answer, refusals, servers that fail; and llama.cpp's own."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from assay.formats import InputError, SampleError
from assay.formats.errors import UNDECIDED
from assay.goldens import BUILTIN
from assay.peers import endpoint, running
from assay.peers.endpoint import Endpoint, EndpointEngine, judged
from tests.assay.command_line import assay
from tests.assay.peers.endpoint_stand_in import (
    FILE,
    FORMS,
    SOME,
    TOKENIZER,
    Server,
    choice,
    in_bytes,
    in_content,
    in_ids,
    in_texts,
    in_tokens,
    in_vllm,
)

TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1)"
KEY = "sk-not-to-be-seen"
PARTIAL = [i for i in range(len(FILE.vocabulary)) if TOKENIZER.decode([i]) == "\ufffd"]
"""Tokens that are a part of a character: as texts they are all alike."""


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_answer(served: Server, form: Callable[[Any], Any]) -> None:
    assert dict(served.says(choice(form(SOME))).named_tokens([1, 2], 200)) == SOME
    assert served.bodies == [{"model": "it", "prompt": [1, 2], "max_tokens": 1, "temperature": 0, "logprobs": 200,
                              "return_tokens_as_token_ids": True}]  # fmt: skip


def test_parts_of_characters_have_bytes_but_no_text(served: Server) -> None:
    some = {5: -0.5, PARTIAL[0]: -1.5}
    assert dict(served.says(choice(in_bytes(some))).named_tokens([1], 200)) == some
    for form in (in_texts, in_tokens):
        row, _ = EndpointEngine(served.says(choice(form(some))), "ggml").prefill([1])
        assert row[5] == -0.5 and np.isnan(row).sum() == len(row) - 1  # the rest of the probability is nobody's


def test_a_likeliest_token_that_nobody_can_tell(served: Server) -> None:
    """A second best in its place could hide a flip."""
    for form in (in_texts, in_tokens):
        with pytest.raises(InputError, match="likeliest token"):
            served.says(choice(form({PARTIAL[0]: -0.5, 5: -1.5}))).named_tokens([1], 200)


def test_what_is_infinitely_improbable_is_not_named(served: Server) -> None:
    body = json.dumps(choice(in_vllm({5: 0.0, 7: -87.0, 9: -np.inf, 300: None}))).encode()
    assert b"-Infinity" in body and served.says(body).named_tokens([1], 200) == [(5, 0.0), (7, -87.0)]


def test_it_is_asked_for_less_until_it_accepts(served: Server) -> None:
    def answers(body: dict[str, Any]) -> Any:
        too_many = body["logprobs"] > 20
        return (400, {"error": {"message": "too many"}}) if too_many else (200, choice(in_vllm(SOME)))

    served.answers = answers
    asked = served.endpoint()
    assert asked.n_named is None
    asked.named_tokens([1], 200)
    assert [body["logprobs"] for body in served.bodies] == [200, 200, 100, 100, 50, 50, 20]
    asked.named_tokens([1], 200)
    assert len(served.bodies) == 8 and served.bodies[-1]["return_tokens_as_token_ids"] and asked.n_named == 20


def test_it_is_asked_without_a_field_that_it_does_not_know(served: Server) -> None:
    served.answers = lambda body: (422, {}) if "return_tokens_as_token_ids" in body else (200, choice(in_texts(SOME)))
    asked = served.endpoint()
    for _ in range(2):
        assert dict(asked.named_tokens([1], 200)) == SOME
    assert [body["logprobs"] for body in served.bodies] == [200] * 3 and len(served.bodies[2]) == 5


def test_a_refusal_of_everything_is_told_in_its_words(served: Server) -> None:
    with pytest.raises(InputError, match=r"HTTP 400, no ids\\u001b here") as caught:
        served.says({"error": {"message": "no\n ids\x1b here"}}, 400).named_tokens([1], 200)
    assert caught.value.where == served.address and len(served.bodies) == 12


LOGPROBS = (None, {}, [], "x", {"content": None}, {"content": []}, in_content(None), in_content([]), in_content([5]),
            in_content([{"id": "x", "logprob": 0}]), in_content([{"token": "a", "bytes": 10**15, "logprob": "x"}]),
            {"top_logprobs": None}, {"top_logprobs": [None]}, {"top_logprobs": [{"a": None}]},
            in_vllm({5: None}), in_bytes({}))  # fmt: skip


@pytest.mark.parametrize("said", [{}, [], None, 7, {"choices": []}, *map(choice, LOGPROBS)])
def test_answers_without_probabilities(served: Server, said: Any) -> None:
    with pytest.raises(InputError, match="names no probabilities"):
        served.says(said).named_tokens([1], 200)


@pytest.mark.parametrize(("status", "said", "why"), [
    (401, {"error": {"message": "who?"}}, "HTTP 401, who.*ASSAY_API_KEY"),
    (500, b"<html>oh", "HTTP 500, <html>oh"), (404, b"", "HTTP 404, Not Found"), (200, b"<html>", "not JSON"),
    (200, b"", "not JSON"), (200, b"[" * 200_000, "not JSON"), (200, b'{"choices": "\xff"}', "not JSON"),
    (200, choice(in_ids({10**6: -0.5})), "token 1000000, but the file has 2,048"),
    (200, choice(in_vllm({5: -1.0, 2048: -0.5})), "token 2048"), (200, choice(in_ids({-1: -0.5})), "token -1"),
    (200, choice(in_ids({5: 0.5})), "plain log-prob.*0.5"), (200, choice(in_ids({5: 17.0})), "plain log-prob.*17"),
    (200, choice(in_vllm({5: float("nan")})), "plain log-prob.*nan"),
])  # fmt: skip
def test_answers_that_are_none(served: Server, status: int, said: Any, why: str) -> None:
    with pytest.raises(InputError) as caught:
        served.says(said, status).named_tokens([1], 200)
    assert caught.value.where == served.address and re.search(why, str(caught.value))


def test_ids_that_were_read_as_something_else_are_another_sample(served: Server) -> None:
    said = choice(in_ids(SOME)) | {"usage": {"prompt_tokens": 3}}
    assert served.says(said).named_tokens([1, 2, 3], 200)
    with pytest.raises(SampleError, match="read 3 tokens where 2 were sent"):
        served.says(said).named_tokens([1, 2], 200)


def test_an_answer_without_end(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST", 1 << 20)
    with pytest.raises(InputError, match="longer than 1 MB"):
        served.says(b" " * (1 << 21)).named_tokens([1], 200)


def test_an_answer_that_never_comes(served: Server) -> None:
    end = threading.Event()
    served.answers = lambda body: (200, choice(in_ids(SOME))) if end.wait(20) else (500, b"")
    asked = served.endpoint(timeout=0.2)
    with pytest.raises(InputError, match="timed out"):
        asked.named_tokens([1], 200)
    end.set()


def test_an_answer_that_comes_drop_by_drop() -> None:
    """Each drop in time, the whole not."""
    drops = SimpleNamespace(read1=lambda size: b" ")
    with pytest.raises(TimeoutError):
        endpoint.received(drops, end=-np.inf)


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        address = f"http://127.0.0.1:{once.getsockname()[1]}/v1"
    with pytest.raises(InputError, match="refused"):
        Endpoint(address, FILE, TOKENIZER.bytes_of)
    assert assay("flips", TEXT, "--engine", address, "--arith", "ggml", "--json").is_refusal(2)


def test_the_key_goes_to_its_server_and_nowhere_else(
    served: Server, serving: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_API_KEY", f" {KEY}\n")
    other = serving()
    served.endpoint().named_tokens([1], 200)
    assert served.keys == [f"Bearer {KEY}"]
    served.location = f"{other.address}/completions"
    for status in (301, 302, 307, 308):
        with pytest.raises(InputError, match=f"HTTP {status}"):
            served.says(b"", status).named_tokens([1], 200)
    assert other.keys == []
    served.location = ""
    with pytest.raises(InputError, match="no such key: ") as caught:
        served.says({"error": {"message": f"no such key: {KEY}"}}, 401).named_tokens([1], 200)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("address", [
    "http://example.com/v1", "HTTP://example.com:8000/v1", "http://192.168.0.7/v1", "http://[fe80::1]:80/v1",
    "http://localhost.example.com/v1", "http://127.0.0.1.example.com/v1", "http://0x7f.1/v1",
])  # fmt: skip
def test_a_key_goes_over_plain_http_to_this_machine_only(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "_only_model", lambda self: pytest.fail("it was asked"))
    monkeypatch.setenv("ASSAY_API_KEY", KEY)
    found = assay("flips", TEXT, "--engine", address, "--json")
    assert found.is_refusal(2) and KEY not in found.err + found.out
    assert "ASSAY_API_KEY: the key would go over plain http" in found.err and "Use https" in found.err
    monkeypatch.setattr(Endpoint, "_only_model", lambda self: "it")
    monkeypatch.delenv("ASSAY_API_KEY")
    Endpoint(address, FILE, TOKENIZER.bytes_of)  # without a key there is nothing to hide


@pytest.mark.parametrize("address", [
    "http://localhost/v1", "http://LOCALHOST:1/v1", "http://127.0.0.1/v1", "http://127.8.9.1/v1", "http://[::1]:1/v1",
    "https://example.com/v1", "HTTPS://example.com/v1",
])  # fmt: skip
def test_a_key_that_nobody_can_read_on_the_way(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "_only_model", lambda self: "it")
    monkeypatch.setenv("ASSAY_API_KEY", KEY)
    Endpoint(address, FILE, TOKENIZER.bytes_of)


def test_a_key_is_sent_in_the_open_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name does not exist, so that nothing is sent: it was tried."""
    monkeypatch.setenv("ASSAY_API_KEY", KEY)
    asked = ("flips", TEXT, "--engine", "http://assay.invalid/v1")
    monkeypatch.setattr(Endpoint, "_exchange", lambda self, *a: (500, f"sent to {self.name}"))
    assert "sent to http" in assay(*asked, "--insecure-key").err
    assert "plain http" in assay(*asked).err
    monkeypatch.setenv("ASSAY_INSECURE_KEY", "1")
    assert "sent to http" in assay(*asked).err
    assert assay("flips", TEXT, "--engine", "reference", "--insecure-key").is_refusal(2)


def test_a_key_that_is_the_name_of_a_model_is_not_shown(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_API_KEY", KEY)
    served.models = {"data": [{"id": f"{KEY}/one"}, {"id": "two"}]}
    with pytest.raises(InputError, match=r"serves 2 models: \(key\)/one, two"):
        served.endpoint()
    served.models = {"data": [{"id": KEY}]}
    assert EndpointEngine(served.endpoint(), "f32").fingerprint()["version"] == "(key)"


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", "a\x00b", "a b"])
def test_a_key_that_cannot_be_sent(served: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {"ASSAY_API_KEY": key})
    with pytest.raises(InputError, match="key") as caught:
        served.endpoint()
    assert key not in str(caught.value)


@pytest.mark.parametrize("address", [
    "http://", "http:///v1", "http://h:99999/v1", "http://[::1/v1", "http://me:secret@h/v1", "http://h/v1?key=secret",
    "http://h/v1#secret", "http://h h/v1", "http://hé/v1", "http://h\t/v1",
])  # fmt: skip
def test_addresses_that_are_none(address: str) -> None:
    found = assay("flips", TEXT, "--engine", address)
    assert found.is_refusal(2) and "secret" not in found.err and "--engine" in found.err


def test_which_model_is_asked_for(served: Server) -> None:
    served.models = {"data": [{"id": "one"}, {"id": "two"}]}
    with pytest.raises(InputError, match="serves 2 models: one, two"):
        served.endpoint()
    served.endpoint(model="two").named_tokens([1], 200)
    for nonsense in ({}, [], None, {"data": [1]}, {"data": None}):
        served.models = nonsense
        served.endpoint().named_tokens([1], 200)
    assert [body.get("model") for body in served.bodies] == ["two"] + [None] * 5


def test_what_cannot_be_judged_is_refused_at_once(served: Server) -> None:
    served.answers = lambda body: (200, choice(None))
    with pytest.raises(InputError, match="names no probabilities"):
        judged(served.address, FILE, TOKENIZER.bytes_of, model=None, arith="ggml")


def test_its_own_generation_is_the_likeliest_token_again_and_again(served: Server) -> None:
    end = next(iter(FILE.vocabulary.end_ids))
    served.answers = lambda body: (200, choice(in_ids({7: -1.5, (end if len(body["prompt"]) > 3 else 8): -0.5})))
    writing = judged(served.address, FILE, TOKENIZER.bytes_of, model=None, arith="ggml")
    assert writing.generate([1, 2], 9) == ([8, 8, end], [1.0, 1.0, 1.0]) and writing.generate([1, 2], 1)[0] == [8]


def test_an_endpoint_whose_arithmetic_is_not_declared(served: Server) -> None:
    found = assay("flips", TEXT, "--engine", served.address)
    assert found.code == UNDECIDED and "UNCALIBRATED" in found.out and "--arith ggml" in found.out
    assert "KL" not in found.out


@pytest.mark.parametrize("arguments", [
    ("parity", TEXT), ("bisect", TEXT), ("flips", TEXT, "--arith", "fast"), ("flips", TEXT, "--arith", "f64"),
    ("flips", TEXT, "--cache-type", "f16"), ("run", TEXT),
])  # fmt: skip
def test_what_cannot_be_asked_of_an_endpoint(served: Server, arguments: tuple[str, ...]) -> None:
    assert assay(*arguments, "--engine", served.address).is_refusal(2)


def test_only_an_endpoint_has_a_model_to_name() -> None:
    assert assay("flips", TEXT, "--engine", "reference", "--endpoint-model", "x").is_refusal(2)


@pytest.mark.slow
def test_llama_cpp_by_its_openai_endpoint() -> None:
    """The same tokens as by its own protocol, to the same verdict."""
    own = assay("flips", TEXT, "--engine", "llama.cpp", "--json").json
    with running("llama.cpp", Path(BUILTIN), context=264) as peer:
        address = f"{peer.address}/v1/"
        said = assay("flips", TEXT, "--engine", address, "--arith", "ggml", "--json").json
        shown = assay("flips", TEXT, "--engine", address, "--arith", "f32")
    assert said["verdict"] == own["verdict"] == "DRIFT" and said["observed"] == own["observed"]
    median, theirs = (one["statistics"]["kld_50"] for one in (said, own))
    assert median == pytest.approx(theirs, rel=0.05) and median > 1e-7
    assert said["kl_mean"] == pytest.approx(own["kl_mean"], rel=0.05) and said["kl_mean"] > 1e-6
    assert said["margins"] == own["margins"]
    assert said["candidate"]["weights"] == "unknown" and said["candidate"]["named"] == 200
    assert "not verified" in shown.out and "builtin.gguf" in shown.out and "f32" in shown.out
