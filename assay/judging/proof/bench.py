"""One engine in one arithmetic, clean and then with one mutant after the other; truth and floors are computed once.

A kill counts only if the mutant was applied, ran, changed an output, the clean twin passed the same gate, and the gate
failed by its own verdict.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from assay import engines
from assay.judging.engines_under_test import UnderTest
from assay.judging.proof import outputs, rivals
from assay.judging.proof.candidate import Candidate, DoesNotApply, Shared
from assay.judging.proof.faults import NotApplied
from assay.judging.proof.gates import Answer, Gate, kept_logits
from assay.judging.test_matrix import LONG, SHORT
from assay.parity.mutants.record import Mutant
from assay.parity.precision import Key


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
    """The judge, its gates and a candidate of which everything is known while it is clean.

    ``shown``: the outputs that are looked at, all if None.
    """

    def __init__(self, candidate: Candidate, shared: Shared, gates: Mapping[str, Gate],
                 shown: Sequence[str] | None = None) -> None:  # fmt: skip
        self.candidate, self.shared, self.gates, self.shown = candidate, shared, gates, shown
        self.arith = candidate.arith
        truth = self.shared.truth
        ids = truth.tokenizer.encode(LONG[:4000])[: outputs.N_LOGITS]
        self.exact = self.shared.exact(ids)
        self.true_text = engines.generate(truth, truth.tokenizer.encode(SHORT), max_tokens=outputs.N_WRITTEN).text
        self.answers, self.outputs, _ = self._judged(UnderTest(self.shared, candidate.model))
        self.errors = {path: float(np.sqrt(np.square(self.outputs[path][:, : self.exact.shape[1]] - self.exact).mean()))
                       for path in ("prefill", "decode") if path in self.outputs}  # fmt: skip
        self.errors.setdefault("decode", self.errors["prefill"])

    def clean(self) -> Record:
        """The clean twin's own record."""
        failed = any(answer.failed for answer in self.answers.values())
        others = rivals.caught_by(self.outputs, self.exact, self.true_text, ratios(self.answers))
        return Record("", "clean twin", self.arith, "alarm" if failed else "green", None, None,
                      gates={name: as_fact(answer, False) for name, answer in self.answers.items()},
                      changed=[], effect={"errors": self.errors}, rivals=others)  # fmt: skip

    def run(self, mutant: Mutant) -> Record:
        """Apply a mutant, ask every gate, and take it back. Raises DoesNotApply."""
        started, site = time.perf_counter(), mutant.site

        def record(outcome: str, **facts: Any) -> Record:
            empty: dict[str, Any] = {"gates": {}, "changed": [], "effect": {}, "rivals": {}}
            return Record(mutant.name, mutant.family, self.arith, outcome, site, mutant.real_bug, **(empty | facts),
                          seconds=round(time.perf_counter() - started, 2))  # fmt: skip

        try:
            with self.candidate.applied(mutant, self.shared) as (under_test, derived):
                site = mutant.site or derived
                answers, found, crash = self._judged(under_test)
        except NotApplied as error:
            return record("not-applied", note=str(error))
        except DoesNotApply:
            raise
        except Exception as error:  # it does not load, or breaks: no user takes that for an answer
            return record("crashed", note=f"{type(error).__name__}: {error}"[:300])
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


def as_fact(answer: Answer, kill: bool) -> dict[str, Any]:
    """An answer as a record keeps it."""
    return {**{k: v for k, v in asdict(answer).items() if k != "std_ratios"}, "kill": kill}


def ratios(answers: dict[str, Answer]) -> tuple[float, float] | None:
    """The smallest and largest std ratio that stages showed."""
    both = [one.std_ratios for one in answers.values() if one.std_ratios]
    return (float(np.min(both)), float(np.max(both))) if both else None


