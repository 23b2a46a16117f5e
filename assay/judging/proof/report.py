"""The score as tables: for a terminal, for Markdown, for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assay.judging.proof.bench import Record
from assay.judging.proof.score import (
    Rate,
    beyond,
    checks_of,
    gates_of,
    killed,
    killed_by,
    killed_without,
    located,
    rate,
    real_bugs,
    rivals_table,
    survivors,
)

Table = tuple[str, list[str], list[list[str]]]
"""A title, the names of the columns, the rows."""
SHOWN = 60
OTHER = ("equivalent", "not-applied", "crashed", "other engine")


def split(records: Sequence[Record]) -> tuple[list[Record], dict[str, Record]]:
    """The mutants' records, and the clean twins by arithmetic."""
    return [r for r in records if r.mutant], {r.arith: r for r in records if not r.mutant}


def tables(records: Sequence[Record]) -> list[Table]:
    """Everything that is published."""
    mutants, clean = split(records)
    return [overall(mutants, clean), by_gate(mutants, clean), by_family(mutants, clean), worth(mutants),
            rivals(mutants, clean), bugs(mutants, clean), missed(mutants)]  # fmt: skip


def overall(mutants: Sequence[Record], clean: dict[str, Record]) -> Table:
    """Rates by arithmetic."""
    rows = []
    for arith in (*clean, "all"):
        some = [r for r in mutants if arith in (r.arith, "all")]
        exact, close = located(some)
        outcomes = [sum(r.outcome == name for r in some) for name in OTHER]
        rows.append([arith, str(rate(some, killed)), str(rate([r for r in some if beyond(r)], killed)), str(exact),
                     str(close), *map(str, outcomes)])  # fmt: skip
    names = ["arithmetic", "of all that change an output", "of those beyond three floors", "site exact",
             "within one stage", *OTHER]  # fmt: skip
    return "Caught by any gate", names, rows


def by_gate(mutants: Sequence[Record], clean: dict[str, Record]) -> Table:
    """What each gate alone catches."""
    rows = []
    for gate in gates_of(mutants):
        found = [rate([r for r in mutants if r.arith == arith], killed_by(gate)) if gate in clean[arith].gates else None
                 for arith in clean]  # fmt: skip
        rows.append([gate, *("" if one is None else f"{one.share:.1%}" for one in found)])
    return "Each gate alone", ["gate", *clean], rows


def by_family(mutants: Sequence[Record], clean: dict[str, Record]) -> Table:
    """Rates by family and arithmetic."""
    families = list(dict.fromkeys(r.family for r in mutants))
    rows = []
    for family in families:
        mine = [r for r in mutants if r.family == family]
        found = [rate([r for r in mine if r.arith == arith], killed) for arith in clean]
        rows.append([family, *(f"{one.caught} of {one.of}" for one in found)])
    return "By family", ["family", *clean], rows


def worth(mutants: Sequence[Record]) -> Table:
    """What the score loses without each check, or gate."""
    whole = rate(mutants, killed)
    rows = []
    for name in (*checks_of(mutants), *gates_of(mutants)):
        less = rate(mutants, killed_without(name))
        if whole.caught > less.caught or name in checks_of(mutants):
            rows.append([name, str(whole.caught - less.caught), f"{less.share:.1%}"])
    rows.sort(key=lambda row: -int(row[1]))
    return f"Without one check or gate (with all: {whole})", ["without", "mutants lost", "rate"], rows


def rivals(mutants: Sequence[Record], clean: dict[str, Record]) -> Table:
    """What others would have caught, by the same rule: not where they cry wolf at the clean engine."""
    rows = []
    for rival, by_arith in rivals_table(mutants, clean).items():
        cells = []
        for arith in clean:
            one = by_arith[arith]
            alarm = f"; false alarm by {', '.join(one['alarms'])}" if one["alarms"] else ""
            cells.append(f"{one['rate'].share:.1%}{alarm}")
        rows.append([rival, *cells])
    ours = [f"{rate([r for r in mutants if r.arith == arith], killed).share:.1%}" for arith in clean]
    return "Others on the same mutants", ["criterion", *clean], [["Assay, all gates", *ours], *rows]


def bugs(mutants: Sequence[Record], clean: dict[str, Record]) -> Table:
    """Bugs that real engines had."""
    rows = [[str(bug), name, "caught" if caught else "missed", "caught" if std else "missed"]
            for bug, name, caught, std in real_bugs(mutants, clean)]  # fmt: skip
    return "Bugs that real engines had", ["bug", "as a mutant", "Assay, everywhere", "std ratio, anywhere"], rows


def missed(mutants: Sequence[Record]) -> Table:
    """What nothing noticed, the worst first."""
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2g}"

    rows = [[r.mutant, r.family, r.arith, r.outcome, number(r.effect.get("kl_mean")), number(r.effect.get("kl_max")),
             number(r.effect.get("floors")), ", ".join(r.changed) if r.outcome == "survived" else r.note]
            for r in survivors(mutants)]  # fmt: skip
    names = ["mutant", "family", "arithmetic", "outcome", "KL mean, nats", "largest", "floors", "changed"]
    return "Not caught", names, rows


def markdown(records: Sequence[Record]) -> str:
    """All tables for a page of documentation."""
    parts = []
    for title, names, rows in tables(records):
        lines = [f"### {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def facts(records: Sequence[Record]) -> dict[str, Any]:
    """The ``--json`` object, without the records themselves."""
    mutants, clean = split(records)

    def of(one: Rate) -> dict[str, int]:
        return {"caught": one.caught, "of": one.of}

    exact, close = located(mutants)
    return {
        "clean": {arith: one.outcome for arith, one in clean.items()},
        "caught": {arith: of(rate([r for r in mutants if r.arith == arith], killed)) for arith in clean},
        "beyond": {arith: of(rate([r for r in mutants if r.arith == arith and beyond(r)], killed)) for arith in clean},
        "site_exact": of(exact), "site_near": of(close),
        "tables": [{"title": title, "columns": names, "rows": rows} for title, names, rows in tables(records)],
    }  # fmt: skip
