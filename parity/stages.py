"""Every stage's local error: all stages are fed with the truth, and each shows what it makes of it.

Errors grow on their way through a model, so a stage that differs need not be wrong: it may have accumulated everything.
Here nothing is accumulated. The tap takes down what the engine computed and hands back the truth, so the next stage
starts from there. One forward pass, and each stage of each layer has been tried on its own:

    engine   input = truth ─> [stage] ─> output     distance(output, truth): its local error
                                 tap <── truth
                                  └────> next stage

The floor is made in the same way from runs of the oracle in the candidate's declared precision (``precision.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from assay.formats import InputError, NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Tap, identity
from assay.parity.distance import Distance, distance
from assay.parity.floor import NoiseFloor, floor_of
from assay.parity.precision import Key, Precision, Tapped, each_run
from assay.parity.sample import check_shapes

Activations = dict[Key, np.ndarray]
Distances = dict[Key, Distance]

MAX_TOKENS = 128
"""Of a sample whose stages are kept: 0.5B in f64, 5 MB a token."""


def demand_few(ids: Sequence[int], where: str, remedy: str) -> None:
    """Raise InputError if a sample is too long for its stages to be kept."""
    if len(ids) > MAX_TOKENS:
        raise InputError(f"{len(ids)} tokens, but stages are kept for at most {MAX_TOKENS}", where=where, remedy=remedy)


@checked
def capture(engine: Tapped, ids: Sequence[int]) -> Activations:
    """Every activation of ``forward(ids)``, in the order in which they are computed."""
    shown: Activations = {}

    def tap(stage: str, layer: int | None, activation: Any) -> Any:
        shown[stage, layer] = np.array(activation)
        return activation

    engine.forward(ids, tap)
    return shown


@checked
def accumulated(
    engine: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], noise: Tap = identity
) -> Distances:
    """Distance of every stage of an ordinary run: its local error and all before it."""
    return _compare(engine, ids, truth, noise)


@checked
def local(engine: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], noise: Tap = identity) -> Distances:
    """Distance of every stage when it is fed with the truth, moved by ``noise``."""

    def hand_back(stage: str, layer: int | None, found: np.ndarray) -> np.ndarray:
        return noise(stage, layer, truth[stage, layer].astype(found.dtype))

    return _compare(engine, ids, truth, hand_back)


def _compare(engine: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray],
             go_on_with: Tap) -> Distances:  # fmt: skip
    distances: Distances = {}

    def tap(stage: str, layer: int | None, activation: Any) -> Any:
        found, expected = np.asarray(activation), truth[stage, layer]
        check_shapes(stage, layer, found, expected)
        distances[stage, layer] = distance(found, expected)
        return go_on_with(stage, layer, found)

    with suppress(NumericError):  # logits that are not numbers: every stage has been shown by then
        engine.forward(ids, tap)
    return {key: distances[key] for key in truth if key in distances}


@checked
def noise_floor(oracle: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], declared: Precision, *,
                runs: int = 4) -> NoiseFloor:  # fmt: skip
    """The floor of every stage's local error, from ``runs`` perturbed runs of the oracle."""
    return floor_of(each_run(lambda seed: local(declared.noisy(oracle, seed), ids, truth, declared.noise(seed)),
                             range(runs)))  # fmt: skip
