"""The score, from records alone: rates by gate and family, sites, what each check is worth, rivals, real bugs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from assay.formats.contract.config import STAGES
from assay.judging.proof.bench import Record
from assay.judging.proof.rivals import RIVALS, STD_RATIO

BEYOND = 3.0
"""Floors beyond which a change of the outputs must be noticed."""
COUNTED = ("killed", "survived", "not-applied", "crashed")
"""Outcomes in the denominator: an equivalent mutant leaves nothing to notice."""


@dataclass(frozen=True)
class Rate:
    """So many of so many."""

    caught: int
    of: int

    @property
    def share(self) -> float:
        return self.caught / self.of if self.of else float("nan")

    def __str__(self) -> str:
        return f"{self.caught} of {self.of}" + (f" ({self.share:.1%})" if self.of else "")


def rate(records: Iterable[Record], caught: Callable[[Record], bool]) -> Rate:
    """Of the records that count, those for which ``caught`` holds."""
    counted = [record for record in records if record.outcome in COUNTED]
    return Rate(sum(map(caught, counted)), len(counted))


def killed(record: Record) -> bool:
    """Whether any gate noticed, and all else that a kill demands."""
    return record.outcome == "killed"


def killed_by(gate: str) -> Callable[[Record], bool]:
    """Whether this gate alone noticed."""
    return lambda record: killed(record) and record.gates.get(gate, {}).get("kill", False)


def killed_without(check: str) -> Callable[[Record], bool]:
    """Whether some gate would have noticed had ``check`` not been there; ``check`` may also be a gate's name."""

    def would(record: Record) -> bool:
        return killed(record) and any(
            one["kill"] and name != check and any(fired != check for fired in one["checks"])
            for name, one in record.gates.items())  # fmt: skip

    return would


def checks_of(records: Iterable[Record]) -> list[str]:
    """Every check that fired anywhere."""
    kills = (one for record in records for one in record.gates.values() if one["kill"])
    return sorted({check for one in kills for check in one["checks"]})


def gates_of(records: Iterable[Record]) -> list[str]:
    """Every gate that was asked, in order."""
    return list(dict.fromkeys(name for record in records for name in record.gates))


def beyond(record: Record) -> bool:
    """Whether an output changed by more than ``BEYOND`` floors; what is discrete, or no numbers, did."""
    floors = record.effect.get("floors")
    return record.outcome in COUNTED and bool(record.changed) and (floors is None or floors > BEYOND)


def located(records: Iterable[Record]) -> tuple[Rate, Rate]:
    """Of the kills by stages whose site is declared: named exactly; and within one stage of the same layer."""
    known = [(record.declared, record.site) for record in records
             if killed(record) and record.declared is not None and record.site is not None]  # fmt: skip
    exact = sum(tuple(a) == tuple(b) for a, b in known)
    return Rate(exact, len(known)), Rate(sum(near(a, b) for a, b in known), len(known))


def near(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """The same stage, or its neighbour."""
    return abs(place(a) - place(b)) <= 1


def place(site: Sequence[Any]) -> int:
    """A site's number in the order of computation."""
    stage, layer = site
    inner = len(STAGES) - 3
    if stage == "embedding":
        return 0
    if layer is None:
        return 1 << 20 if stage == "final_norm" else (1 << 20) + 1
    return 1 + inner * int(layer) + STAGES.index(stage) - 1


def rival_caught(rival: str, clean: Record) -> Callable[[Record], bool]:
    """Whether a rival says no to the mutant on an input on which it says yes to the clean engine."""
    alarms = set(clean.rivals.get(rival, ()))
    return lambda record: bool(set(record.rivals.get(rival, ())) - alarms)


def rivals_table(records: Sequence[Record], clean: dict[str, Record]) -> dict[str, dict[str, Any]]:
    """By rival: its rate in each arithmetic, and the inputs on which it raises a false alarm on the clean engine."""
    table: dict[str, dict[str, Any]] = {}
    for rival in RIVALS:
        table[rival] = {
            arith: {"rate": rate([r for r in records if r.arith == arith], rival_caught(rival, one)),
                    "alarms": one.rivals.get(rival, [])}
            for arith, one in clean.items()
        }  # fmt: skip
    return table


def real_bugs(records: Sequence[Record], clean: dict[str, Record]) -> list[tuple[int, str, bool, bool]]:
    """(number, mutant, killed in every arithmetic in which it counts, caught by the std ratio in any)."""
    rows = []
    for bug, name in sorted({(r.real_bug, r.mutant) for r in records if r.real_bug is not None}):
        mine = [r for r in records if r.mutant == name and r.outcome in COUNTED]
        if mine:
            std = any(rival_caught(STD_RATIO, clean[r.arith])(r) for r in mine if r.arith in clean)
            rows.append((bug or 0, name, all(map(killed, mine)), std))
    return rows


def survivors(records: Iterable[Record]) -> list[Record]:
    """What was not noticed, the worst first: by KL, then by floors."""
    def size(record: Record) -> tuple[float, float]:
        effect = record.effect
        return (effect.get("kl_max") or 0.0, effect.get("floors") or 0.0)

    return sorted((r for r in records if r.outcome in ("survived", "not-applied", "crashed")), key=size, reverse=True)
