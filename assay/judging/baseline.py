"""What a comparison rests on: the truth of a sample, and the floor. Both are the oracle's, whatever the candidate is.

The floor takes most of a comparison's time, and depends on the weights, the ids, the declared precision and the code of
oracle and noise only. So it is kept in the user's cache folder under the hash of all these, and is found again by
whatever asks the same. The truth is too large to keep: it is remembered for the sample at hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from assay import engines, reference
from assay.formats import InputError, Tensor
from assay.formats.system.atomic_file import replacing
from assay.formats.system.cache_dir import cache_folder
from assay.formats.system.code_digest import digest
from assay.parity import stages
from assay.parity.floor import NoiseFloor, packed, unpacked
from assay.parity.precision import Precision
from assay.parity.prediction import Prediction, predict

T = TypeVar("T")


class Baseline:
    """The truth and the oracle of one file, and what they say of the sample at hand."""

    def __init__(self, truth: Any, oracle: Any) -> None:
        self.truth, self.oracle = truth, oracle
        self._ids: tuple[int, ...] = ()
        self._known: dict[Any, Any] = {}
        self._answers: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def exact(self, ids: Sequence[int]) -> np.ndarray:
        """True logits [n_tokens, n_tokens of the vocabulary], f64: padding rows of the matrix are left out."""
        return self._once(ids, "exact", lambda: self.truth.forward(ids)[:, : len(self.truth.file.vocabulary)])

    def activations(self, ids: Sequence[int]) -> stages.Activations:
        """The true activation of every stage."""
        return self._once(ids, "activations", lambda: stages.capture(self.truth, ids))

    def noise_floor(self, ids: Sequence[int], declared: Precision, runs: int) -> NoiseFloor:
        """The floor of every stage's local error."""
        truth = self.activations(ids)

        def measured() -> np.ndarray:
            return packed(stages.noise_floor(self.oracle, ids, truth, declared, runs=runs))

        def known() -> NoiseFloor:
            array = kept(self._key("floor", ids, declared, runs), (None,), measured)
            try:
                return unpacked(array, truth)
            except ValueError:  # somebody else's array under our name
                return unpacked(measured(), truth)

        return self._once(ids, ("floor", declared.key, runs), known)

    def prediction(self, ids: Sequence[int], declared: Precision, runs: int, seed: int = 0) -> Prediction:
        """Of every position, how probable a flip is."""
        key, exact = self._key("flips", ids, declared, runs, seed), self.exact(ids)
        return self._once(ids, ("flips", declared.key, runs, seed), lambda: predict(
            exact, self.oracle, ids, declared, runs=runs, seed=seed,
            kept=lambda compute, size: kept(key, (size,), compute)))  # fmt: skip

    def answer(self, ids: Sequence[int], n: int) -> list[int]:
        """What the truth writes after ``ids``, greedily: ``n`` tokens, or up to an end token."""
        key = (tuple(ids), n)
        if key not in self._answers:
            self._answers[key] = engines.generate(self.truth, ids, max_tokens=n).ids
        return self._answers[key]

    def _once(self, ids: Sequence[int], what: Any, compute: Callable[[], T]) -> T:
        """What is known of these ids; of other ids everything is forgotten."""
        if self._ids != tuple(ids):
            self._ids, self._known = tuple(ids), {}
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]

    def _key(self, what: str, ids: Sequence[int], declared: Precision, *numbers: int) -> str | None:
        if (made_by := code()) is None:
            return None
        facts = [what, self.truth.file.sha256, list(ids), declared.key, numbers, made_by, np.__version__,
                 platform.python_version(), platform.machine()]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def code() -> str | None:
    """The code in memory that makes a floor, as a number: decoders, oracle, noise and distance; None if it has none.

    Asked each time: an oracle that was changed while one debugs must not leave its floor to the healthy one.
    """
    return digest(Tensor, reference.Model, stages.noise_floor, predict)


def folder() -> Path | None:
    """Where floors are kept; None if ``ASSAY_FLOORS`` is ``off``: then they are measured anew."""
    if os.environ.get("ASSAY_FLOORS") == "off":
        return None
    return cache_folder("floors")


def kept(key: str | None, shape: tuple[int | None, ...], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that was kept under ``key``, or else computed now, and kept; what is no such array is replaced."""
    where = folder()
    if where is None or key is None:
        return compute()
    path = where / f"{key}.npy"
    with suppress(OSError, ValueError, EOFError):
        data = path.read_bytes() if path.stat().st_size < 1 << 26 else b""
        found = np.load(BytesIO(data), allow_pickle=False)
        if found.dtype == np.float64 and len(found.shape) == len(shape) and np.isfinite(found).all() and all(
                want in (None, have) for want, have in zip(shape, found.shape, strict=True)):  # fmt: skip
            return found
    found = np.asarray(compute(), np.float64)
    with suppress(OSError, InputError):  # a cache that cannot be written to is none
        where.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as file:
            np.save(file, found)
    return found
