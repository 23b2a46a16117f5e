"""``assay flips``: which tokens of a text can flip, and which did?"""

from __future__ import annotations

import json
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
    as_counts,
    as_measures,
    caveat,
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
from assay.commands.outside import Independent, Outside, Witness, asked_outside, demand_witness
from assay.judging.engines_under_test import WINDOW, UnderTest
from assay.judging.judge import judge_flips, judge_free_run
from assay.parity.divergence import TOP, statistics
from assay.parity.flips import IN_DOUBT, Account, Positions, account
from assay.parity.free_run import FreeRun
from assay.parity.junit import token_case
from assay.parity.verdict import Verdict, faults_of, of_flips, remarks_of
from assay.peers.endpoint import is_address

SHOWN = 20
InsecureKey = Annotated[
    bool, typer.Option("--insecure-key", help="Send an endpoint's key over plain http to another machine, too.")
]


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
    free: Annotated[int, typer.Option(min=0, max=WINDOW, help="Tokens that the candidate also writes by itself.")] = 0,
    endpoint_model: Annotated[str | None, typer.Option(help="The model to ask an endpoint for; the only one.")] = None,
    insecure_key: InsecureKey = False,
    independent: Independent = False,
    witness: Witness = None,
    junit: Junit = None,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Predict from the oracle and the floor alone how probable each token's flip is; then look at the candidate.

    A text of any length is read in windows of 256 tokens. --engine may be llama.cpp, too (extra 'peers'), which is
    given the ids and decodes; or the address of an OpenAI-compatible endpoint that names log-probabilities, as
    http://127.0.0.1:8000/v1 (its key: environment variable ASSAY_API_KEY, sent over https or to this machine only), of
    which --arith declares ggml or f32: what cannot be seen from outside. With --free the candidate's own generation
    after the prompt is compared with what the truth writes, too; after each difference it goes on from the truth's
    text. All logits and every row of the vocabulary are held against the same noisy runs. Exit code 0: the floor
    explains it all; 8: not so, or a second reader or a witness contradicts the truth; 10: no floor, or a chat in doubt.
    """
    demand_all_free(junit, force=force)
    with (other_samples_reported(junit, force=force),
          comparing(prompt, prompt_file, ids, messages, chat, path, model, engine, arith, cache_type, taps=False,
                    endpoint_model=endpoint_model,
                    insecure_key=insecure_key) as (judged, sample, progress)):  # fmt: skip
        demand_not_read(judged, [prompt_file], junit)
        demand_witness(judged, witness)
        positions = judge_flips(judged, sample, path, runs, progress)
        written = judge_free_run(judged, sample, free, runs, progress) if free else None
        outside = asked_outside(judged, sample, runs, positions, progress, independent, witness)
    if positions is None:
        write_junit(junit, [token_case(Verdict.UNCALIBRATED, "")], judged, Verdict.UNCALIBRATED, force=force)
        raise end_uncalibrated(DECLARE if is_address(engine) else "", as_json)
    counted = account(positions)
    declared = judged.declared(1 if path == "decode" else len(sample))
    verdict = of_flips(counted, declared)
    cases = [token_case(verdict, flips_of(counted))]
    if written is not None and (of_writing := of_flips(written, judged.declared(1))):
        cases.append(token_case(of_writing, writing_line(as_facts(judged, written)), "writing by itself"))
        verdict = verdict if of_writing.green or not verdict.green else of_writing
    verdict = outside.over(in_doubt(verdict, judged, chat or messages is not None))
    write_junit(junit, [*cases, *outside.cases()], judged, verdict, force=force)
    said = facts(judged, sample, positions, counted, written, verdict) | outside.facts()
    said["remarks"] = remarks_of(counted, declared) if declared else []
    if as_json:
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        show(judged, said, counted, written, outside)
    raise typer.Exit(exit_code(verdict))


def end_uncalibrated(remedy: str, as_json: bool) -> typer.Exit:
    """Say that there is no noise floor, and what can be done about it; the exit to raise."""
    if as_json:
        typer.echo(json.dumps({"verdict": Verdict.UNCALIBRATED}))
    else:
        say_verdict(Verdict.UNCALIBRATED, NO_FLOOR + remedy)
    return typer.Exit(exit_code(Verdict.UNCALIBRATED))


def facts(judged: UnderTest, ids: list[int], positions: Positions, counted: Account, written: FreeRun | None,
          verdict: Verdict) -> dict[str, Any]:  # fmt: skip
    """The ``--json`` object."""
    return {"verdict": verdict, "warnings": judged.file.warnings, "candidate": judged.candidate.fingerprint(),
            **as_counts(counted),
            "statistics": statistics(positions.divergence),
            "free_run": as_facts(judged, written) if written else None,
            "positions_in_doubt": close_calls(judged, ids, positions),
            "margins": np.round(positions.margin, 6).tolist(), "sigmas": positions.sigma.tolist()}  # fmt: skip


def show(judged: UnderTest, said: dict[str, Any], counted: Account, written: FreeRun | None,
         outside: Outside) -> None:  # fmt: skip
    """What ``--json`` says, for people: the tokens in doubt, the counts, and the verdict with its reasons."""
    show_doubtful(said["positions_in_doubt"])
    tables.line(flips_line(counted))
    tables.line(logits_line(counted))
    show_statistics(said["statistics"], counted.kl_is_bound)
    faults = faults_of(counted)
    if written:
        show_writing(said["free_run"])
        faults += [f"{fault} when writing by itself" for fault in faults_of(written)]
    for remark in said["remarks"]:
        tables.line(remark)
    if taken_on_trust := caveat(said["candidate"]):
        tables.line(taken_on_trust)
    outside.show()
    if said["verdict"] == Verdict.REFERENCE_SUSPECT:
        say_verdict(said["verdict"], outside.accusation())
        return
    doubt = doubts_of(judged) if said["verdict"] == Verdict.DOUBTFUL else ""
    say_verdict(said["verdict"], f": {'; '.join(faults)}" if faults else doubt)


def close_calls(judged: UnderTest, ids: list[int], positions: Positions) -> list[dict[str, Any]]:
    """The positions that flipped, least probable first, and then those that the floor could have flipped."""
    doubtful = np.flatnonzero(positions.flipped | (positions.probability >= IN_DOUBT))
    decode = judged.truth.tokenizer.decode
    return [
        {"position": int(i), "after": decode(ids[max(0, i - 7) : i + 1]), "token": decode([int(positions.top[i])]),
         "margin": float(positions.margin[i]), "sigma": float(positions.sigma[i]),
         "probability": float(positions.probability[i]), "flipped": bool(positions.flipped[i]),
         "moved": float(positions.moved[i])}
        for i in sorted(doubtful, key=lambda i: (not positions.flipped[i],
                                                 positions.probability[i] * (1 if positions.flipped[i] else -1)))
    ]  # fmt: skip


def show_doubtful(doubtful: list[dict[str, Any]]) -> None:
    """The table of tokens that could flip."""
    rows = [(str(one["position"]), repr(one["after"]), repr(one["token"]), f"{one['margin']:.4f}",
             f"{one['sigma']:.4f}", f"{one['probability']:.3f}", "flipped" if one["flipped"] else "")
            for one in doubtful[:SHOWN]]  # fmt: skip
    if rows:
        names = ("position", "after", "true token", "margin", "noise", "probability", "")
        tables.columns(names, rows, right=("position", "margin", "noise", "probability"))
        tables.line(f"{len(doubtful):,} tokens in doubt, {len(rows)} shown")
        tables.line()


def show_statistics(said: dict[str, Any], bound: bool) -> None:
    """The most telling of the figures of --kl-divergence; --json has all of them."""
    line = f"KL: median {said['kld_50']:.1e}, 99% {said['kld_99']:.1e}, largest {said['maximum_kld']:.1e}"
    line += " at least: not every token is named" * bound
    if said[f"same_top_{TOP}"] is not None:
        line += f"; {said[f'same_top_{TOP}']:.1%} of the top {TOP} shared"
    if "rms_dp" in said:
        line += f"; next token's probability off by {said['rms_dp']:.2%} rms"
    tables.line(line)


def as_facts(judged: UnderTest, written: FreeRun) -> dict[str, Any]:
    """A generation beside the truth's, with the words that were exchanged."""
    decode = judged.truth.tokenizer.decode
    return {
        "tokens": len(written.answer), "answer": decode(written.answer), "expected": written.expected,
        "observed": written.observed, "p_value": written.p_value, "noise": written.noise,
        "unexplained": len(written.unexplained), "measures": as_measures(written), "wrong": list(written.wrong),
        "splits": [{**split._asdict(), "after": decode(written.answer[max(0, split.at - 6) : split.at]),
                    "true": decode([split.true]), "found": None if split.found is None else decode([split.found])}
                   for split in written.splits],
    }  # fmt: skip


def show_writing(said: dict[str, Any]) -> None:
    """The splits of a generation, and their count."""
    rows = [(str(split["at"]), repr(split["after"]), repr(split["true"]), repr(split["found"]),
             f"{split['margin']:.4f}", f"{split['probability']:.3f}") for split in said["splits"]]  # fmt: skip
    if rows:
        names = ("answer's token", "after", "truth", "candidate", "margin", "probability")
        tables.columns(names, rows, right=("answer's token", "margin", "probability"))
    tables.line(writing_line(said))


def writing_line(said: dict[str, Any]) -> str:
    """The splits of a generation in one line."""
    return (f"writing by itself: parted from the truth at {said['observed']} of {said['tokens']} tokens, "
            f"{said['expected']:.2f} expected (p = {said['p_value']:.3f}), "
            f"{said['unexplained']} unexplained")  # fmt: skip
