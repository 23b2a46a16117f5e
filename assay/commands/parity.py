"""``assay parity``: does an engine compute what the model file says, stage by stage and token by token?"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.arms import Arms, opened
from assay.commands import options, tables
from assay.commands.run import parse_ids, prompt_text
from assay.judging import PATHS, StageReport, judge_flips, judge_stages
from assay.progress import bar
from formats import InputError
from formats.anatomy import STAGES
from formats.durable import demand_free, replacing
from formats.errors import DIFFERENT, UNDECIDED
from parity.bisect import SLACK
from parity.flips import Account, Positions, account
from parity.report import Cell, Token, page
from parity.verdict import Verdict, of_flips

Prompt = Annotated[str | None, typer.Argument(help="What both engines read; - reads standard input.")]
PromptFile = Annotated[Path | None, typer.Option("--prompt-file", "-f", help="Prompt from a file.")]
Ids = Annotated[str | None, typer.Option(help="Token ids instead of text, forced on both sides: 1,2,3.")]
Chat = Annotated[bool, typer.Option("--chat", help="Each side wraps the prompt in the chat template by itself.")]
PathThrough = Annotated[str, typer.Option("--path", help="How the candidate reads: prefill (all at once) or decode.")]
Runs = Annotated[int, typer.Option(min=2, max=64, help="Noisy runs of the oracle that make the floor; even.")]
QUICK = "def fib(n):\n    if n < 2:\n        return n\n    return"


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
    report: Annotated[Path | None, typer.Option(help="Write a page for a browser, which needs no network.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Judge an engine against the oracle in f64, on one prompt of at most 128 tokens (by default a few lines of code).

    Every stage of every layer is fed with the truth, and its own error held against the error that the declared
    arithmetic has anyway (the floor, from noisy runs of the oracle). Then every token: how probable a flip was,
    and whether it came. Exit code 0: BIT-EQUAL, NOISE or DRIFT; 8: BUG or REFERENCE-SUSPECT; 9: the two sides did not
    read the same; 10: no floor, no verdict.
    """
    text = read_prompt(prompt, prompt_file, ids, path, default=QUICK)
    if report is not None:
        demand_free(report, force=force)
    with opened(options.open_file(model), engine, arith, cache_type, taps=True) as judged, bar() as progress:
        sample = judged.sample(text, forced(ids, chat), chat)
        found = judge_stages(judged, sample, path, runs, progress)
        positions = judge_flips(judged, sample, path, runs, progress)
    counted = account(positions) if positions is not None else None
    verdict = overall(found, counted)
    if report is not None:
        with replacing(report, force=force) as file:
            file.write(as_page(judged, sample, found, positions, verdict).encode())
    if as_json:
        typer.echo(json.dumps(tables.finite(facts(judged, found, counted, verdict, path)), ensure_ascii=False))
    else:
        show(judged, found, counted, verdict, path)
    raise typer.Exit(exit_code(verdict))


def read_prompt(prompt: str | None, prompt_file: Path | None, ids: str | None, path: str,
                default: str | None = None) -> str | None:  # fmt: skip
    """The text both sides are to read, None where ids are forced; InputError for options that make no sense."""
    if path not in PATHS:
        raise InputError(f"there is no path {path!r}", where="--path", remedy=f"Choose one of {', '.join(PATHS)}")
    if (prompt, prompt_file, ids) == (None, None, None):
        prompt = default
    text = prompt_text(prompt, prompt_file, ids)
    return None if ids is not None else text


def forced(ids: str | None, chat: bool) -> list[int] | None:
    """The ids that both sides must read, if they were given; InputError if they are none, or are to be wrapped."""
    if chat and ids is not None:
        raise InputError("--chat and --ids exclude one another", where="--ids", remedy="Ids are final")
    return None if ids is None else parse_ids(ids)


def overall(found: StageReport | None, counted: Account | None) -> Verdict:
    """The worse of the verdicts on stages and on tokens."""
    if found is None:
        return Verdict.UNCALIBRATED
    of_tokens = of_flips(counted, found.declared)
    return found.verdict if found.verdict == Verdict.BIT_EQUAL or of_tokens.green else of_tokens


def exit_code(verdict: Verdict) -> int:
    """0 for green, ``DIFFERENT`` for a fault that was found, ``UNDECIDED`` where nothing was decided."""
    if verdict.green:
        return 0
    return DIFFERENT if verdict in (Verdict.BUG, Verdict.REFERENCE_SUSPECT) else UNDECIDED


