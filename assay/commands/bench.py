"""``assay bench``: how fast, beside a peer, on this machine, now."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from assay import peers
from assay.benchmark import plot as bench_plot
from assay.benchmark.bench import BATCH, DECODE_AT, DECODE_TOKENS, MAX_BATCH, PREFILL, bench, workloads_of
from assay.commands import options
from assay.engines import find
from assay.formats import InputError
from assay.formats.system.atomic_file import demand_apart
from assay.formats.system.progress import quiet
from assay.progress import bar


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    cache_type: options.CacheType = None,
    vs: Annotated[str | None, typer.Option("--vs", help=f"Take turns with: {', '.join(peers.PEERS)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Measured runs of each workload.")] = 5,
    prefill: Annotated[str, typer.Option(help="Prompt lengths to read.")] = ",".join(map(str, PREFILL)),
    decode_at: Annotated[
        str, typer.Option(help=f"Context lengths to decode {DECODE_TOKENS} tokens at; 0 is as short as can be.")
    ] = ",".join(map(str, DECODE_AT)),
    batch: Annotated[
        str, typer.Option(help=f"Numbers of sequences to decode at once, at most {MAX_BATCH}.")
    ] = ",".join(map(str, BATCH)),
    plot: Annotated[Path | None, typer.Option(help="Draw the speeds into this PNG file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With --plot: overwrite the file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Measure load, first token, prefill, decode, batches and memory; with --vs alternately with an external engine.

    An empty list ('') leaves a kind of workload out; what exceeds the model's context is left out and named.
    """
    sizes = sizes_of(prefill, decode_at, batch)
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
    facts = bench(file, workloads, engine=engine, arith=arith, cache_type=cache_type, peer=vs, rounds=rounds,
                  opened_s=opened_s, report=quiet if as_json else options.say)  # fmt: skip
    facts = {"model": options.model_of(file), **facts, "left_out": left_out}
    if plot is not None:
        bench_plot.draw(facts, plot)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        show(facts)


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


def show(facts: dict[str, Any]) -> None:
    """The results as a table, and a few lines below it."""
    peer = facts["peer"]
    names = [facts["engine"]["engine"], *([peer["name"]] if peer else [])]
    columns = ["workload", *(f"{name} tokens/s" for name in names), *(["ratio"] if peer else [])]
    rows, last = [], None
    for row in facts["results"]:
        if last not in (None, row["kind"]):
            rows.append([""] * len(columns))
        last = row["kind"]
        cells = [spread(row[name], 1) for name in names]
        rows.append([row["name"], *cells, *([spread(row["ratio"], 2)] if peer else [])])
    beside = f" beside {peer['name']} in {peer['arith']}" if peer else ""
    title = f"{facts['model']['name']}: {names[0]} in {facts['engine']['arith']}{beside}"
    options.show(title, columns, rows)
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
    if decode:
        device = facts["engine"]["device"]
        reader = device if device.startswith(("gpu", "tpu")) else f"{facts['machine']['threads']} threads"
        lines.append(f"{decode['name']} reads {facts['weight_bytes_per_token'] / 1e6:.0f} MB of weights a token: "
                     f"{decode['bandwidth_share']:.0%} of the {facts['read_bandwidth_bytes_s'] / 1e9:.1f} GB/s read by "
                     f"{reader} here")  # fmt: skip
    if facts["batch"] != "together" and any(row["kind"] == "batch" for row in facts["results"]):
        lines.append(f"batch: {facts['engine']['engine']} decodes its sequences {facts['batch']}")
    return lines


def of_the_peer(facts: dict[str, Any]) -> list[str]:
    """The same of the peer, if there is one."""
    peer = facts["peer"]
    if not peer:
        return []
    peaks = ", ".join(f"{peak / 1e6:.0f}" for peak in peer["peak_rss_bytes"] if peak) or "unknown"
    return [f"{peer['name']}: load {peer['load_s']:.1f} s, first token {peer['first_token_s']:.1f} s after its process "
            f"started; peak RSS {peaks} MB"]  # fmt: skip
