"""``assay parity``: does an engine compute what the model file says, stage by stage and token by token?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from assay.commands import options, tables
from assay.commands.asked import Messages, PromptFile
from assay.commands.comparison import (
    DECLARE,
    NO_FLOOR,
    Chat,
    Force,
    Ids,
    Junit,
    PathThrough,
    Prompt,
    Runs,
    Tier,
    as_counts,
    as_typed,
    comparing,
    demand_all_free,
    demand_not_read,
    doubts_of,
    exit_code,
    flips_line,
    flips_of,
    in_doubt,
    logits_line,
    other_samples_reported,
    say_verdict,
    write_junit,
)
from assay.commands.dumped import comparing_dump
from assay.commands.outside import Independent, Outside, Witness, asked_outside, demand_witness
from assay.formats.contract.config import STAGES
from assay.formats.qwen2.doubts import MARKER
from assay.formats.system.atomic_file import replacing
from assay.judging.dumps import has_logits, judge_dump
from assay.judging.engines_under_test import UnderTest
from assay.judging.judge import StageReport, judge_flips, judge_stages
from assay.judging.report import said_of_stages, stage_facts
from assay.parity.flips import Account, Positions, account
from assay.parity.floor import TOLERANCE_FACTOR
from assay.parity.junit import Case, stage_cases, token_case
from assay.parity.over_declaration import declared_more
from assay.parity.report import Cell, Token, page
from assay.parity.sample import place
from assay.parity.verdict import Verdict, faults_of, of_flips

UNNAMED = "dump of weights that it does not name"
"""How another tool's dump was read: that it is of this model is not verified."""


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
    dump: Annotated[
        Path | None, typer.Option(help="Judge the stages in this folder ('assay trace', or APRT) instead of an engine.")
    ] = None,
    independent: Independent = False,
    witness: Witness = None,
    report: Annotated[Path | None, typer.Option(help="Write a page for a browser; it needs no network.")] = None,
    junit: Junit = None,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Judge an engine against the oracle in f64, on one prompt (by default code that crosses the engine's boundaries).

    Every stage of every layer is fed with the truth, in the programs that generate, and its local error held against
    the error that the declared arithmetic has anyway (the floor, from noisy runs of the oracle); of more than 128
    tokens in windows: at the beginning, around a boundary that the engine declares (a block of attention, a cache that
    grows), at the end. Then every token: how probable a flip was, and whether it came. With --dump no engine is run:
    the oracle is fed with what was dumped. Exit code 0: BIT-EQUAL, NOISE or DRIFT; 8: BUG, or REFERENCE-SUSPECT (what
    all rests on is contradicted); 9: the two sides did not read the same; 10: no floor, or a chat in doubt.
    """
    demand_all_free(report, junit, force=force)
    asked = (prompt, prompt_file, ids, messages, chat, path, model, engine, arith, cache_type)
    with (other_samples_reported(junit, force=force),
          comparing(*asked, taps=True, tier=tier) if dump is None else
          comparing_dump(dump, *asked) as (judged, sample, progress)):  # fmt: skip
        demand_not_read(judged, [prompt_file, *(dump.rglob("*") if dump else ())], report, junit)
        demand_witness(judged, witness)
        if dump is None:
            found = judge_stages(judged, sample, path, runs, progress, tier == "full")
            numbers = found is None or found.untouched is not None
        else:
            found, numbers = judge_dump(judged, runs, progress), has_logits(judged.candidate)
        # Tokens of logits that are not numbers, or were not dumped: nothing to count.
        positions = judge_flips(judged, sample, path, runs, progress) if numbers else None
        outside = asked_outside(judged, sample, runs, positions, progress, independent, witness)
    if dump is not None:
        chat = chat or MARKER.search(judged.candidate.sample.text or "") is not None
        path = "dump" if judged.candidate.weights else UNNAMED
    counted = account(positions) if positions is not None else None
    verdict = outside.over(in_doubt(overall(found, counted), judged, chat or messages is not None))
    write_page(report, lambda: as_page(judged, sample, found, positions, counted, verdict, outside), force=force)
    write_junit(junit, [*cases(found, counted), *outside.cases()], judged, verdict, force=force)
    if as_json:
        said = facts(judged, found, counted, verdict, path) | outside.facts()
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        show(judged, found, counted, verdict, path, outside)
    raise typer.Exit(exit_code(verdict))


def write_page(path: Path | None, page: Callable[[], str], *, force: bool) -> None:
    """The page, if one is asked for."""
    if path is not None:
        with replacing(path, force=force) as file:
            file.write(page().encode())


def overall(found: StageReport | None, counted: Account | None) -> Verdict:
    """The worse of the verdicts on stages and on tokens."""
    if found is None:
        return Verdict.UNCALIBRATED
    of_tokens = of_flips(counted, found.declared)
    return of_tokens if found.verdict.green and of_tokens == Verdict.BUG else found.verdict


def cases(found: StageReport | None, counted: Account | None) -> list[Case]:
    """The test cases of ``--junit``."""
    if found is None:
        return [*stage_cases(None, Verdict.UNCALIBRATED), token_case(Verdict.UNCALIBRATED, "")]
    tokens = token_case(of_flips(counted, found.declared), flips_of(counted))
    return [*stage_cases(found.finding, found.verdict), tokens]


def facts(judged: UnderTest, found: StageReport | None, counted: Account | None, verdict: Verdict,
          path: str) -> dict[str, Any]:  # fmt: skip
    """The ``--json`` object."""
    said: dict[str, Any] = {
        "verdict": verdict,
        "model": options.model_of(judged.file) | {"sha256": judged.file.sha256},
        "engines": {name: getattr(judged, name).fingerprint() for name in ("truth", "oracle", "candidate")},
        "path": path,
        "flips": as_counts(counted) if counted else None,
    }
    if found is not None:
        said |= {
            "ids": found.ids,
            "declared": found.declared.name,
            "declaration": found.declared.declaration.to_json() if found.declared.declaration else None,
            "forgives": found.declared.declaration.describe() if found.declared.declaration else [],
            "findings": declared_more(found.declared, found.finding.local, found.floor),
            "site": found.finding.site,
            "untouched_by_taps": found.untouched,
            "windows": [[window.start, window.stop] for window in found.windows],
            "weaker": found.weaker or None,
            "logits": {"before": found.finding.logits_before, "restored": found.finding.logits_restored},
            "stages": stage_facts(found),
        }  # fmt: skip
    return said


def as_page(judged: UnderTest, sample: list[int], found: StageReport | None, positions: Positions | None,
            counted: Account | None, verdict: Verdict, outside: Outside) -> str:  # fmt: skip
    """The page of ``--report``."""
    decode, fingerprint = judged.truth.tokenizer.decode, judged.candidate.fingerprint()
    tokens = [] if positions is None else [
        Token(decode([token]), decode([int(positions.top[i])]), float(positions.margin[i]), float(positions.sigma[i]),
              float(positions.probability[i]), bool(positions.flipped[i]))
        for i, token in enumerate(sample)
    ]  # fmt: skip
    cells = [] if found is None else [
        Cell(stage, layer, found.finding.ratios[stage, layer], one.relative_l2,
             found.finding.accumulated[stage, layer].relative_l2, found.finding.accumulated[stage, layer].std_ratio)
        for (stage, layer), one in found.finding.local.items()
    ]  # fmt: skip
    decided = verdict not in (Verdict.UNCALIBRATED, Verdict.DOUBTFUL, Verdict.SKIPPED)
    return page(
        title=f"{fingerprint['engine']} ({fingerprint.get('arith', '?')}) on {judged.file.path.name}",
        verdict=verdict,
        green=verdict.green if decided else None,
        reason=(reason(judged, found, counted, verdict, outside).removeprefix(": ")
                if found or verdict == Verdict.REFERENCE_SUSPECT else "no arithmetic is declared"),
        command=as_typed(),
        facts={"file": str(judged.file.path), "SHA-256": judged.file.sha256}
        | {f"warning {i}": warning for i, warning in enumerate(judged.file.warnings, 1)}
        | {f"candidate: {key}": str(value) for key, value in fingerprint.items()}
        | {f"oracle: {key}": str(value) for key, value in judged.oracle.fingerprint().items()},
        cells=cells,
        tolerance=TOLERANCE_FACTOR,
        tokens=tokens,
        flips=flips_line(counted) if counted else "",
    )


def show(judged: UnderTest, found: StageReport | None, counted: Account | None, verdict: Verdict,
         path: str, outside: Outside) -> None:  # fmt: skip
    """The table of stages, the flips, and the verdict with its site or its source."""
    if found is None:
        outside.show()
        no_floor = NO_FLOOR + (DECLARE if path == UNNAMED else "")
        say_verdict(verdict, outside.accusation() if verdict == Verdict.REFERENCE_SUSPECT else no_floor)
        return
    rows = []
    for stage in STAGES:
        keys = [key for key in found.finding.local if key[0] == stage]
        if not keys:
            continue
        worst = max(keys, key=found.finding.ratios.__getitem__)
        one, ratios = found.finding.local[worst], [found.finding.accumulated[key].std_ratio for key in keys]
        rows.append([stage, "" if worst[1] is None else str(worst[1]), f"{found.finding.ratios[worst]:.2f}",
                     f"{one.relative_l2:.2e}", f"{found.floor[worst].relative_l2:.2e}", f"{one.max_ulp:.3g}",
                     f"{one.bias:+.3f}", f"{max(found.finding.accumulated[key].relative_l2 for key in keys):.2e}",
                     f"{min(ratios):.4f}..{max(ratios):.4f}"])  # fmt: skip
    names = ("stage", "layer", "over floor", "local error", "floor", "max ulp", "bias", "accumulated", "std ratio")
    tables.columns(names, rows, right=names[1:])
    tables.line()
    taps = "the logits are not numbers" if found.untouched is None else f"taps move the logits by {found.untouched:.1e}"
    taps = taps if found.finding.forwards else "no engine was run"
    tables.line(f"{len(found.ids)} tokens by {path}; declared: {found.declared.name}; {taps}")
    for line in declared_more(found.declared, found.finding.local, found.floor):
        tables.line(f"note: the engine {line}")
    if found.windows:
        tables.line(covered(found))
    tables.line(unseen(found))
    if counted:
        tables.line(flips_line(counted))
        tables.line(logits_line(counted))
    outside.show()
    say_verdict(verdict, reason(judged, found, counted, verdict, outside))


def covered(found: StageReport) -> str:
    """The positions at which stages were judged, and in which programs."""
    spans = ", ".join(f"{window.start}-{window.stop - 1}" for window in found.windows)
    return f"stages judged at positions {spans}" + (f", by {found.weaker}" if found.weaker else "")


def unseen(found: StageReport) -> str:
    """What the stages cannot show, in one line: the smallest faults that would have been seen, in the worst stage."""
    worst = {kind: max((getattr(one, kind), key) for key, one in found.visible.items() if getattr(one, kind) < np.inf)
             for kind in ("gain", "row", "element")}  # fmt: skip
    said = [f"{what} below {size:.2g}{of} ({key[0]})" for what, of, (size, key) in (
        ("a gain", "", worst["gain"]), ("a channel's", "", worst["row"]),
        ("one number's error", " of its position's rms", worst["element"]))]  # fmt: skip
    return f"not seen, at the worst stage: {', '.join(said)}; nothing behind token {len(found.ids)}"


def reason(judged: UnderTest, found: StageReport | None, counted: Account | None, verdict: Verdict,
           outside: Outside) -> str:  # fmt: skip
    """What follows the verdict's name."""
    if verdict == Verdict.REFERENCE_SUSPECT or found is None:
        site = found.suspect if found else None
        return outside.accusation() + (f" ({place(*site)})" if site else "")
    if verdict == Verdict.DOUBTFUL:
        return doubts_of(judged)
    if found.finding.site is not None or found.suspect is not None or found.disturbed:
        return f"{' at' if verdict == Verdict.BUG and found.finding.site else ':'} {said_of_stages(found)}"
    if verdict == Verdict.DRIFT:
        return f": {found.declared.name} explain it; no stage is beyond {found.finding.ratio:.2f} floors"
    if verdict == Verdict.BUG and counted:
        return f" in the tokens, though no stage is beyond the floor: {'; '.join(faults_of(counted))}"
    return f": no stage is beyond {found.finding.ratio:.2f} floors"
