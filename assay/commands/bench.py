"""``assay bench``: how fast, beside a peer, on this machine, now."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from assay.bench import DECODE_AT, PREFILL, bench
from assay.commands import options
from formats import InputError


def command(
    model: Annotated[str, typer.Argument(help="A path, a catalogue name, or builtin.")] = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    vs: Annotated[str | None, typer.Option("--vs", help="Measure llama.cpp in turn with ours.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Measured runs of each workload.")] = 5,
    prefill: Annotated[str, typer.Option(help="Prompt lengths to read.")] = ",".join(map(str, PREFILL)),
    decode_at: Annotated[str, typer.Option(help="Context lengths to decode at.")] = ",".join(map(str, DECODE_AT)),
    as_json: options.Json = False,
) -> None:
    """Measure load, first token, prefill and decode; with --vs alternately with a peer."""
    lengths, contexts = numbers(prefill, "--prefill"), numbers(decode_at, "--decode-at")
    file = options.open_file(model)
    facts = bench(file, engine=engine, arith=arith, peer=vs, rounds=rounds, prefill=lengths, decode_at=contexts,
                  report=lambda line: None if as_json else options.say(line))  # fmt: skip
    facts = {"model": options.model_of(file), **facts}
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        show(facts)


def numbers(text: str, where: str) -> list[int]:
    """``"32,128"`` -> [32, 128], each at least 1."""
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{text[:40]!r} is not a list of lengths", where=where, remedy="Write them as 32,128")
    return [int(part) for part in parts]


def show(facts: dict[str, Any]) -> None:
    """The results as a table, and a few lines below it."""
    names = [facts["engine"]["engine"], *([facts["peer"]] if facts["peer"] else [])]
    rows = []
    for row in facts["results"]:
        cells = [f"{s['median']:.1f} ({s['low']:.1f} .. {s['high']:.1f})" for s in (row[n] for n in names if n in row)]
        ratio = [f"{row['ratio']:.2f}"] if "ratio" in row else []
        rows.append([f"{row['kind']} {'of' if row['kind'] == 'prefill' else 'at'} {row['tokens']}", *cells, *ratio])
    columns = ["workload", *(f"{name} tokens/s" for name in names), *(["ratio"] if facts["peer"] else [])]
    options.show(f"{facts['model']['name']}, {facts['engine']['arith']}", columns, rows)
    first = facts["first_token"]
    typer.echo(f"open {facts['open_s']:.1f} s, first token {first['cold_s']:.1f} s after the file was opened "
                  f"(compile {first['compile_s']:.1f} s)")  # fmt: skip
    typer.echo(f"peak RSS {facts['peak_rss_bytes'] / 1e6:.0f} MB, file {facts['file_bytes'] / 1e6:.0f} MB")
    decode = next((row for row in facts["results"] if row["kind"] == "decode"), None)
    if decode:
        share = decode[names[0]]["median"] * facts["weight_bytes_per_token"] / facts["read_bandwidth_bytes_s"]
        typer.echo(f"decode reads {facts['weight_bytes_per_token'] / 1e6:.0f} MB a token: {share:.0%} of the "
                      f"{facts['read_bandwidth_bytes_s'] / 1e9:.1f} GB/s that two threads read here")  # fmt: skip