def facts(judged: Arms, found: StageReport | None, counted: Account | None, verdict: Verdict,
          path: str) -> dict[str, Any]:  # fmt: skip
    """The ``--json`` object."""
    said: dict[str, Any] = {
        "verdict": verdict,
        "model": options.model_of(judged.file) | {"sha256": judged.file.sha256},
        "engines": {name: getattr(judged, name).fingerprint() for name in ("truth", "oracle", "candidate")},
        "path": path,
        "flips": counted._asdict() if counted else None,
    }
    if found is not None:
        said |= {
            "ids": found.ids,
            "declared": found.declared.name,
            "site": found.finding.site,
            "untouched_by_taps": found.untouched,
            "logits": {"before": found.finding.logits_before, "restored": found.finding.logits_restored},
            "stages": [
                {"stage": stage, "layer": layer, "over_floor": found.ratio((stage, layer)), "own": one._asdict(),
                 "floor": dict(found.floor[stage, layer]), "inherited": found.inherited[stage, layer]._asdict()}
                for (stage, layer), one in found.own.items()
            ],
        }  # fmt: skip
    return said


def as_page(judged: Arms, sample: list[int], found: StageReport | None, positions: Positions | None,
            verdict: Verdict) -> str:  # fmt: skip
    """The page of ``--report``."""
    decode, fingerprint = judged.truth.tokenizer.decode, judged.candidate.fingerprint()
    tokens = [] if positions is None else [
        Token(decode([token]), decode([int(positions.top[i])]), float(positions.margin[i]), float(positions.sigma[i]),
              float(positions.probability[i]), bool(positions.flipped[i]))
        for i, token in enumerate(sample)
    ]  # fmt: skip
    cells = [] if found is None else [
        Cell(stage, layer, found.ratio((stage, layer)), own.relative_l2,
             found.inherited[stage, layer].relative_l2, found.inherited[stage, layer].std_ratio)
        for (stage, layer), own in found.own.items()
    ]  # fmt: skip
    decided = verdict not in (Verdict.UNCALIBRATED, Verdict.SKIPPED)
    return page(
        title=f"{fingerprint['engine']} ({fingerprint.get('arith', '?')}) on {judged.file.path.name}",
        verdict=verdict,
        green=verdict.green if decided else None,
        reason=reason(found, verdict).removeprefix(":").strip() if found else "the engine declares no arithmetic",
        command="assay " + shlex.join(sys.argv[1:]),
        facts={"file": str(judged.file.path), "SHA-256": judged.file.sha256}
        | {f"candidate: {key}": str(value) for key, value in fingerprint.items()}
        | {f"oracle: {key}": str(value) for key, value in judged.oracle.fingerprint().items()},
        cells=cells,
        slack=SLACK,
        tokens=tokens,
        flips=flips_line(account(positions)) if positions is not None else "",
    )


def show(judged: Arms, found: StageReport | None, counted: Account | None, verdict: Verdict, path: str) -> None:
    """The table of stages, the flips, and the verdict with its site or its source."""
    if found is None:
        tables.line(("UNCALIBRATED", "bold red"), ": the engine does not say how it computes, so there is no floor")
        return
    rows = []
    for stage in STAGES:
        keys = [key for key in found.own if key[0] == stage]
        if not keys:
            continue
        worst = max(keys, key=found.ratio)
        one, ratios = found.own[worst], [found.inherited[key].std_ratio for key in keys]
        rows.append([stage, "" if worst[1] is None else str(worst[1]), f"{found.ratio(worst):.2f}",
                     f"{one.relative_l2:.2e}", f"{found.floor[worst]['relative_l2']:.2e}", f"{one.max_ulp:.3g}",
                     f"{one.bias:+.3f}", f"{max(found.inherited[key].relative_l2 for key in keys):.2e}",
                     f"{min(ratios):.4f}..{max(ratios):.4f}"])  # fmt: skip
    names = ("stage", "layer", "over floor", "own error", "floor", "max ulp", "bias", "inherited", "std ratio")
    tables.columns(names, rows, right=names[1:])
    tables.line()
    tables.line(f"{len(found.ids)} tokens by {path}; declared: {found.declared.name}; "
                f"taps move the logits by {found.untouched:.1e}")  # fmt: skip
    if counted:
        tables.line(flips_line(counted))
    tables.line((verdict, "green" if verdict.green else "bold red"), reason(found, verdict))


def flips_line(counted: Account) -> str:
    """The flips in one line."""
    return (f"{counted.observed} of {counted.positions:,} tokens flipped, {counted.expected:.2f} expected "
            f"(p = {counted.p_value:.3f}), {len(counted.unexplained)} unexplained; KL {counted.kl_mean:.2e} "
            f"± {counted.kl_error:.0e} nats, top-1 {counted.top1:.2%}")  # fmt: skip


def reason(found: StageReport, verdict: Verdict) -> str:
    """What follows the verdict's name."""
    if found.finding.site is not None:
        stage, layer = found.finding.site
        place = stage if layer is None else f"{stage} of layer {layer}"
        more = f", and at {len(found.finding.wrong) - 1} more" if len(found.finding.wrong) > 1 else ""
        return f" at {place}: its own error is {found.finding.ratio:.3g} floors{more}"
    if verdict == Verdict.DRIFT:
        return f": {found.declared.name} explain it; no stage is beyond {found.finding.ratio:.2f} floors"
    if verdict == Verdict.BUG:
        return " in the tokens: no stage is beyond the floor, but flips are"
    return f": no stage is beyond {found.finding.ratio:.2f} floors"
