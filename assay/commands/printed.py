"""``assay trace --eval-callback``: what llama-eval-callback printed, beside the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from assay.commands import options, tables
from assay.commands.comparison import exit_code, say_verdict
from assay.formats import InputError
from assay.formats.contract.config import STAGES
from assay.judging.engines_under_test import baseline
from assay.judging.printed import Judged, judge_printed
from assay.parity.eval_callback import read
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.sample import Sample, place
from assay.parity.transplant import demand_same

ENGINE = "llama.cpp"


def show_printed(log: Path, model: str, ids: list[int] | None, arith: str | None, as_json: bool) -> None:
    """The verdict on a log; exits with its code.

    Raises InputError for a log that does not say what was read where ``ids`` do not either.
    """
    found = read(log)
    read_ids = found.ids if ids is None else tuple(ids)
    if read_ids is None:
        raise InputError("the log does not say which tokens were read", where=str(log), remedy="Say it with --ids")
    demand_same(Sample(None, read_ids, ""), Sample(None, found.ids or read_ids, ""))
    file = options.open_file(model)
    judged = judge_printed(baseline(file), found, read_ids, arith or "ggml")
    said = facts(judged, log, file, arith or "ggml")
    if as_json:
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        show(judged, said)
    raise typer.Exit(exit_code(judged.verdict))


def facts(judged: Judged, log: Path, file: Any, arith: str) -> dict[str, Any]:
    """The ``--json`` object."""
    return {"verdict": judged.verdict, "log": str(log), "model": options.model_of(file), "arith": arith,
            "declared": judged.declared.name, "ids": judged.ids, "first": judged.first,
            "stages": [{"stage": stage, "layer": layer, **one._asdict()}
                       for (stage, layer), one in judged.stages.items()]}  # fmt: skip


def show(judged: Judged, said: dict[str, Any]) -> None:
    """A row for each stage, of the layer that is furthest off, and the verdict."""
    rows = []
    for stage in STAGES:
        of_stage = {key: one for key, one in judged.stages.items() if key[0] == stage}
        if of_stage:
            key = max(of_stage, key=lambda key: of_stage[key].worst)
            one = of_stage[key]
            rows.append([stage, "" if key[1] is None else str(key[1]), f"{one.elements} of {one.of:,}",
                         f"{one.over_floor:.3g}", f"{one.sum_over_floor:.3g}"])  # fmt: skip
    names = ("stage", "worst layer", "printed", "element/floor", "sum/floor")
    tables.columns(names, rows, right=names[1:])
    tables.line()
    tables.line(f"held against the truth as far as they are printed; {TOLERANCE_FACTOR:g} floors are allowed")
    tables.line(f"not verified: that {ENGINE} read this model, and computes in {said['arith']}")
    site = ""
    if judged.first is not None:
        site = (f": {place(*judged.first)} is {judged.stages[judged.first].worst:.3g} floors off, the first of the "
                "printed ones; an earlier stage may be to blame, by elements that are not printed")  # fmt: skip
    say_verdict(judged.verdict, site)
