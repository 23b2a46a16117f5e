"""A picture of the score: what Assay catches beside what others would have caught (extra ``report``)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from assay.judging.proof.bench import Record
from assay.judging.proof.report import split
from assay.judging.proof.rivals import RIVALS
from assay.judging.proof.score import killed, rate, rival_caught

COLOURS = ("#1f6f8b", "#e0a458", "#7a8b99")
OURS = "Assay, all gates"


def png(records: Sequence[Record]) -> bytes:
    """Bars for each criterion and arithmetic; hatched where it calls the clean engine wrong on some input."""
    from matplotlib.figure import Figure

    mutants, clean = split(records)
    ariths = list(clean)
    names = [OURS, *sorted(RIVALS, key=lambda name: -sum(
        rate([r for r in mutants if r.arith == a], rival_caught(name, clean[a])).share for a in ariths))]  # fmt: skip
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(ariths)
    for i, arith in enumerate(ariths):
        some = [r for r in mutants if r.arith == arith]
        for row, name in enumerate(names):
            caught = rate(some, killed if name == OURS else rival_caught(name, clean[arith]))
            alarm = name != OURS and bool(clean[arith].rivals.get(name))
            at = row - 0.4 + height * (i + 0.5)
            axis.barh(at, 100 * caught.share, 0.92 * height, color=COLOURS[i % 3], hatch="////" if alarm else None,
                      edgecolor="white", linewidth=0, label=arith if row == 0 else None)  # fmt: skip
            said = f"{100 * caught.share:.0f}{', false alarm' * alarm}"
            axis.text(100 * caught.share + 0.6, at, said, va="center", fontsize=7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 105)
    axis.set_xlabel("mutants caught, per cent of those that change an output")
    axis.set_title("Hatched: it also calls the right engine wrong; such inputs are not counted", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis="x", color="#dddddd", linewidth=0.7)
    axis.legend(title="arithmetic", frameon=False, loc="lower right")
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()
