"""One engine in one arithmetic, clean and then with one mutant after the other; truth and floors are computed once.

A kill counts only if the mutant was applied, ran, changed an output, the clean twin passed the same gate, and the gate
failed by its own verdict.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

import assay.accel.model
from assay import engines
from assay.accel.pack import Params, pack
from assay.accel.rope import rope_table
from assay.formats import AssayError, ModelFile
from assay.judging.baseline import Baseline
from assay.judging.engines_under_test import UnderTest, baseline
from assay.judging.proof import fast, files, oracle, outputs, rivals
from assay.judging.proof.faults import NotApplied, fault_of
from assay.judging.proof.gates import Answer, Gate, gates, kept_logits
from assay.judging.proof.rebound import rewritten
from assay.judging.proof.words import speaking
from assay.judging.test_matrix import LONG, SHORT
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


@dataclass(frozen=True)
class Record:
    """What became of one mutant in one arithmetic; a line of the results."""

    mutant: str
    family: str
    arith: str
    outcome: str
    """killed, survived, equivalent, not-applied, crashed; of the clean engine: green, alarm."""
    declared: Key | None
    real_bug: int | None
    gates: dict[str, dict[str, Any]]
    """By gate: verdict, checks that fired, site, and whether it is a kill."""
    changed: list[str]
    effect: dict[str, Any]
    rivals: dict[str, list[str]]
    note: str = ""
    seconds: float = 0.0

    @property
    def site(self) -> Key | None:
        """Where stages were accused first."""
        return next((one["site"] for one in self.gates.values() if one["site"]), None)


class Bench:
    """The judge, its gates (``only`` some) and a candidate of which everything is known while it is clean.

    ``shown``: the outputs that are looked at, all if None.
    """

    def __init__(self, file: ModelFile, arith: str, quick: str, shared: Shared | None = None,
                 only: Sequence[str] | None = None, shown: Sequence[str] | None = None) -> None:  # fmt: skip
        self.file, self.arith, self.shown = file, arith, shown
        self.shared = shared or Shared(baseline(file))
        self.gates: dict[str, Gate] = {name: gate for name, gate in gates(quick, arith).items()
                                       if only is None or name in only}  # fmt: skip
        self.model = self._loaded()
        truth = self.shared.truth
        ids = truth.tokenizer.encode(LONG[:4000])[: outputs.N_LOGITS]
        self.exact = self.shared.exact(ids)
        self.true_text = engines.generate(truth, truth.tokenizer.encode(SHORT), max_tokens=outputs.N_WRITTEN).text
        self.answers, self.outputs, _ = self._judged(UnderTest(self.shared, self.model))
        self.errors = {path: float(np.sqrt(np.square(self.outputs[path][:, : self.exact.shape[1]] - self.exact).mean()))
                       for path in ("prefill", "decode") if path in self.outputs}  # fmt: skip
        self.errors.setdefault("decode", self.errors["prefill"])

    def _loaded(self) -> Any:
        return oracle.loaded(self.file, self.arith) if self.arith == oracle.JUDGED else fast.loaded(self.file, self.arith)

    def clean(self) -> Record:
        """The clean twin's own record."""
        failed = [name for name, answer in self.answers.items() if answer.failed]
        return Record("", "clean twin", self.arith, "alarm" if failed else "green", None, None,
                      {name: as_fact(answer, False) for name, answer in self.answers.items()}, [], {"errors": self.errors},
                      rivals.caught_by(self.outputs, self.exact, self.true_text, ratios(self.answers)))  # fmt: skip

    def run(self, mutant: Mutant) -> Record:
        """Apply a mutant, ask every gate, and take it back. Raises DoesNotApply."""
        started, site = time.perf_counter(), mutant.site

        def record(outcome: str, **facts: Any) -> Record:
            empty: dict[str, Any] = {"gates": {}, "changed": [], "effect": {}, "rivals": {}}
            return Record(mutant.name, mutant.family, self.arith, outcome, site, mutant.real_bug, **(empty | facts),
                          seconds=round(time.perf_counter() - started, 2))  # fmt: skip

        try:
            with self._applied(mutant) as (under_test, derived):
                site = mutant.site or derived
                answers, found, crash = self._judged(under_test)
        except NotApplied as error:
            return record("not-applied", note=str(error))
        except AssayError as error:
            return record("crashed", note=f"{type(error).__name__}: {error}")
        changed = outputs.changed(found, self.outputs)
        kills = {name: answer.failed and not self.answers[name].failed for name, answer in answers.items()}
        outcome = "killed" if any(kills.values()) and changed else "survived" if changed else "equivalent"
        if crash and outcome != "killed":
            outcome = "crashed"
        return record(
            outcome,
            gates={name: as_fact(answer, kills[name]) for name, answer in answers.items()},
            changed=changed,
            effect=outputs.effect(found, self.outputs, self.errors),
            rivals=rivals.caught_by(found, self.exact, self.true_text, ratios(answers)),
            note=crash,
        )

    def _judged(self, under_test: UnderTest) -> tuple[dict[str, Answer], outputs.Outputs, str]:
        """Every gate's answer, and the outputs; and which gate ended by an exception, if one did."""
        answers, crash = {}, ""
        with kept_logits() as kept:
            for name, gate in self.gates.items():
                try:
                    answers[name] = gate(under_test)
                except Exception as error:  # a gate that breaks has not failed by its own verdict
                    answers[name], crash = Answer("crashed", []), f"{name}: {type(error).__name__}: {error}"[:300]
            found = outputs.outputs(under_test.candidate, self.shared.truth.tokenizer, kept, self.shown)
        return answers, found, crash

    @contextmanager
    def _applied(self, mutant: Mutant) -> Iterator[tuple[UnderTest, Key | None]]:
        """The engines under test with the mutant in the candidate, and the site that follows from it."""
        with ExitStack() as stack:
            judged, site = UnderTest(self.shared, self.model), None
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
                        judged = UnderTest(self.shared, self._loaded())
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
            return assay.accel.model.jnp.asarray(angles, np.float32)

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
    """A baseline of its own: what both sides misread. Its floors are not kept, as they would be under the file's hash."""
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


def as_fact(answer: Answer, kill: bool) -> dict[str, Any]:
    """An answer as a record keeps it."""
    return {**{k: v for k, v in asdict(answer).items() if k != "std_ratios"}, "kill": kill}


def ratios(answers: dict[str, Answer]) -> tuple[float, float] | None:
    """The smallest and largest std ratio that stages showed."""
    both = [one.std_ratios for one in answers.values() if one.std_ratios]
    return (min(a for a, _ in both), max(b for _, b in both)) if both else None


