"""Faults that flip nothing, or hardly anything, before the judge of tokens: in each arithmetic, by prefill and decode.

A wrong row of the head, a sixteenth of it, logits too large by three hundredths or five thousandths, a bias of queries
or keys lost in one layer. Before all logits were judged, the first two were green everywhere, and all by decode. And
right engines on many texts, which must stay green.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from assay.engines import load
from assay.formats import open_model
from assay.formats.system.progress import quiet
from assay.goldens import BUILTIN
from assay.judging.engines_under_test import UnderTest, baseline
from assay.judging.judge import judge_flips
from assay.parity.flips import Account, account
from assay.parity.verdict import Verdict, of_flips
from tests.real.fast_agreement import CODE, PROSE

WAYS = [("fast", "prefill"), ("fast", "decode"), ("f32", "prefill")]
N_TOKENS = 32
"""As many as one program of the fast engine reads at once."""


@dataclass(frozen=True)
class WithLogits:
    """``engine`` whose head computes something else: the last product of all, so its result is changed."""

    engine: Any
    change: Callable[[np.ndarray], np.ndarray]

    def forward(self, ids: Sequence[int], tap: Any = None) -> np.ndarray:
        return self.change(self.engine.forward(ids, tap))

    def prefill(self, ids: Sequence[int], cache: Any = None) -> tuple[np.ndarray, Any]:
        logits, cache = self.engine.prefill(ids, cache)
        return self.change(logits), cache

    def decode(self, token: int, cache: Any) -> tuple[np.ndarray, Any]:
        return self.prefill([token], cache)

    def fingerprint(self) -> dict[str, Any]:
        return self.engine.fingerprint()


def a_wrong_row(logits: np.ndarray) -> np.ndarray:
    """Token 1,000 is given the row of token 1,001."""
    logits = logits.copy()
    logits[..., 1000] = logits[..., 1001]
    return logits


def a_wrong_sixteenth(logits: np.ndarray) -> np.ndarray:
    """The last 128 of 2,048 rows are off by one."""
    logits = logits.copy()
    logits[..., -128:] = np.roll(logits[..., -128:], 1, axis=-1)
    return logits


HEADS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a wrong row": a_wrong_row,
    "a wrong sixteenth": a_wrong_sixteenth,
    "logits x 1.03": lambda logits: logits * 1.03,
    "logits x 1.005": lambda logits: logits * 1.005,
}


@pytest.fixture(scope="module")
def candidates() -> Iterator[dict[str, UnderTest]]:
    """The fast engine in both arithmetics, on one baseline."""
    file = open_model(BUILTIN)
    shared = baseline(file)
    yield {arith: UnderTest(shared, load(file, arith=arith)) for arith in ("fast", "f32")}


def text(under_test: UnderTest, at: int, n: int) -> list[int]:
    source = (CODE, PROSE)[at % 2]
    return under_test.truth.tokenizer.encode(source[97 * at : 97 * at + 8 * n])[:n]


def judged(under_test: UnderTest, engine: Any, path: str, ids: list[int]) -> tuple[Verdict, Account]:
    found = UnderTest(under_test.baseline, engine)
    positions = judge_flips(found, ids, path, 4, quiet)
    assert positions is not None
    counted = account(positions)
    return of_flips(counted, found.declared(1 if path == "decode" else len(ids))), counted


@pytest.mark.parametrize(("arith", "path"), WAYS)
def test_a_wrong_head_is_seen_and_named(candidates: dict[str, UnderTest], arith: str, path: str) -> None:
    right = candidates[arith]
    ids = text(right, 3, N_TOKENS)
    for name, change in HEADS.items():
        verdict, counted = judged(right, WithLogits(right.candidate, change), path, ids)
        assert verdict == Verdict.BUG, (name, counted.measures)
        beyond = {one.name: one for one in counted.measures if one.beyond}
        if name == "a wrong row":
            assert beyond["row"].at == 1000
        elif name != "a wrong sixteenth":
            assert beyond["gain"].value == pytest.approx(float(name[-5:].strip(" x")) - 1, abs=0.002)


@pytest.mark.parametrize("bias", ["attn_q", "attn_k"])
@pytest.mark.parametrize(("arith", "path"), WAYS)
def test_a_bias_lost_in_one_layer_is_seen(candidates: dict[str, UnderTest], arith: str, path: str, bias: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    engine = candidates[arith].candidate
    name = f"{bias}.bias"
    lost = engine.params.vectors | {name: engine.params.vectors[name].at[2].set(0)}
    monkeypatch.setattr(engine, "params", replace(engine.params, vectors=lost))
    verdict, counted = judged(candidates[arith], engine, path, text(candidates[arith], 3, N_TOKENS))
    assert verdict == Verdict.BUG, counted.measures


@pytest.mark.parametrize(("arith", "path"), WAYS)
def test_right_engines_are_green(candidates: dict[str, UnderTest], arith: str, path: str) -> None:
    """8 texts each way, by decode of 1 to 29 tokens."""
    right = candidates[arith]
    for at in range(8):
        ids = text(right, 20 + at, 1 + 4 * at if path == "decode" else N_TOKENS - at)
        verdict, counted = judged(right, right.candidate, path, ids)
        assert verdict.green, (ids, counted.measures)
        assert all(abs(one.value) < one.limit for one in counted.measures)
