"""``assay bench``: how fast, beside an external engine, on this machine, now."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from assay import peers
from assay.benchmark import plot as bench_plot
from assay.benchmark.bench import (
    BATCH,
    DECODE_AT,
    DECODE_TOKENS,
    MAX_BATCH,
    PREFILL,
    Stop,
    bench,
    workloads_of,
)
from assay.commands import options, tables
from assay.engines import find
from assay.formats import InputError
from assay.formats.system.atomic_file import demand_apart
from assay.formats.system.progress import quiet
from assay.progress import bar

EXIT_CODES = {Stop.BUDGET: 0, Stop.HUNG_UP: 129, Stop.INTERRUPTED: 130, Stop.TERMINATED: 143}


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    cache_type: options.CacheType = None,
    vs: Annotated[
        str | None, typer.Option("--vs", help=f"External engine to alternate with: {' or '.join(peers.PEERS)}.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Measured runs of each workload.")] = 5,
    prefill: Annotated[str, typer.Option(help="Prompt lengths to read, in tokens.")] = ",".join(map(str, PREFILL)),
    decode_at: Annotated[
        str, typer.Option(help=f"Context lengths to decode {DECODE_TOKENS} tokens at; 0 is the shortest.")
    ] = ",".join(map(str, DECODE_AT)),
    batch: Annotated[
        str, typer.Option(help=f"Numbers of sequences to decode at once, at most {MAX_BATCH}.")
    ] = ",".join(map(str, BATCH)),
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which no further round begins; what is left out is named.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speeds in this PNG file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With --plot: overwrite the file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Measure load, first token, prefill, decode, batches and memory; with --vs alternately with an external engine.

    An empty list ('') leaves a kind of workload out; what exceeds the model's context is left out and named. Rows come
    as they are measured; a benchmark that is stopped (--budget, Ctrl-C, SIGTERM, SIGHUP, an engine that fails) still
    prints what it has. Exit code 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    sizes = sizes_of(prefill, decode_at, batch)
    if budget is not None and not budget >= 0:
        raise InputError(f"{budget:g} seconds cannot be a budget", where="--budget", remedy="Give 0 or more")
    if vs is not None:
        peers.require(vs)
    options.demand_effect("--force", force and plot is None, "without --plot no file is written")
    if plot is not None:
        bench_plot.check(plot, force=force)
    file, opened_s = opened(model)
    if plot is not None:
        demand_apart(plot, file.files)
    workloads, left_out = workloads_of(file, *sizes)
    for workload in left_out:
        options.say(f"{workload['name']} is left out: {workload['reason']}")
    shown = Rows(file, vs, rounds, quiet=as_json)
    facts = bench(file, workloads, engine=engine, arith=arith, cache_type=cache_type, peer=vs, rounds=rounds,
                  opened_s=opened_s, budget=budget, watch=shown.add, report=quiet if as_json else options.say)
    finish({"model": options.model_of(file), **facts, "left_out": left_out + facts["left_out"]}, shown, plot)


def finish(facts: dict[str, Any], shown: Rows, plot: Path | None) -> None:
    """Show and draw what was measured, and exit as what stopped it says."""
    stopped, error = facts["stopped"], facts.pop("error")
    facts["complete"] = stopped is None
    if error is not None:
        facts["error"] = options.error_of(error)
    if plot is not None and facts["results"]:
        bench_plot.draw(facts, plot)
    if shown.quiet:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        shown.end(facts)
    if stopped is not None:
        options.say(" ".join(f"stopped: {error or stopped}".split()))
        raise typer.Exit(error.exit_code if error else EXIT_CODES[stopped])


def sizes_of(prefill: str, decode_at: str, batch: str) -> tuple[list[int], list[int], list[int]]:
    """The three lists as numbers; InputError for what is not a list."""
    return (
        numbers(prefill, "--prefill", least=1),
        numbers(decode_at, "--decode-at", least=0),
        numbers(batch, "--batch", least=1, most=MAX_BATCH),
    )


def numbers(text: str, where: str, *, least: int, most: int = 10**9) -> list[int]:
    """``"32,128"`` -> [32, 128], each from ``least`` to ``most``; InputError otherwise."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < 11 and least <= int(part) <= most for part in parts):
        raise InputError(f"{text[:40]!r} is not a list of numbers from {least} to {most}", where=where,
                         remedy="Write them as 32,128")  # fmt: skip
    return [int(part) for part in parts]


