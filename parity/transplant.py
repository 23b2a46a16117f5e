"""What a dump alone says: every stage's local error, by transplanting the other way round.

The oracle in f64 runs, and at every stage its tap takes down what it made of the *dumped* inputs and hands back the
dumped output, so the next stage starts from there:

    oracle   input = dump ─> [stage] ─> output     distance(dump, output): the stage's local error
                                tap <── dump
                                 └────> next stage

The floor comes from noisy runs of the oracle that are fed in the same way. A stage that was not dumped is computed by
the oracle and passed on; its error is then the next one's. Rows of which the oracle, too, makes no numbers (an infinity
came in) say nothing about a stage and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from assay.formats.contract.engine import Tap, identity
from assay.formats.errors import NumericError, SampleError
from assay.parity.bisect import Finding
from assay.parity.distance import Distance, distance
from assay.parity.floor import TOLERANCE_FACTOR, NoiseFloor, floor_of, in_floors, over_floor
from assay.parity.precision import Key, Precision, Tapped
from assay.parity.sample import Sample, check_same, check_shapes, place
from assay.parity.stages import Activations, Distances

Stages = Mapping[Key, np.ndarray]


def fed(engine: Tapped, ids: Sequence[int], dump: Stages, take: Callable[[Key, np.ndarray], None],
        noise: Tap = identity) -> None:  # fmt: skip
    """Run ``engine`` with every stage fed from ``dump``, moved by ``noise``; ``take`` is given what it computed."""

    def hand_back(stage: str, layer: int | None, found: np.ndarray) -> np.ndarray:
        take((stage, layer), found)
        if (stage, layer) in dump:
            dumped = dump[stage, layer]
            check_shapes(stage, layer, dumped, found)
            found = dumped.reshape(found.shape).astype(found.dtype)
        return noise(stage, layer, found)

    with suppress(NumericError), np.errstate(all="ignore"):  # an infinity in the dump is the dump's
        engine.forward(ids, hand_back)


def recomputed(truth: Tapped, ids: Sequence[int], dump: Stages) -> Activations:
    """What the truth makes of the dumped inputs of every stage that was dumped.

    Raises SampleError for a stage that the model does not have.
    """
    made: Activations = {}
    fed(truth, ids, dump, lambda key, found: made.__setitem__(key, np.array(found)))
    if foreign := [key for key in dump if key not in made]:
        raise SampleError(f"the dump has {place(*foreign[0])}, the model has none", where="same-sample check: stages",
                          remedy="Give the model that was traced")  # fmt: skip
    return {key: found for key, found in made.items() if key in dump}


def local(found: Stages, expected: Activations) -> Distances:
    """Distance of every dumped stage to what the truth makes of its inputs."""
    return {key: _where_numbers(found[key], t) for key, t in expected.items()}


def noise_floor(oracle: Tapped, ids: Sequence[int], dump: Stages, expected: Activations, declared: Precision, *,
          runs: int = 4) -> NoiseFloor:  # fmt: skip
    """The floor of every dumped stage's local error, from ``runs`` noisy runs of the oracle, fed from the dump."""

    def noisy(seed: int) -> Distances:
        said: Distances = {}

        def take(key: Key, found: np.ndarray) -> None:
            if key in expected:
                said[key] = _where_numbers(found, expected[key])

        fed(declared.noisy(oracle, seed), ids, dump, take, declared.noise(seed))
        return said

    return floor_of([noisy(seed) for seed in range(runs)])


def accuse(truth: Tapped, oracle: Tapped, ids: Sequence[int], dump: Stages, declared: Precision, *,
           runs: int = 4) -> tuple[Finding, NoiseFloor, Key | None]:  # fmt: skip
    """The finding on a dump, the floor, and the first stage in which the oracle itself is beyond it.

    Nothing is transplanted into the engine, which is not there. Raises SampleError for a stage that is not the model's.
    """
    expected = recomputed(truth, ids, dump)
    limits = noise_floor(oracle, ids, dump, expected, declared, runs=runs)
    reference: dict[Key, float] = {}

    def suspect(key: Key, found: np.ndarray) -> None:
        if key in expected:
            reference[key] = over_floor(_where_numbers(found, expected[key]), limits[key])

    fed(oracle, ids, dump, suspect)
    alone = local(dump, expected)
    tests = {key: in_floors(one, limits[key]) for key, one in alone.items()}
    wrong = tuple(key for key, of_stage in tests.items() if max(of_stage.values()) > TOLERANCE_FACTOR)
    accumulated: Distances = {}

    def ordinary(stage: str, layer: int | None, exact: np.ndarray) -> np.ndarray:
        if (stage, layer) in dump:
            accumulated[stage, layer] = distance(dump[stage, layer], exact)
        return exact

    truth.forward(ids, ordinary)
    first = next((key for key, ratio in reference.items() if ratio > TOLERANCE_FACTOR), None)
    return Finding(accumulated, alone, tests, wrong, logits_restored=None), limits, first


def _where_numbers(found: np.ndarray, expected: np.ndarray) -> Distance:
    """The distance over the positions at which ``expected`` is finite; at the others both count as zero."""
    x, t = (a.reshape(len(a), -1) for a in (found, expected))
    blank = np.logical_not(np.isfinite(t).all(1))
    if blank.any():
        x, t = (np.where(blank[:, None], 0.0, a) for a in (x, t))
    with np.errstate(all="ignore"):
        return distance(x, t)


def demand_same(a: Sample, b: Sample) -> None:
    """``check_same`` on what both know: a dump may lack the weights' hash (""), or the text, where ids were forced."""
    text_known, weights_known = None not in (a.text, b.text), bool(a.weights and b.weights)
    check_same(*(Sample(s.text if text_known else None, s.ids, s.weights if weights_known else "") for s in (a, b)))


class Compared(NamedTuple):
    """A stage in two dumps."""

    key: Key
    equal: bool
    """Bit for bit, where both have the same type; otherwise number for number."""
    distance: Distance
    """Of the first to the second."""

    @property
    def alike(self) -> bool:
        """Whether they are equal, or numbers both."""
        return self.equal or bool(np.isfinite(self.distance.relative_l2))


def compared(a: Stages, b: Stages) -> Iterator[Compared]:
    """Every stage that is in both, in the order of ``b``.

    Raises SampleError where there is none, or shapes differ.
    """
    both = [key for key in b if key in a]
    if not both:
        raise SampleError("no stage is in both", where="same-sample check: stages", remedy="Dump the same stages")
    for key in both:
        x, t = a[key], b[key]
        check_shapes(*key, x, t)
        same = x.tobytes() == t.tobytes() if x.dtype == t.dtype else np.array_equal(x.reshape(t.shape), t)
        with np.errstate(all="ignore"):
            yield Compared(key, same, distance(x, t))
