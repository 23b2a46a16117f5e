"""Endpoints that send processed log-probabilities: each kind is refused with the evidence; honest ones never are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from assay.formats import InputError
from assay.parity.divergence import divergence, statistics
from assay.peers.completions import entries_of
from assay.peers.plain_logprobs import NOTHING, demand_logprobs, demand_plain
from tests.assay.command_line import assay
from tests.assay.peers.endpoint_stand_in import Server, choice, in_ids, in_vllm

TEXT = "def fib(n):\n    return"
Named = dict[int, float]
Way = Callable[[np.ndarray], Named]
"""From the logits of one position [n_vocab] to what a server names."""


def plain(row: np.ndarray) -> np.ndarray:
    return log_softmax(row[None], axis=1)[0]


def best(numbers: np.ndarray, n: int = 50) -> Named:
    """The ``n`` largest numbers, through f32."""
    return {int(i): float(np.float32(numbers[i])) for i in np.argsort(-numbers, kind="stable")[:n]}


def among_themselves(named: Named) -> Named:
    """Normalised over the named tokens only."""
    total = math.log(sum(math.exp(p) for p in named.values()))
    return {i: p - total for i, p in named.items()}


def first(named: Named, n: int, rest: float) -> Named:
    """The likeliest ``n`` as they are, the others ``rest``."""
    return {i: p if rank < n else rest for rank, (i, p) in enumerate(named.items())}


PROCESSED: dict[str, tuple[Way, str]] = {
    "greedy, the others ruled out": (lambda r: first(best(r - r.max()), 1, -math.inf), "-inf.*a filter"),
    "greedy, as vLLM writes it": (lambda r: first(best(r - r.max()), 1, NOTHING), "-9999.*a filter"),
    "greedy, nothing else named": (lambda r: best(r - r.max(), 1), "1 token whose.* add up to 1, but in truth .*never"),
    "temperature": (lambda r: best(plain(r / 0.7)), "1.429 times the true ones .a temperature of 0.7.*in truth"),
    "high temperature": (lambda r: best(plain(r / 2)), "0.5 times the true ones .a temperature of 2."),
    "temperature close to none": (lambda r: best(plain(r / 0.01)), "100 times the true ones .a temperature of 0.01"),
    "top-k, normalised again": (lambda r: among_themselves(best(plain(r), 20)), "20 tokens whose.* 1, but in truth to"),
    "top-k, the others ruled out": (lambda r: first(best(plain(r)), 20, -math.inf), "-inf and none of the others"),
    "not a number": (lambda r: first(best(plain(r)), 20, math.nan), "with nan"),
    "infinity": (lambda r: first(best(plain(r)), 20, math.inf), "with inf"),
    "probabilities": (lambda r: best(np.exp(plain(r))), "with 0"),
    "percent": (lambda r: best(100 * np.exp(plain(r))), r"with \d"),
    "without the sign": (lambda r: {i: -p for i, p in best(plain(r)).items()}, r"with \d"),
    "base 10": (lambda r: best(plain(r) / math.log(10)), "50 tokens whose probabilities add up to"),
    "base 2": (lambda r: best(plain(r) / math.log(2)), "1.443 times .*base 2"),
    "logits": (lambda r: best(r), r"with \d"),
    "logits, all below 0": (lambda r: best(r - 40), "50 tokens whose.* add up to .*e-13, but in truth to 0.[67]"),
    "below the likeliest": (lambda r: best(r - r.max()), "add up to"),
}


def f32_softmax(row: np.ndarray) -> np.ndarray:
    """Computed in another order: the exponentials first."""
    e = np.exp((row - row.max()).astype(np.float32))
    with np.errstate(divide="ignore"):
        return np.log(e / e.sum(dtype=np.float32))


HONEST: dict[str, Way] = {
    "f32": lambda r: best(plain(r)),
    "softmax, then the logarithm": lambda r: best(f32_softmax(r)),
    "five": lambda r: best(plain(r), 5),
    "one": lambda r: best(plain(r), 1),
    "everything": lambda r: best(plain(r), len(r)),
    "three decimals": lambda r: best(np.round(plain(r), 3)),
}


def serve(server: Server, engine: Any, way: Way) -> None:
    server.answers = lambda body: (200, choice(in_ids(way(engine.forward(body["prompt"])[-1].astype(np.float64)))))


@pytest.mark.parametrize("kind", PROCESSED)
def test_processed_numbers_are_refused_with_the_evidence(served: Server, builtin_f32: Any, kind: str) -> None:
    way, evidence = PROCESSED[kind]
    serve(served, builtin_f32, way)
    found = assay("flips", TEXT, "--engine", served.address, "--arith", "f32", "--json")
    assert found.is_refusal(2)
    error = json.loads(found.out)["error"]
    assert error["where"] == served.address and "plain log-probabilities" in error["what"]
    with pytest.raises(InputError, match=evidence):
        raise InputError(error["what"])


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_server_is_judged(served: Server, builtin_f32: Any, kind: str) -> None:
    serve(served, builtin_f32, HONEST[kind])
    found = assay("flips", TEXT, "--engine", served.address, "--arith", "f32", "--json")
    assert (found.code, json.loads(found.out)["verdict"]) == ((8, "BUG") if "decimals" in kind else (0, "NOISE"))


def logits(n: int = 12, n_vocab: int = 400, spread: float = 3, seed: int = 0) -> np.ndarray:
    """Sharp and flat rows."""
    rows = np.random.default_rng(seed).standard_normal((n, n_vocab)) * spread
    return rows * np.linspace(0.3, 2, n)[:, None]


def named(rows: np.ndarray, n: int = 50) -> np.ndarray:
    """The log-probabilities of ``rows``, of all but the likeliest ``n`` NaN."""
    p = log_softmax(rows, axis=1)
    return np.where(p >= np.sort(p, axis=1)[:, -n, None], p, np.nan)


@pytest.mark.parametrize("n_positions", [1, 2, 12])
@pytest.mark.parametrize("n", [1, 2, 5, 50, 400])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.01, 0.1, 0.5, 1.0, 3.0])
def test_noise_is_never_taken_for_processing(n: int, noise: float, n_positions: int) -> None:
    for seed in range(30):
        exact = logits(n_positions, seed=seed)
        moved = exact + noise * np.random.default_rng([seed, 1]).standard_normal(exact.shape)
        demand_plain(exact, named(moved, n), str, InputError)


@pytest.mark.parametrize("fault", [
    lambda x: np.roll(x, 1, axis=1), lambda x: np.roll(x, 1, axis=0), lambda x: x[:, ::-1], lambda x: 1000 * x[::-1],
    lambda x: np.tile(np.eye(1, 400, 7) * 500, (12, 1)), lambda x: -x,
])  # fmt: skip
def test_another_computation_is_left_to_the_judge(fault: Callable[[np.ndarray], np.ndarray]) -> None:
    """Even where it is sure of everything, so that its sums are 1."""
    exact = logits()
    demand_plain(exact, named(fault(exact)), str, InputError)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("temperature", [0.3, 0.9, 0.97, 1.03, 1.5])
def test_a_temperature_is_found_through_noise(temperature: float, noise: float) -> None:
    exact = logits()
    moved = exact + noise * abs(1 / temperature - 1) * np.random.default_rng(1).standard_normal(exact.shape)
    with pytest.raises(InputError, match="temperature of"):
        demand_plain(exact, named(moved / temperature), str, InputError)


def test_the_position_and_token_of_the_evidence() -> None:
    exact = np.arange(20.0).reshape(2, 10) % 10
    with pytest.raises(InputError, match=r"after 1 token it names <0> 18 below .*, but in truth it is 9\b"):
        demand_plain(exact, log_softmax(exact / 0.5, axis=1), lambda token: f"<{token}>", InputError)


@pytest.mark.parametrize("nothing", [-math.inf, NOTHING, None, float(np.finfo(np.float32).min)])
def test_what_underflows_is_not_named(nothing: float | None) -> None:
    """Beside tokens near the end of f32, and nowhere else: softmax in f32 has no smaller numbers."""
    answer = choice(in_vllm({5: 0.0, 9: -85.0, 300: nothing}))
    assert demand_logprobs(entries_of(answer), 1, InputError) == [(b"token_id:5", 0.0), (b"token_id:9", -85.0)]
    answer = choice(in_vllm({5: 0.0, 9: -60.0, 300: nothing}))
    with pytest.raises(InputError, match=r"after 3 tokens it names token b'token_id:300' .* less than -60"):
        demand_logprobs(entries_of(answer), 3, InputError)


@pytest.mark.parametrize("logprob", [1e-7, 1e-3])
def test_rounding_may_go_beyond_1(logprob: float) -> None:
    assert demand_logprobs([(5, logprob), (6, -20.0)], 1, InputError) == [(5, logprob), (6, -20.0)]


def test_a_text_that_was_ruled_out_has_an_infinite_perplexity() -> None:
    """And no warning of NumPy's."""
    exact, found = np.zeros((2, 12)), np.zeros((2, 12))
    found[:, 3] = -5000
    assert statistics(divergence(exact, found, [3]))["ppl_candidate"] == math.inf


def test_evidence_is_short_and_without_the_key(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a server calls its tokens."""
    monkeypatch.setenv("ASSAY_API_KEY", "sk-secret")
    long = choice({"top_logprobs": [{"sk-secret\x1b[31m" + "x" * 10_000: 5.0}]})
    with pytest.raises(InputError) as caught:
        served.says(long).named_tokens([1], 200)
    said = str(caught.value)
    assert "(key)" in said and "with 5" in said and "sk-secret" not in said and "\x1b" not in said and len(said) < 400
