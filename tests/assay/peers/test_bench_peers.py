"""Peers: the line between us and them, with a stand-in; and the real ones on the built-in model."""

import os
import time
from importlib.util import find_spec

import pytest

from assay import peers, reference
from assay.formats import InputError
from assay.goldens import BUILTIN
from assay.peers import PEERS, require, running
from tests.assay.command_line import assay
from tests.assay.peers.peer_stand_ins import StandIn

PROMPTS = [[5, 6, 7, 8], [50, 60, 70, 80]]


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_speeds_are_sums_over_the_longest_time(stand_in: StandIn) -> None:
    with running("stand-in", BUILTIN, context=16, slots=2) as peer:
        assert peer.generate([[1] * 8], 5) == {"ids": [[7] * 5], "prefill_tok_s": 4000, "decode_tok_s": 2000}
        assert peer.generate([[1] * 8, [2] * 8], 5)["decode_tok_s"] == 4000
        assert peer.generate([[1] * 8], 1)["decode_tok_s"] is None
        assert alive(peer.process_id)
    assert not alive(peer.process_id)


def test_a_proxy_is_not_asked(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with running("stand-in", BUILTIN, context=16) as peer:
        assert peer.generate([[1]], 2)["ids"] == [[7, 7]]


@pytest.mark.parametrize(
    "fault, said",
    [("refuses", "ValueError: no such thing"), ("dies", "failed"), ("mumbles", "not understood"),
     ("cannot load", "could not load the model: the weights are odd")],
)  # fmt: skip
def test_a_peer_that_fails_is_a_refusal(stand_in: StandIn, fault: str, said: str) -> None:
    stand_in.misbehave(fault)
    refused = assay("bench", "-e", "reference", "--vs", "stand-in", "--prefill", "4", "--batch", "", "--json")
    lines = refused.err.splitlines()
    assert refused.code == 2 and said in lines[-1] and "--vs" in lines[-1]


def test_a_peer_that_never_gets_ready_is_given_up(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.misbehave("hangs")
    monkeypatch.setattr(peers, "LOAD_TIMEOUT", 1)
    started = time.perf_counter()
    with pytest.raises(InputError, match="could not load"), running("stand-in", BUILTIN, context=16):
        pass
    assert time.perf_counter() - started < 30  # a hang guard: left alone it sleeps for 60 s


def test_a_peer_that_never_answers_is_given_up(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.misbehave("dozes")
    monkeypatch.setattr(peers, "ANSWER_TIMEOUT", 1)
    with running("stand-in", BUILTIN, context=16) as peer, pytest.raises(InputError, match="timed out"):
        peer.generate([[1]], 2)


def test_a_missing_package_is_named_with_what_brings_it(stand_in: StandIn) -> None:
    stand_in.recipe(package="no_such_package")
    with pytest.raises(InputError, match=r"no_such_package missing.*pip install 'assay\[an-extra\]'"):
        require("stand-in")


def test_llama_cpp() -> None:
    with running("llama.cpp", BUILTIN, context=64, slots=2) as peer:
        one = peer.generate(PROMPTS[:1], 6)
        again = peer.generate(PROMPTS[:1], 6, keep=True)
        both = peer.generate(PROMPTS, 6)
    assert one["ids"] == again["ids"] and [len(ids) for ids in both["ids"]] == [6, 6]
    assert all(result[key] > 0 for result in (one, both) for key in ("prefill_tok_s", "decode_tok_s"))


@pytest.mark.real  # in that it is not for every run: importing PyTorch and decoding the weights takes 10 s
@pytest.mark.skipif(
    any(find_spec(p) is None for p in PEERS["transformers"].packages), reason="needs assay[transformers]"
)
def test_transformers_chooses_what_the_oracle_chooses() -> None:
    oracle = reference.load(BUILTIN, arith="f32", cache_weights=True)
    expected = [reference.generate(oracle, ids, max_tokens=6).ids for ids in PROMPTS]
    with running("transformers", BUILTIN, context=64, slots=2) as peer:
        assert peer.generate(PROMPTS, 6)["ids"] == expected
        assert [peer.generate(PROMPTS[1:], 6, keep=True)["ids"] for _ in range(3)] == [expected[1:]] * 3
        assert peer.generate(PROMPTS[:1], 6)["ids"] == expected[:1]
