"""``assay trace``: every stage of one forward pass into a folder; and two such folders side by side."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands import options, tables
from assay.commands.asked import IDS_HELP, Messages, PromptFile, asked, parse_ids, text_and_ids
from assay.commands.printed import show_printed
from assay.formats import InputError, NumericError
from assay.formats.contract.config import STAGES
from assay.formats.errors import DIFFERENT
from assay.judging.engines_under_test import encoded_by, read_by, rendered_by
from assay.judging.samples import SHORT
from assay.parity.dump import Dump, has_manifest, read
from assay.parity.recorder import Recorder, recording
from assay.parity.sample import Sample, place
from assay.parity.transplant import Compared, compared, demand_same


def command(
    prompt: Annotated[str | None, typer.Argument(help="The text that is read; - reads standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    cache_type: options.CacheType = None,
    prompt_file: PromptFile = None,
    ids: Annotated[str | None, typer.Option(help=f"Token ids instead of text: {IDS_HELP}")] = None,
    messages: Messages = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the chat template, once.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the stages to this folder.")] = None,
    layout: Annotated[
        str, typer.Option(help="Files of the dump: npy, or aprt (those of the APR tools, in f32).")
    ] = "npy",
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Compare dump A with dump B; runs nothing.")
    ] = None,
    eval_callback: Annotated[
        Path | None, typer.Option(help="Judge what llama-eval-callback printed into this file; runs nothing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a dump that exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write every stage of every layer of one forward pass to a folder, or compare two such folders.

    'assay parity --dump DIR' judges what is in one. A comparison is a measurement: two dumps have no floor, so it ends
    with 0 if all differences are finite, however large; 8 if something is a number in one only; 9 if the two did not
    read the same. APRT files of another tool are compared, too, if --ids and -m say what it read with which model. What
    llama-eval-callback prints, the edges of every stage, gets a verdict (0, 8), as far as it goes.
    """
    if compare is not None or eval_callback is not None:
        option = "--eval-callback" if compare is None else "--compare"
        both = compare is not None and eval_callback is not None
        if both or (prompt, prompt_file, messages, out, chat) != (None, None, None, None, False):
            raise InputError("it reads what was written, and writes nothing", where=option,
                             remedy="Leave out PROMPT, --prompt-file, --messages, --chat and --out")  # fmt: skip
        demand_idle(option, {"--engine": engine != "accel", "--arith": compare is not None and arith is not None,
                             "--force": force, "--cache-type": cache_type is not None, "--layout": layout != "npy"})
        forced = None if ids is None else parse_ids(ids)
        if eval_callback is not None:
            show_printed(eval_callback, model, forced, arith, as_json)
        elif compare is not None:
            show_comparison(*both_read(compare, forced, model), as_json)
        return
    if out is None:
        raise InputError("no folder is named to write the stages to", where="--out", remedy="Name one with --out")
    if (prompt, prompt_file, ids, messages) == (None, None, None, None):
        prompt = SHORT
    text, forced = text_and_ids(asked(prompt, prompt_file, ids, messages, chat=chat))
    loaded = options.open_engine(model, engine, arith, True, cache_type=cache_type)
    if text is None:
        sample, literal = read_by(loaded, None, forced, chat), ()
    else:
        loaded.file.check_text(rendered := rendered_by(loaded, text, chat))
        sample, literal = encoded_by(loaded, rendered), rendered.literal
    loaded.file.check_ids(sample.ids)
    with (recording(out, sample, literal, loaded.fingerprint(), layout=layout, force=force) as tap,
          suppress(NumericError)):  # fmt: skip  # of the logits: every stage has been shown by then
        loaded.forward(list(sample.ids), tap)
    show(out, loaded, sample, layout, tap, as_json)


def demand_idle(reader: str, given: dict[str, bool]) -> None:
    """Raise InputError for an option that is given beside ``reader``, where it changes nothing."""
    for name, is_given in given.items():
        options.demand_effect(name, is_given, f"{reader} runs no engine and writes nothing")


def both_read(folders: tuple[Path, Path], forced: list[int] | None, model: str) -> tuple[Dump, Dump]:
    """Two dumps; what they do not say themselves, ``forced`` ids and the ``model`` say."""
    config = None if all(map(has_manifest, folders)) else options.open_file(model).config
    one, other = (read(folder, forced, config) for folder in folders)
    if forced is not None:
        demand_same(Sample(None, tuple(forced), ""), one.sample)
    return one, other


