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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.formats import InputError, NumericError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Tap, identity
from assay.parity.distance import Distance, distance
from assay.parity.floor import NoiseFloor, floor_of
from assay.parity.precision import Key, Precision, Tapped, each_run
from assay.parity.rows import Rows
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


GoOn = Callable[[Key, np.ndarray, slice], np.ndarray]
"""What an engine goes on with, of rows that it computed: their stage, the rows, and where they lie."""


@checked
def accumulated(
    engine: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], noise: Tap = identity
) -> Distances:
    """Distance of every stage of an ordinary run: its local error and all before it."""
    return _compare(engine, ids, truth, lambda key, found, _: noise(*key, found))


@checked
def local(engine: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], noise: Tap = identity) -> Distances:
    """Distance of every stage when it is fed with the truth, moved by ``noise``."""
    return _compare(engine, ids, truth, lambda key, found, at: noise(*key, truth[key][at].astype(found.dtype)))


def _compare(engine: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], go_on_with: GoOn) -> Distances:
    """Distance of every stage, measured once all its rows have been shown.

    Raises SampleError for rows that the truth does not have, or where a pass ends without some that it has.
    """
    distances: Distances = {}
    rows = Rows(truth)

    def tap(stage: str, layer: int | None, activation: Any) -> Any:
        found = np.asarray(activation)
        at = rows.add(stage, layer, found)
        if (whole := rows.whole(stage, layer)) is not None:
            distances[stage, layer] = distance(whole, truth[stage, layer])
        return go_on_with((stage, layer), found, at)

    try:
        engine.forward(ids, tap)
    except NumericError:  # logits that are not numbers; of steps that were not taken nothing is known
        distances |= {key: distance(rows.filled(key), truth[key]) for key in list(rows.parts)}
    for key, parts in rows.parts.items():
        check_shapes(*key, np.concatenate(parts), truth[key])
    return {key: distances[key] for key in truth if key in distances}


@checked
def noise_floor(oracle: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], declared: Precision, *,
                runs: int = 4) -> NoiseFloor:  # fmt: skip
    """The floor of every stage's local error, from ``runs`` perturbed runs of the oracle."""
    return floor_of(each_run(lambda seed: local(declared.noisy(oracle, seed), ids, truth, declared.noise(seed)),
                             range(runs)))  # fmt: skip
