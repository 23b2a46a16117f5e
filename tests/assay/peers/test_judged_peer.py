"""llama.cpp before the judge, on the built-in model; and peers that do not name what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.formats import InputError, open_model
from assay.formats.contract.engine import identity
from assay.goldens import BUILTIN
from assay.peers import Peer
from assay.peers.judged import ExternalEngine
from tests.assay.command_line import assay

TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1)"


def test_llama_cpp_is_judged_by_its_tokens() -> None:
    said = assay("flips", TEXT, "--engine", "llama.cpp", "--json").json
    assert said["verdict"] == "DRIFT" and said["unexplained"] == [] and 1e-6 < said["kl_mean"] < 1e-2


@pytest.mark.parametrize("arguments", [
    ("parity", TEXT), ("bisect", TEXT), ("flips", TEXT, "--arith", "f32"), ("flips", TEXT, "--cache-type", "f16"),
])  # fmt: skip
def test_what_cannot_be_asked_of_a_peer(arguments: tuple[str, ...]) -> None:
    assert assay(*arguments, "--engine", "llama.cpp").is_refusal(2)


class Answering(Peer):
    """A peer that answers what it is told to; ``asked`` is what it was asked last."""

    answer: Any
    asked: dict[str, Any]

    def _ask(self, body: dict[str, Any]) -> Any:
        object.__setattr__(self, "asked", body)
        return self.answer


def answering(answer: Any) -> ExternalEngine:
    peer = Answering("llama.cpp", "", 0, 0.0)
    object.__setattr__(peer, "answer", answer)
    return ExternalEngine(peer, open_model(BUILTIN), "1")


def naming(top: Any) -> dict[str, Any]:
    return {"completion_probabilities": [{"top_logprobs": top}]}


def test_what_is_not_named_is_not_known() -> None:
    top = [{"id": 5, "logprob": -0.5}, {"id": 9, "logprob": -1.5}, {"id": 10**6, "logprob": -3}]
    engine = answering(naming(top))
    row, cache = engine.prefill([1, 2])
    assert row[5] == -0.5 and row[9] == -1.5 and np.isnan(row).sum() == len(row) - 2
    engine.decode(3, cache)
    assert engine.peer.asked["prompt"] == [1, 2, 3]  # type: ignore[attr-defined]
    assert engine.forward([1, 2, 3]).shape == (3, len(row))


NONSENSE = ({}, [], {"completion_probabilities": []}, naming(None), naming([]), naming([{"id": "x", "logprob": 0}]))


@pytest.mark.parametrize("answer", NONSENSE)
def test_answers_without_probabilities(answer: Any) -> None:
    with pytest.raises(InputError, match="names no probabilities"):
        answering(answer).prefill([1])


def test_nobody_looks_inside_a_server() -> None:
    with pytest.raises(InputError, match="no stages"):
        answering({}).forward([1], identity)
