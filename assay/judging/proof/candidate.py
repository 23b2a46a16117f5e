"""The engine that mutants are planted in: it is changed from outside, at a seam, and put back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

import assay.accel.model
from assay.accel.pack import Params, pack
from assay.accel.rope import rope_table
from assay.formats import ModelFile
from assay.formats.contract.engine import Prompt
from assay.judging.baseline import Baseline
from assay.judging.engines_under_test import UnderTest, baseline
from assay.judging.proof import fast, files, oracle
from assay.judging.proof.faults import fault_of
from assay.judging.proof.rebound import rewritten
from assay.judging.proof.words import speaking
from assay.parity.mutants.record import Activation, Angles, Bytes, Mutant, Reader, Source, Twin, Words
from assay.parity.precision import Key

T = TypeVar("T")
OF_THE_ORACLE = {"eps", "gain_plus", "neighbours", "q_turn", "k_turn", "backwards", "turned", "score", "tiled"}
"""The numbers of twins that the oracle has as well: it has no cache of fixed slots, no batch, no device."""


class DoesNotApply(Exception):
    """A mutant of something that this engine does not have at all."""


class Shared(Baseline):
    """A baseline that remembers every sample: gates take turns with the same few."""

    def __init__(self, one: Baseline) -> None:
        super().__init__(one.truth, one.oracle)
        self._all: dict[Any, Any] = {}

    def _once(self, ids: Sequence[int], what: Any, compute: Callable[[], T]) -> T:
        key = tuple(ids), what
        if key not in self._all:
            self._all[key] = compute()
        return self._all[key]


class Candidate:
    """One engine in one arithmetic, clean until a mutant is applied. To be made inside :func:`instrumented`."""

    def __init__(self, file: ModelFile, arith: str) -> None:
        self.file, self.arith = file, arith
        self.model = self._loaded()

    def _loaded(self) -> Any:
        load = oracle.loaded if self.arith == oracle.JUDGED else fast.loaded
        model = load(self.file, self.arith)
        model.chat_prompt = remembered(model.chat_prompt)  # a process each time, for texts that are always the same
        return model

    @contextmanager
    def applied(self, mutant: Mutant, shared: Shared) -> Iterator[tuple[UnderTest, Key | None]]:
        """The engines under test with the mutant in the candidate, and the site that follows from it."""
        with ExitStack() as stack:
            judged, site = UnderTest(shared, self.model), None
            match mutant.seam:
                case Activation() | Twin() as seam:
                    if self.arith == oracle.JUDGED:
                        self._demand_of_the_oracle(seam)
                    stack.enter_context(self._steered(seam))
                    if isinstance(seam, Activation):
                        site = seam.stage, 0 if seam.layer == -2 else seam.layer
                case Angles() as seam:
                    stack.enter_context(self._turned(seam))
                case Bytes() as seam:
                    file, names = files.spoiled(self.file, seam)
                    site = files.site_of(names, seam.used_as)
                    stack.enter_context(self._reading(file, seam.used_as))
                case Reader() as seam:
                    file = files.misread(self.file, seam)
                    stack.enter_context(self._reading(file, "both", dict(seam.config).get("rms_norm_eps", 1.0)))
                    if seam.shared:
                        judged = UnderTest(stack.enter_context(unkept(file)), self.model)
                case Source() as seam:
                    if self.arith == oracle.JUDGED:
                        raise DoesNotApply("source of another engine")
                    stack.enter_context(rewritten(seam))
                    if seam.compiled:
                        model = self._loaded()
                        model.chat_prompt = self.model.chat_prompt
                        judged = UnderTest(shared, model)
                case Words() as seam:
                    stack.enter_context(speaking(self.model, seam.change))
            yield judged, site

    def _demand_of_the_oracle(self, seam: Activation | Twin) -> None:
        """Raise DoesNotApply for what the oracle does not have."""
        plain = type(seam)("") if isinstance(seam, Activation) else Twin()
        other = {name for name, value in vars(seam).items() if value != getattr(plain, name)}
        if (isinstance(seam, Twin) and other - OF_THE_ORACLE) or (
                isinstance(seam, Activation) and seam.where.sequence is not None):  # fmt: skip
            raise DoesNotApply("the oracle has no such thing")

    def _set(self, seam: Activation | Twin | None, params: Params | None = None) -> None:
        fault = fault_of(seam, self.file.config, self.file.vocabulary)
        if self.arith == oracle.JUDGED:
            oracle.set_fault(self.model, fault)
        else:
            fast.set_fault(self.model, fault, params)

    @contextmanager
    def _steered(self, seam: Activation | Twin) -> Iterator[None]:
        self._set(seam)
        try:
            yield
        finally:
            self._set(None)

    @contextmanager
    def _turned(self, seam: Angles) -> Iterator[None]:
        """Another table of angles."""
        if self.arith == oracle.JUDGED:
            raise DoesNotApply("the oracle has no table")

        def table(n: int, head_dim: int, theta: float) -> Any:
            angles = np.array(rope_table(n, head_dim, theta * seam.theta))
            if seam.single:
                steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
                exact = np.arange(n, dtype=np.float32)[:, None] * (np.float32(theta) ** -steps)[None]
                angles = np.stack([np.cos(exact), np.sin(exact)], axis=1)
            if seam.repeats_after:
                angles = angles[np.arange(n) % seam.repeats_after]
            if seam.stands_at:
                angles = angles[np.minimum(np.arange(n), seam.stands_at)]
            return jnp.asarray(angles, jnp.float32)

        with replaced(assay.accel.model, "rope_table", table), replaced(self.model, "_rope_tables", {}):
            yield

    @contextmanager
    def _reading(self, file: ModelFile, used_as: str, eps: float = 1.0) -> Iterator[None]:
        """The candidate with another file."""
        before, end_ids = self.model.file, np.array(sorted(file.vocabulary.end_ids) or [-1], np.int32)
        self.model.file = file
        if self.arith == oracle.JUDGED:
            weights = self.model.weights
            self.model.weights = type(weights)(file)
            self.model.weights.fault = weights.fault
            if used_as != "both":
                rows, clean = self.model.weights, weights
                rows.embedding = (clean if used_as == "head" else rows).embedding
                if used_as == "lookup":
                    raise DoesNotApply("one matrix in the oracle")
            try:
                yield
            finally:
                self.model.file, self.model.weights = before, weights
            return
        clean, new = self.model.params, pack(file)
        if used_as != "both":
            new = Params(new.embedding if used_as == "lookup" else clean.embedding, new.matrices, new.vectors,
                         new.final_gain, new.output if used_as == "head" else clean.output)  # fmt: skip
        padded = np.resize(end_ids, len(self.model._end_ids))  # the same shape, so the same program
        with replaced(self.model, "_end_ids", padded), replaced(self.model, "_rope_tables", {}):
            self._set(Twin(eps=eps), new)
            try:
                yield
            finally:
                self.model.file, self.model.params = before, clean


def remembered(render: Callable[..., Prompt]) -> Callable[..., Prompt]:
    """A renderer that renders the same conversation once."""
    known: dict[str, Prompt] = {}

    def rendered(messages: Sequence[Mapping[str, Any]], **options: Any) -> Prompt:
        key = json.dumps([messages, options], sort_keys=True)
        if key not in known:
            known[key] = render(messages, **options)
        return known[key]

    return rendered


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value while the block lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def unkept(file: ModelFile) -> Iterator[Shared]:
    """A baseline of its own: what both sides misread. Its floors are not kept: they would be under the file's hash."""
    before = os.environ.get("ASSAY_FLOORS")
    os.environ["ASSAY_FLOORS"] = "off"
    try:
        yield Shared(baseline(file))
    finally:
        os.environ.pop("ASSAY_FLOORS")
        if before is not None:
            os.environ["ASSAY_FLOORS"] = before


def instrumented(arith: str) -> Any:
    """Inside it benches of this arithmetic work."""
    return oracle.instrumented() if arith == oracle.JUDGED else fast.instrumented()
