"""``assay prove``: does the judge notice planted faults? Its catch rate, beside that of what others use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.benchmark import plot
from assay.commands import options, tables
from assay.formats import InputError
from assay.formats.errors import DIFFERENT
from assay.formats.system.atomic_file import demand_free, replacing
from assay.goldens import PROVEN
from assay.judging.engines_under_test import UnderTest
from assay.judging.proof import picture, report, results, score
from assay.judging.samples import default_sample
from assay.parity.mutants import CATALOGUE, smaller
from assay.parity.mutants.record import ARITHMETICS, described
from assay.progress import bar

TIERS = ("merge", "full")
TOLERATED = 0.0
"""How far the merge tier's rate may fall below what is recorded: the same mutants, so not at all."""


def command(
    model: options.Model = options.DEFAULT_MODEL,
    tier: Annotated[str, typer.Option(help="merge (a fixed third, in minutes) or full.")] = "merge",
    arith: Annotated[str | None, typer.Option(help="Arithmetics, by commas: f32, fast, ggml (the oracle's).")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only mutants of this family; may be repeated.")] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Only the mutant of this name; may be repeated.")] = None,
    curves: Annotated[bool, typer.Option("--curves", help="At a tenth and a hundredth of their size too.")] = False,
    without: Annotated[str | None, typer.Option(help="Say what is lost without this check, or gate.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep results in this folder; what is there is not rerun.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write all tables as Markdown.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw what each criterion catches, a PNG.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that are there.")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="List the mutants and stop.")] = False,
    as_json: options.Json = False,
) -> None:
    """Plant faults in the engines, one after the other, and ask every gate of the judge whether it notices.

    A fault counts as caught only if it was applied, ran, changed an output, the clean twin passed the same gate, and
    the gate failed by its own verdict. What others use (allclose, cosine, KL ...) is asked about the same faults. Exit
    code 0: the clean engine is green, and of the merge tier no less was caught than is recorded; 8: not so.
    """
    if tier not in TIERS:
        raise InputError(f"there is no tier {tier!r}", where="--tier", remedy=f"Choose one of {', '.join(TIERS)}")
    ariths = list(ARITHMETICS if tier == "full" else ARITHMETICS[:2])
    if arith is not None:
        ariths = [name.strip() for name in arith.split(",")]
    if wrong := [name for name in ariths if name not in ARITHMETICS]:
        raise InputError(f"there is no arithmetic {wrong[0]!r}", where="--arith",
                         remedy=f"Choose of {', '.join(ARITHMETICS)}")  # fmt: skip
    mutants = results.chosen(tier, family or (), mutant or (), curves)
    if list_them:
        listed(as_json)
        return
    if plot_file is not None:
        plot.check(plot_file, force=force)
    if markdown is not None:
        demand_free(markdown, force=force)
    file = options.open_file(model)
    only = results.MERGE_GATES if tier == "merge" and not mutant else None
    with bar() as progress:
        records = list(results.run(file, mutants, ariths, sample, out, only, progress))
    if markdown is not None:
        with replacing(markdown, force=force) as written:
            written.write(report.markdown(records).encode())
    if plot_file is not None:
        with replacing(plot_file, force=True) as written:
            written.write(picture.png(records))
    whole = tier == "merge" and model == options.DEFAULT_MODEL and not (arith or family or mutant or curves)
    fell = fallen(records) if whole else ""
    alarms = [f"{r.arith}: {name}" for r in records if not r.mutant for name, one in r.gates.items()
              if one["verdict"] not in ("BIT-EQUAL", "NOISE", "DRIFT")]  # fmt: skip
    less = lost(records, without)
    if as_json:
        said = report.facts(records) | {"alarms": alarms, "fell": fell, "without": less,
                                        "records": [results.finite(vars(r)) for r in records]}  # fmt: skip
        typer.echo(json.dumps(said, ensure_ascii=False, default=float))
    else:
        show(records, alarms, fell, less, single=bool(mutant))
    raise typer.Exit(DIFFERENT if alarms or fell else 0)


def sample(judged: UnderTest, path: str) -> list[int]:
    """What ``assay parity`` reads where nothing is given."""
    return default_sample(judged, False, path)


def listed(as_json: bool) -> None:
    """The catalogue."""
    everything = (*CATALOGUE, *smaller())
    if as_json:
        said = [{"name": m.name, "family": m.family, "site": m.site, "real_bug": m.real_bug, **described(m.seam)}
                for m in everything]  # fmt: skip
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    rows = [[m.family, m.name, described(m.seam)["seam"], str(m.real_bug or "")] for m in everything]
    tables.columns(("family", "mutant", "seam", "real bug"), rows)
    tables.line(f"{len(CATALOGUE)} mutants, and {len(smaller())} smaller ones for curves")


def fallen(records: list[score.Record]) -> str:
    """In words, where the rate of the merge tier is below the recorded one; empty where it is not."""
    recorded = json.loads(PROVEN.read_text())["merge"]
    found = score.rate([r for r in records if r.mutant], score.killed)
    if found.share + TOLERATED >= recorded["caught"] / recorded["of"]:
        return ""
    return f"{found} were caught, {recorded['caught']} of {recorded['of']} are recorded"


def lost(records: list[score.Record], without: str | None) -> dict[str, Any] | None:
    """What the score is without a check. Raises InputError for one that never fired."""
    if without is None:
        return None
    mutants = [r for r in records if r.mutant]
    known = [*score.checks_of(mutants), *score.gates_of(mutants)]
    if without not in known:
        raise InputError(f"no check {without!r} fired", where="--without", remedy=f"Choose of {'; '.join(known)}")
    whole, less = score.rate(mutants, score.killed), score.rate(mutants, score.killed_without(without))
    return {"check": without, "caught": less.caught, "with_it": whole.caught, "of": whole.of}


def show(records: list[score.Record], alarms: list[str], fell: str, less: dict[str, Any] | None, *,
         single: bool) -> None:  # fmt: skip
    """The tables; of mutants that were asked for by name, every gate's answer."""
    if single:
        rows = [[r.mutant or "(clean twin)", r.arith, r.outcome, name, one["verdict"], ", ".join(one["checks"]),
                 "" if not one["site"] else f"{one['site'][0]} {one['site'][1] if one['site'][1] is not None else ''}"]
                for r in records for name, one in r.gates.items()]  # fmt: skip
        tables.columns(("mutant", "arithmetic", "outcome", "gate", "verdict", "checks", "site"), rows)
        for r in records:
            if r.note:
                tables.line(f"{r.mutant}, {r.arith}: {r.outcome}: {r.note}")
    else:
        for title, names, rows in report.tables(records):
            tables.line((title, "bold"))
            tables.columns(names, rows[: report.SHOWN])
            tables.line()
    if less is not None:
        tables.line(f"without {less['check']}: {less['caught']} of {less['of']}, with it {less['with_it']}")
    for alarm in alarms:
        tables.line((f"false alarm on the clean engine: {alarm}", "bold red"))
    tables.line((fell or "no false alarm on the clean engine, and no less caught than is recorded"
                 if not alarms else fell, "bold red" if fell or alarms else "green"))  # fmt: skip
