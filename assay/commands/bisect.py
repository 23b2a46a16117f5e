"""``assay bisect``: which stage of which layer computes something wrong?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from assay.commands import options, tables
from assay.commands.asked import Messages, PromptFile
from assay.commands.comparison import (
    NO_FLOOR,
    Chat,
    Force,
    Ids,
    Junit,
    PathThrough,
    Prompt,
    Runs,
    Tier,
    comparing,
    demand_all_free,
    demand_not_read,
    doubts_of,
    exit_code,
    in_doubt,
    other_samples_reported,
    say_verdict,
    write_junit,
)
from assay.commands.outside import OWN_NOISE
from assay.formats import InputError
from assay.formats.system.atomic_file import replacing
from assay.judging.engines_under_test import UnderTest
from assay.judging.judge import StageReport, judge_stages
from assay.parity import stages
from assay.parity.bisect import Finding
from assay.parity.junit import stage_cases
from assay.parity.minify import alone, repro_of, worst
from assay.parity.precision import Key
from assay.parity.verdict import Verdict
from assay.parity.ways import Generating, Window


def command(
    prompt: Prompt = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    cache_type: options.CacheType = None,
    prompt_file: PromptFile = None,
    ids: Ids = None,
    messages: Messages = None,
    chat: Chat = False,
    path: PathThrough = "prefill",
    runs: Runs = 4,
    tier: Tier = "quick",
    minify: Annotated[
        Path | None, typer.Option(help="Write a short NumPy script (.py), and its arrays, that shows the wrong number.")
    ] = None,
    junit: Junit = None,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Find every stage that is wrong by itself, and prove it by transplanting the truth there.

    With --minify FILE.py the first of them comes as a script of its own, which needs NumPy and the FILE.npz that is
    written beside it. Exit codes as for 'assay parity'.
    """
    if minify is not None and minify.suffix != ".py":
        raise InputError(f"{minify.name!r} is not the name of a script", where="--minify", remedy="Give FILE.py")
    demand_all_free(minify, arrays_of(minify), junit, force=force)
    with (other_samples_reported(junit, force=force),
          comparing(prompt, prompt_file, ids, messages, chat, path, model, engine, arith, cache_type, taps=True,
                    tier=tier) as (judged, sample, progress)):  # fmt: skip
        demand_not_read(judged, [prompt_file], minify, arrays_of(minify), junit)
        found = judge_stages(judged, sample, path, runs, progress, tier == "full")
        shown = minify is not None and found is not None and write_repro(minify, judged, found, force=force)
    verdict = found.verdict if found else Verdict.UNCALIBRATED
    finding = found.finding if found else None
    cases = stage_cases(finding, verdict)
    verdict = in_doubt(verdict, judged, chat or messages is not None)
    write_junit(junit, cases, judged, verdict, force=force)
    if as_json:
        said = facts(judged, finding, verdict) | {"minified": str(minify) if shown else None}
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        show(judged, finding, verdict)
    if minify is not None and not as_json:
        tables.line(f"wrote {minify} and {arrays_of(minify)}: run the script" if shown else
                    f"no single number is known to be wrong, so {minify} was not written")  # fmt: skip
    raise typer.Exit(exit_code(verdict))


def facts(judged: UnderTest, finding: Finding | None, verdict: Verdict) -> dict[str, Any]:
    """The ``--json`` object."""
    wrong = [] if not finding else [
        {"stage": key[0], "layer": key[1], "over_floor": finding.ratios[key], **finding.local[key].figures(),
         "tests": finding.tests[key]}
        for key in finding.wrong
    ]  # fmt: skip
    return {"verdict": verdict, "warnings": judged.file.warnings, "wrong": wrong,
            "candidate_forwards": finding.forwards if finding else 0,
            "logits_before": finding.logits_before if finding else None,
            "logits_restored": finding.logits_restored if finding else None}  # fmt: skip


def show(judged: UnderTest, finding: Finding | None, verdict: Verdict) -> None:
    """The table of wrong stages, and what transplanting the truth there does; or the verdict, if there are none."""
    if finding is None:
        say_verdict(verdict, NO_FLOOR)
    elif verdict == Verdict.REFERENCE_SUSPECT:
        say_verdict(verdict, OWN_NOISE)
    elif verdict == Verdict.DOUBTFUL:
        say_verdict(verdict, doubts_of(judged))
    elif not finding.wrong:
        say_verdict(verdict, f": every stage's local error is within the floor ({finding.ratio:.2f} at most)")
    else:
        rows = [(stage, "" if layer is None else str(layer), f"{finding.ratios[stage, layer]:.3g}",
                 f"{(d := finding.local[stage, layer]).relative_l2:.2e}", str(d.position), str(d.channel), str(d.n_bad))
                for stage, layer in finding.wrong]  # fmt: skip
        names = ("wrong stage", "layer", "over floor", "local error", "worst position", "worst channel", "not finite")
        tables.columns(names, rows, right=names[1:])
        tables.line()
        tables.line(f"logits {finding.logits_before:.2e} from the truth; with the truth transplanted there "
                    f"{finding.logits_restored:.2e}")  # fmt: skip


def arrays_of(script: Path | None) -> Path | None:
    """Where the arrays of a script are."""
    return None if script is None else script.with_suffix(".npz")


def write_repro(script: Path, judged: UnderTest, found: StageReport, *, force: bool) -> bool:
    """Write the script that shows the first wrong stage, and its arrays.

    False, and nothing, if there is none, or if no single number of it is beyond the floor.
    """
    site = found.finding.site
    if site is None:
        return False
    window = found.site_window
    assert window is not None, "a site is in a window"
    ids = list(window.text[: window.stop])
    truth = near(judged.truth, ids, site[1])
    shown = truth[site][window.start :] if site[0] != "logits" or window.path != "prefill" else truth[site][-1:]
    fault = worst(site, shown_by(judged, window, site), shown, found.floor[site])
    if fault is None:
        return False
    fingerprint = judged.candidate.fingerprint()
    origin = f"{fingerprint['engine']} ({fingerprint.get('arith', '?')}) on {judged.file.path.name}"
    fault = fault._replace(position=fault.position + len(ids) - len(shown))
    repro = repro_of(judged.file, ids, truth, fault, origin)
    with replacing(script.with_suffix(".npz"), force=force) as arrays, replacing(script, force=force) as text:
        np.savez(arrays, **repro.arrays)  # pyright: ignore[reportArgumentType]
        text.write(repro.script.encode())
    return True


def shown_by(judged: UnderTest, window: Window, site: Key) -> np.ndarray:
    """What the candidate computes at ``site`` in a window, fed with the truth, f64 [n_positions, size]."""
    if window.path == "embed":
        return np.asarray(judged.candidate.embed(window.ids), np.float64)
    if window.path == "forward":
        return alone(judged.candidate, window.ids, judged.baseline.activations(window.ids), site)
    return alone(Generating(judged.candidate, window), window.ids, judged.baseline.in_window(window), site)


def near(truth: Any, ids: list[int], layer: int | None) -> stages.Activations:
    """The true activations of one layer, of what enters it, and of the whole model, at every position of ``ids``.

    Of a long text those of all layers are too many to keep.
    """
    wanted = {None, layer, (truth.file.config.n_layers if layer is None else layer) - 1}
    kept: stages.Activations = {}

    def tap(stage: str, layer: int | None, activation: Any) -> Any:
        if layer in wanted:
            kept[stage, layer] = np.array(activation)
        return activation

    truth.forward(ids, tap)
    return kept
