"""``assay bisect``: which stage of which layer computes something wrong?"""

from __future__ import annotations

import json

import typer

from assay.commands import options, tables
from assay.commands.comparison import (
    NO_FLOOR,
    QUICK,
    Chat,
    Ids,
    PathThrough,
    Prompt,
    PromptFile,
    Runs,
    comparing,
    exit_code,
    say_verdict,
)
from assay.judging import judge_stages
from parity.verdict import Verdict


def command(
    prompt: Prompt = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    cache_type: options.CacheType = None,
    prompt_file: PromptFile = None,
    ids: Ids = None,
    chat: Chat = False,
    path: PathThrough = "prefill",
    runs: Runs = 4,
    as_json: options.Json = False,
) -> None:
    """Find every stage that is wrong by itself, and prove it by transplanting the truth there.

    Exit codes as for 'assay parity'.
    """
    with comparing(prompt, prompt_file, ids, chat, path, model, engine, arith, cache_type, taps=True,
                   default=QUICK) as (judged, sample, progress):  # fmt: skip
        found = judge_stages(judged, sample, path, runs, progress)
    verdict = found.verdict if found else Verdict.UNCALIBRATED
    finding = found.finding if found else None
    if as_json:
        wrong = [] if not finding else [
            {"stage": key[0], "layer": key[1], "over_floor": finding.ratios[key], **finding.own[key]._asdict()}
            for key in finding.wrong
        ]  # fmt: skip
        said = {"verdict": verdict, "wrong": wrong, "candidate_forwards": finding.forwards if finding else 0,
                "logits_before": finding.logits_before if finding else None,
                "logits_restored": finding.logits_restored if finding else None}  # fmt: skip
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    elif finding is None:
        say_verdict(verdict, NO_FLOOR)
    elif not finding.wrong:
        say_verdict(verdict, f": every stage's own error is within the floor ({finding.ratio:.2f} at most)")
    else:
        rows = [(stage, "" if layer is None else str(layer), f"{finding.ratios[stage, layer]:.3g}",
                 f"{(d := finding.own[stage, layer]).relative_l2:.2e}", str(d.position), str(d.channel), str(d.n_bad))
                for stage, layer in finding.wrong]  # fmt: skip
        names = ("wrong stage", "layer", "over floor", "own error", "worst position", "worst channel", "not finite")
        tables.columns(names, rows, right=names[1:])
        tables.line()
        tables.line(f"logits {finding.logits_before:.2e} from the truth; with the truth transplanted there "
                    f"{finding.logits_restored:.2e}")  # fmt: skip
    raise typer.Exit(exit_code(verdict))