def opened(model: str) -> tuple[Any, float]:
    """The model file, and the seconds that opening took; fetching it, on first use, is not among them."""
    with bar() as progress:
        path = find(model, progress=progress)
    started = time.perf_counter()
    file = options.open_file(str(path))
    return file, time.perf_counter() - started


class Rows:
    """The table, row after row: nobody waits for the last to see the first, and what was shown cannot be lost."""

    def __init__(self, file: Any, peer: str | None, rounds: int, *, quiet: bool) -> None:
        self.file, self.peer, self.rounds, self.quiet = file, peer, rounds, quiet
        self.last = ""

    def add(self, row: dict[str, Any], facts: dict[str, Any]) -> None:
        """Show one row, below the heading if it is the first; ``facts``: what is known so far."""
        if self.quiet:
            return
        names = [facts["engine"]["engine"], *([self.peer] if self.peer else [])]
        if not self.last:
            beside = f" beside {self.peer} in {facts['peer']['arith']}" if self.peer else ""
            tables.line(f"{self.file.name}: {names[0]} in {facts['engine']['arith']}{beside}")
            self._show("workload", *(f"{name} tokens/s" for name in names), *(["ratio"] if self.peer else []))
        elif self.last != row["kind"]:
            tables.line()
        self.last = row["kind"]
        cells = [spread(row[name], 1) for name in names]
        n = len(row[names[0]]["rounds"])
        fewer = [] if n == self.rounds else [f"{n} of {self.rounds} rounds"]
        self._show(row["name"], *cells, *([spread(row["ratio"], 2)] if self.peer else []), *fewer)

    def _show(self, name: str, *cells: str) -> None:
        """One line; columns as wide as any speed will be."""
        tables.line(f"{name:<15}  " + "  ".join(f"{cell:<26}" for cell in cells).rstrip())

    def end(self, facts: dict[str, Any]) -> None:
        """Show the rows that are not complete, what is left out, and a few lines below the table."""
        for row in facts["results"]:
            if not row["complete"]:
                self.add(row, facts)
        for workload in facts["left_out"]:
            if workload["reason"] == facts["stopped"]:
                options.say(f"{workload['name']} is left out: {workload['reason']}")
        for line in [*of_us(facts), *of_the_peer(facts)]:
            typer.echo(line)


def spread(values: dict[str, Any], digits: int) -> str:
    """``18.7 (17.3 .. 21.0)``: the median and the extremes."""
    return "{:.{d}f} ({:.{d}f} .. {:.{d}f})".format(*(values[key] for key in ("median", "low", "high")), d=digits)


def of_us(facts: dict[str, Any]) -> list[str]:
    """What there is to say of our engine beside the table."""
    first, peak = facts["first_token"], facts["peak_rss_bytes"]
    since_start = first["since_process_start_s"]
    cold = "" if since_start is None else f"{since_start:.1f} s after the process started, "
    lines = [
        f"load {facts['load_s']:.1f} s; first token {cold}{first['since_open_s']:.1f} s after the file was opened",
        f"compile {first['compile_s']:.1f} s for the first token, {facts['compile_s']:.1f} s for everything",
        f"peak RSS {peak / 1e6:.0f} MB ({first['peak_rss_bytes'] / 1e6:.0f} MB up to the first token), "
        f"file {facts['file_bytes'] / 1e6:.0f} MB",
    ]
    decode = next((row for row in facts["results"] if row["kind"] == "decode"), None)
    if decode and facts["read_bandwidth_bytes_s"]:
        device = facts["engine"]["device"]
        reader = device if device.startswith(("gpu", "tpu")) else f"{facts['machine']['threads']} threads"
        lines.append(f"{decode['name']} reads {facts['weight_bytes_per_token'] / 1e6:.0f} MB of weights a token: "
                     f"{decode['bandwidth_share']:.0%} of the {facts['read_bandwidth_bytes_s'] / 1e9:.1f} GB/s read by "
                     f"{reader} here")  # fmt: skip
    if facts["batch"] != "together" and any(row["kind"] == "batch" for row in facts["results"]):
        lines.append(f"batch: {facts['engine']['engine']} decodes its sequences {facts['batch']}")
    return lines


def of_the_peer(facts: dict[str, Any]) -> list[str]:
    """The same of the external engine, if there is one."""
    peer = facts["peer"]
    if not peer:
        return []
    peaks = ", ".join(f"{peak / 1e6:.0f}" for peak in peer["peak_rss_bytes"] if peak) or "unknown"
    return [f"{peer['name']}: load {peer['load_s']:.1f} s, first token {peer['first_token_s']:.1f} s after its process "
            f"started; peak RSS {peaks} MB"]  # fmt: skip
