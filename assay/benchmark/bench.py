"""Measuring speed: our engine through the same ``generate`` that users call, a peer in turn with it.

Speed on a shared machine drifts by tens of percent from minute to minute, so what counts is the ratio of two
engines measured alternately, A B A B, in one run: medians, with the extremes beside them.

    prefill of N    tokens/s of reading a prompt of N tokens
    decode at N     tokens/s of the 31 steps after the first token, which comes with the prompt of N tokens (1 for 0).
                    The prompt is read in the unmeasured run and stays read, so the engines' steps lie seconds apart
    batch of N      tokens/s, summed over N sequences that are decoded at once: all their steps by the longest time
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np

from assay import peers
from assay.benchmark.machine import machine, peak_rss, process_age, read_bandwidth, versions
from assay.engines import decodes_together, generate, generate_batch, load
from assay.formats import ModelFile
from assay.formats.system.progress import quiet

PREFILL = (32, 128, 512, 2048)
DECODE_AT = (0, 512, 4096)
BATCH = (1, 4, 16)
MAX_BATCH = 16
"""Sequences that ``accel`` decodes at once; the limit is said before anything is measured."""
DECODE_TOKENS = 32
BATCH_PROMPT = 8
FIRST_PROMPT = 16

Run = Callable[[], tuple[float, float]]
"""One run of a workload by one engine: tokens a second, and seconds it compiled (which do not count)."""


@dataclass(frozen=True)
class Workload:
    """``kind`` is prefill, decode or batch; ``size`` the N of its name."""

    kind: str
    size: int
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int

    @property
    def name(self) -> str:
        """As tables and pictures call it."""
        return name_of(self.kind, self.size)

    @property
    def context(self) -> int:
        """Tokens that a sequence comes to."""
        return len(self.prompts[0]) + self.max_tokens


def name_of(kind: str, size: int) -> str:
    """``prefill of 512``, ``decode at 0``, ``batch of 4``."""
    return f"{kind} {'at' if kind == 'decode' else 'of'} {size}"


def workloads_of(file: ModelFile, prefill: Sequence[int], decode_at: Sequence[int],
                 batch: Sequence[int]) -> tuple[list[Workload], list[dict[str, Any]]]:  # fmt: skip
    """What can be measured on ``file``, and what cannot: ``{"kind", "size", "name", "reason"}``."""
    sizes = [("prefill", n, 1, n, 1) for n in prefill]
    sizes += [("decode", n, 1, max(n, 1), DECODE_TOKENS) for n in decode_at]
    sizes += [("batch", n, n, BATCH_PROMPT, DECODE_TOKENS) for n in batch]
    fit, left_out = [], []
    for kind, size, n_prompts, n_tokens, max_tokens in sizes:
        if n_tokens + max_tokens > file.config.context_length:
            reason = f"{n_tokens} + {max_tokens} tokens exceed the model's context of {file.config.context_length}"
            left_out.append({"kind": kind, "size": size, "name": name_of(kind, size), "reason": reason})
        else:
            prompts = tuple(tuple(words(file, n_tokens, i)) for i in range(n_prompts))
            fit.append(Workload(kind, size, prompts, max_tokens))
    return fit, left_out


def bench(file: ModelFile, workloads: Sequence[Workload], *, engine: str, arith: str | None = None,
          cache_type: str | None = None, peer: str | None = None, rounds: int = 5, opened_s: float = 0.0,
          report: Callable[[str], None] = quiet) -> dict[str, Any]:  # fmt: skip
    """Measure ``engine`` on ``file``, alternating with ``peer`` if one is named; everything ready for JSON.

    Each workload is run once unmeasured (compiling, warming up), then ``rounds`` times by each engine in turn.
    ``opened_s`` is what opening the file took before; ``report`` is told of each workload. Raises InputError for an
    unknown engine, arithmetic or peer, and for a peer that fails.
    """
    if peer:
        peers.require(peer)
    started = time.perf_counter()
    model = load(never_ending(file), engine=engine, arith=arith, cache_type=cache_type)
    first = generate(model, words(file, FIRST_PROMPT), max_tokens=1)
    first_token = {"since_process_start_s": process_age(), "since_open_s": opened_s + time.perf_counter() - started,
                   "compile_s": first.timings.compile_s, "peak_rss_bytes": peak_rss()}  # fmt: skip
    rows, rival = measure(model, workloads, engine, peer, rounds, report)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "engine": model.fingerprint(),
        "peer": rival,
        "rounds": rounds,
        "load_s": opened_s + model.open_s,
        "first_token": first_token,
        "compile_s": first.timings.compile_s + sum(row["compile_s"] for row in rows),
        "peak_rss_bytes": peak_rss(),
        "file_bytes": file.size,
        "weight_bytes_per_token": bytes_per_token(file),
        "read_bandwidth_bytes_s": bandwidth_of(engine),  # after the peaks: it takes memory itself
        "batch": "together" if decodes_together(model) else "one after another",
        "results": rows,
    }
    for row in rows:
        if row["kind"] == "decode":
            read = row[engine]["median"] * facts["weight_bytes_per_token"]
            row["bandwidth_share"] = read / facts["read_bandwidth_bytes_s"]
    return facts


def bandwidth_of(engine: str) -> float:
    """Bytes a second that the memory is read with where ``engine`` keeps its weights."""
    if engine == "accel":
        from assay.accel import device  # JAX takes a second to import: not for the other engine

        if (found := device.read_bandwidth()) is not None:
            return found
    return read_bandwidth()


def measure(model: Any, workloads: Sequence[Workload], engine: str, peer: str | None, rounds: int,
            report: Callable[[str], None]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:  # fmt: skip
    """One row a workload, and what is known of the peer.

    Where a peer reserves its memory, batches get a process of their own: many slots of the longest context would
    take many times as much.
    """
    rows: list[dict[str, Any]] = []
    rival: dict[str, Any] | None = None
    apart = peer is not None and peers.require(peer).reserves
    for _, group in groupby(workloads, key=lambda workload: apart and workload.kind == "batch"):
        some = list(group)
        with beside(model, peer, some) as other:
            if other:
                rival = rival or first_facts(other, words(model.file, FIRST_PROMPT))
            for workload in some:
                report(f"{workload.name} ({len(rows) + 1} of {len(workloads)})")
                runs: dict[str, Run] = {engine: ours(model, workload)}
                if other:
                    runs[other.name] = theirs(other, workload)
                result = alternate(runs, rounds)
                rows.append({"kind": workload.kind, "size": workload.size, "name": workload.name, **result})
            if rival and other:
                rival["peak_rss_bytes"].append(peak_rss(other.process_id))
    return rows, rival


def first_facts(peer: peers.Peer, prompt: Sequence[int]) -> dict[str, Any]:
    """What can be told of a peer that has just been loaded; seconds from the start of its process.

    ``peak_rss_bytes`` is to hold one entry for each process of the peer that was run.
    """
    started = time.perf_counter()
    peer.generate([prompt], 1)
    first_s = time.perf_counter() - started
    recipe = peers.require(peer.name)
    return {"name": peer.name, "arith": recipe.arith, "versions": versions(recipe.packages), "load_s": peer.load_s,
            "first_token_s": peer.load_s + first_s, "peak_rss_bytes": []}  # fmt: skip


@contextmanager
def beside(model: Any, peer: str | None, workloads: Sequence[Workload]) -> Iterator[peers.Peer | None]:
    """The peer, with room for these workloads; None where there is none."""
    if peer is None:
        yield None
        return
    context = max(FIRST_PROMPT + 1, *(w.context for w in workloads)) + 8
    slots = max(len(w.prompts) for w in workloads)
    with peers.running(peer, model.file.path, context=context, slots=slots) as other:
        yield other


def ours(model: Any, workload: Workload) -> Run:
    """How an Assay engine runs a workload: greedy, nothing kept but the prompt of a decode."""
    cache = model.new_cache() if workload.kind == "decode" else None

    def run() -> tuple[float, float]:
        if workload.kind == "batch":
            answers = generate_batch(model, workload.prompts, max_tokens=workload.max_tokens)
        else:
            answers = [generate(model, workload.prompts[0], max_tokens=workload.max_tokens, cache=cache)]
        clocks = [answer.timings for answer in answers]
        compile_s = max(clock.compile_s for clock in clocks)
        if workload.kind == "prefill":
            return clocks[0].prefill_tokens / clocks[0].prefill_s, compile_s
        return sum(c.decode_tokens for c in clocks) / max(c.decode_s for c in clocks), compile_s

    return run


def theirs(peer: peers.Peer, workload: Workload) -> Run:
    """How a peer runs a workload."""
    key = "prefill_tok_s" if workload.kind == "prefill" else "decode_tok_s"
    keep = workload.kind == "decode"
    return lambda: (peer.generate(workload.prompts, workload.max_tokens, keep=keep)[key], 0.0)


def alternate(runs: Mapping[str, Run], rounds: int) -> dict[str, Any]:
    """Tokens a second of each engine and, of two, the ratio of the first to the second, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    compile_s = 0.0
    for turn in range(rounds + 1):
        for name, run in runs.items():
            speed, compiling = run()
            compile_s += compiling
            if turn:
                speeds[name].append(speed)
    result: dict[str, Any] = {name: summary(some) for name, some in speeds.items()}
    if len(speeds) == 2:
        result["ratio"] = summary([a / b for a, b in zip(*speeds.values(), strict=True)])
    return {**result, "compile_s": compile_s}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and the values themselves in the order they were measured."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": list(values)}


def never_ending(file: ModelFile) -> ModelFile:
    """The same model without end tokens, as peers are asked to ignore theirs: every run takes the same steps."""
    return replace(file, vocabulary=replace(file.vocabulary, end_ids=frozenset()))


def words(file: ModelFile, n: int, which: int = 0) -> list[int]:
    """``n`` token ids, always the same for one ``which``, ordinary tokens of the vocabulary."""
    return np.random.default_rng([n, which]).integers(0, min(len(file.vocabulary), 50_000), n).tolist()


def bytes_per_token(file: ModelFile) -> int:
    """Bytes of weights that one decoded token must read: all, but of an untied embedding only a row."""
    skipped = 0 if file.config.tied else file.tensors["token_embd.weight"].nbytes
    return sum(t.nbytes for t in file.tensors.values()) - skipped