def show(out: Path, loaded: Any, sample: Sample, layout: str, tap: Recorder, as_json: bool) -> None:
    """What was written."""
    if as_json:
        stages = [{**stage, **tap.values[stage["stage"], stage["layer"]]._asdict()} for stage in tap.stages]
        said = {"out": str(out), "layout": layout, "model": options.model_of(loaded.file) | {"sha256": sample.weights},
                "engine": loaded.fingerprint(), "prompt": sample.text, "ids": sample.ids, "stages": stages}  # fmt: skip
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
        return
    rows = []
    for entry in tap.stages:
        of = tap.values[entry["stage"], entry["layer"]]
        shape = " x ".join(map(str, entry["shape"]))
        rows.append([entry["stage"], "" if entry["layer"] is None else str(entry["layer"]), shape,
                     *(f"{value:.4g}" for value in of[:4]), str(of.nan + of.inf)])  # fmt: skip
    names = ("stage", "layer", "shape", "mean", "std", "min", "max", "NaN or Inf")
    tables.columns(names, rows, right=names[1:])
    tables.line()
    tables.line(f"{tables.plural(len(rows), 'stage')} of {tables.plural(len(sample.ids), 'token')} in {out}")


def show_comparison(one: Dump, other: Dump, as_json: bool) -> None:
    """The distance of every stage of a dump to that of another; exits with the code that follows.

    Raises SampleError where the two did not read the same.
    """
    demand_same(one.sample, other.sample)
    pairs = list(compared(one, other))
    unlike = [pair for pair in pairs if not pair.alike]
    remarks = not_compared(one, other)
    if as_json:
        said = {"a": str(one.folder), "b": str(other.folder), "ids": one.ids,
                "engines": {"a": one.fingerprint(), "b": other.fingerprint()},
                "equal": all(pair.equal for pair in pairs), "finite": not unlike, "not_compared": remarks,
                "stages": [{"stage": pair.key[0], "layer": pair.key[1], "equal": pair.equal, **pair.distance.figures()}
                           for pair in pairs]}  # fmt: skip
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        print_comparison(pairs, remarks)
        if unlike:
            tables.line(("DIFFERENT", "bold red"), f" at {place(*unlike[0].key)}: numbers in one dump only")
    raise typer.Exit(DIFFERENT if unlike else 0)


def not_compared(one: Dump, other: Dump) -> list[str]:
    """What the gate could not look at on both sides, and the stages that only one has."""
    known = {"weights": one.weights and other.weights, "rendered text": (one.prompt is None) == (other.prompt is None)}
    remarks = [f"{what}: not named by both" for what, both in known.items() if not both]
    for x, y in ((one, other), (other, one)):
        if alone := [place(*key) for key in x if key not in y]:
            remarks.append(f"{tables.plural(len(alone), 'stage')} that only {x.folder} has, {alone[0]} the first")
    return remarks


def print_comparison(pairs: list[Compared], remarks: list[str]) -> None:
    """A row for each stage, of the layer with the largest distance."""
    rows = []
    for stage in STAGES:
        of_stage = [pair for pair in pairs if pair.key[0] == stage]
        if not of_stage:
            continue
        worst = max(of_stage, key=lambda pair: (not pair.alike, not pair.equal, pair.distance.relative_l2))
        d, ratios = worst.distance, [pair.distance.std_ratio for pair in of_stage]
        rows.append([stage, "" if worst.key[1] is None else str(worst.key[1]),
                     f"{sum(pair.equal for pair in of_stage)}/{len(of_stage)}", f"{d.relative_l2:.2e}",
                     f"{d.worst_position:.2e}", f"{d.max_ulp:.3g}", f"{d.cosine:.6f}",
                     f"{min(ratios):.4f}..{max(ratios):.4f}"])  # fmt: skip
    names = ("stage", "worst layer", "equal", "distance", "worst position", "max ulp", "cosine", "std ratio")
    tables.columns(names, rows, right=names[1:])
    tables.line()
    for remark in remarks:
        tables.line(f"not compared: {remark}")
    if all(pair.equal for pair in pairs):
        tables.line("every stage is equal, bit for bit")
    else:
        tables.line("a measurement, not a verdict: two dumps have no floor ('assay parity --dump' has one)")
