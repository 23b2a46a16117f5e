"""The oracle's ``ggml`` arithmetic as a candidate with seams. Truth and oracle, in f64 and f32, have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np

import assay.reference.model
from assay import reference
from assay.formats import ModelFile
from assay.judging.proof.faults import Fault, fault_of, norm_of, tap_of
from assay.judging.proof.rebound import rebound

FORWARD, ATTENTION_BLOCK, FEED_FORWARD = (
    assay.reference.model.forward, assay.reference.model.attention_block, assay.reference.model.feed_forward_block
)  # fmt: skip
JUDGED = "ggml"


@contextmanager
def instrumented() -> Iterator[None]:
    """The oracle's forward pass with seams in it, where the arithmetic is the one that is judged."""
    assay.reference.model.forward = forward
    try:
        yield
    finally:
        assay.reference.model.forward = FORWARD


def loaded(file: ModelFile, arith: str) -> Any:
    """A model with no fault in it."""
    model = reference.load(file, arith=arith)
    set_fault(model, fault_of(None, file.config, file.vocabulary))
    return model


def set_fault(model: Any, fault: Fault) -> None:
    """Steer the seams of ``model``."""
    model.weights.fault = fault


def forward(ids: Sequence[int], weights: Any, arith: Any, cache: Any, tap: Any) -> np.ndarray:
    """``reference/model.py``'s, with a tap before the judge's and the twins' functions replaced."""
    fault = getattr(weights, "fault", None)
    if fault is None or arith.name != JUDGED:
        return FORWARD(ids, weights, arith, cache, tap)
    positions = np.arange(len(cache.ids), len(cache.ids) + len(ids))
    spoil = tap_of(fault, np, positions, np.asarray(ids), 1, np.full(len(ids), len(cache.ids) > 0))
    names = {"rms_norm": norm_of(fault, assay.reference.model.rms_norm), "rotate": rotate_of(fault),
             "attention": attention_of(fault)}  # fmt: skip
    blocks = {"attention_block": rebound(ATTENTION_BLOCK, **names),
              "feed_forward_block": rebound(FEED_FORWARD, **names)}  # fmt: skip
    inner = rebound(FORWARD, **names, **blocks)
    return inner(ids, weights, arith, cache, lambda stage, layer, x: tap(stage, layer, spoil(stage, layer, x)))


def rotate_of(fault: Fault) -> Callable[..., Any]:
    """rotate: called for queries, then for keys."""
    original, back = assay.reference.model.rotate, np.argsort(fault.pairs)
    turns = cycle((fault.q_turn, fault.k_turn))

    def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
        extra = next(turns)
        further = angles * float(fault.sine) + np.arctan2(extra[1], extra[0]).astype(np.float64)
        return original(x[..., fault.pairs], np.where(fault.turned, further, 0))[..., back]

    return rotate


def attention_of(fault: Fault) -> Callable[..., Any]:
    """attention: other scores or heads. (Mask and slots are the fast engine's.)"""
    original = assay.reference.model.attention

    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return original((q * fault.score)[:, fault.heads], k, v)[:, np.argsort(fault.heads)]

    return attention

