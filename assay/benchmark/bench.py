"""Measuring speed: our engine through the same ``generate`` that users call, an external one in turn with it.

Speed on a shared machine drifts by tens of percent from minute to minute, so what counts is the ratio of two
engines measured alternately, A B A B, in one run: medians, with the extremes beside them.

    prefill of N    tokens/s of reading a prompt of N tokens
    decode at N     tokens/s of the 31 steps after the first token, which comes with the prompt of N tokens (1 for 0).
                    The prompt is read in the unmeasured run and stays read, so the engines' steps lie seconds apart
    batch of N      tokens/s, summed over N sequences that are decoded at once: all their steps by the longest time

What was measured is never lost: a benchmark that is stopped (``Stop``), or fails, returns what it has.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import groupby
from typing import Any

import numpy as np

from assay import peers
from assay.benchmark.machine import machine, peak_rss, process_age, read_bandwidth, versions
from assay.engines import decodes_together, generate, generate_batch, load
from assay.formats import AssayError, ModelFile
from assay.formats.system.progress import quiet
from assay.formats.system.signals import Ended

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


class Stop(StrEnum):
    """What ends a benchmark before all is measured."""

    BUDGET = "the budget is used up"
    INTERRUPTED = "interrupted"
    TERMINATED = "terminated"
    HUNG_UP = "hung up"
    FAILED = "an engine failed"


SIGNALLED = {signal.SIGTERM: Stop.TERMINATED, signal.SIGHUP: Stop.HUNG_UP}
Watch = Callable[[dict[str, Any], dict[str, Any]], None]
"""Told of a row, and of the facts that are known so far."""


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
          budget: float | None = None, report: Callable[[str], None] = quiet,
          watch: Watch = quiet) -> dict[str, Any]:  # fmt: skip
    """Measure ``engine`` on ``file``, alternating with the external engine ``peer`` if one is named; ready for JSON.

    Each workload is run once unmeasured (compiling, warming up), then ``rounds`` times by each engine in turn.
    ``opened_s`` is what opening the file took before. When ``budget`` seconds have passed, no further round begins.
    ``report`` is told of each workload before, ``watch`` after; it gets the facts that are known by then, too.

    Stopped by the budget, Ctrl-C, a signal (``ending_when_told``) or an AssayError once measuring has begun, it returns
    the whole rounds; ``"stopped"`` says by what (a ``Stop``; None: by nothing), ``"error"`` is the AssayError, and
    ``"left_out"`` names what was not begun. Raises InputError for an unknown engine or arithmetic, and whatever
    stops it before.
    """
    if peer:
        peers.require(peer)
    started = time.perf_counter()
    model = load(never_ending(file), engine=engine, arith=arith, cache_type=cache_type)
    first = generate(model, words(file, FIRST_PROMPT), max_tokens=1)
    first_token = {"since_process_start_s": process_age(), "since_open_s": opened_s + time.perf_counter() - started,
                   "compile_s": first.timings.compile_s, "peak_rss_bytes": peak_rss()}  # fmt: skip
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "engine": model.fingerprint(),
        "peer": None,
        "rounds": rounds,
        "load_s": opened_s + model.open_s,
        "first_token": first_token,
    }
    end = None if budget is None else started - opened_s + budget
    rows, stopped = collect(measure(model, workloads, engine, peer, rounds, facts, report), facts, end, watch)
    facts |= {
        "compile_s": first.timings.compile_s + sum(row["compile_s"] for row in rows),
        "peak_rss_bytes": peak_rss(),
        "file_bytes": file.size,
        "weight_bytes_per_token": bytes_per_token(file),
        # after the peaks: it takes memory itself, and time that somebody who stops us does not have
        "read_bandwidth_bytes_s": bandwidth_of(model) if stopped in (None, Stop.BUDGET) else None,
        "batch": "together" if decodes_together(model) else "one after another",
        "results": rows,
    }
    for row in rows:
        if row["kind"] == "decode" and facts["read_bandwidth_bytes_s"]:
            read = row[engine]["median"] * facts["weight_bytes_per_token"]
            row["bandwidth_share"] = read / facts["read_bandwidth_bytes_s"]
    measured = {row["name"] for row in rows}
    left_out = [{"kind": w.kind, "size": w.size, "name": w.name, "reason": stopped}
                for w in workloads if w.name not in measured]  # fmt: skip
    return facts | {"left_out": left_out}


def collect(measured: Generator[dict[str, Any], None, None], facts: dict[str, Any], end: float | None,
            watch: Watch) -> tuple[list[dict[str, Any]], Stop | None]:  # fmt: skip
    """The rows of ``measure``, each as far as it came, and what stopped it; ``facts`` get ``"stopped"`` in words.

    ``end``: a time of ``perf_counter``.
    """
    rows: dict[str, dict[str, Any]] = {}
    stopped, facts["error"] = None, None
    try:
        with closing(measured):
            for row in measured:
                rows[row["name"]] = row
                if row["complete"]:
                    watch(row, facts)
                if end is not None and time.perf_counter() >= end:
                    stopped = Stop.BUDGET
                    break
    except KeyboardInterrupt:
        stopped = Stop.INTERRUPTED
    except Ended as told:
        stopped = SIGNALLED[told.signal]
    except AssayError as error:
        if not rows:
            raise
        stopped, facts["error"] = Stop.FAILED, error
    facts["stopped"] = stopped
    return list(rows.values()), stopped


def bandwidth_of(model: Any) -> float:
    """Bytes a second that the memory is read with where ``model`` keeps its weights."""
    if model.fingerprint()["engine"] == "accel":
        from assay.accel import device  # JAX takes a second to import: not for the other engine

        if (found := device.read_bandwidth(model.device)) is not None:
            return found
    return read_bandwidth()


def measure(model: Any, workloads: Sequence[Workload], engine: str, peer: str | None, rounds: int,
            facts: dict[str, Any], report: Callable[[str], None]) -> Generator[dict[str, Any], None, None]:  # fmt: skip
    """The row of each workload after each of its rounds; ``facts["peer"]`` becomes what is known of the other engine.

    Where that engine reserves its memory, batches get a process of their own: many slots of the longest context would
    take many times as much.
    """
    n = 0
    apart = peer is not None and peers.require(peer).reserves
    for _, group in groupby(workloads, key=lambda workload: apart and workload.kind == "batch"):
        some = list(group)
        with beside(model, peer, some) as other:
            if other:
                facts["peer"] = facts["peer"] or first_facts(other, words(model.file, FIRST_PROMPT))
            try:
                for workload in some:
                    n += 1
                    report(f"{workload.name} ({n} of {len(workloads)})")
                    runs: dict[str, Run] = {engine: ours(model, workload)}
                    if other:
                        runs[other.name] = theirs(other, workload)
                    for turn, result in enumerate(alternate(runs, rounds), start=1):
                        yield {"kind": workload.kind, "size": workload.size, "name": workload.name,
                               "complete": turn == rounds, **result}  # fmt: skip
            finally:
                if other:
                    facts["peer"]["peak_rss_bytes"].append(peak_rss(other.process_id))


def first_facts(peer: peers.Peer, prompt: Sequence[int]) -> dict[str, Any]:
    """What can be told of an external engine that has just been loaded; seconds from the start of its process.

    ``peak_rss_bytes`` is to hold one entry for each of its processes that was run.
    """
    started = time.perf_counter()
    peer.generate([prompt], 1)
    first_s = time.perf_counter() - started
    recipe = peers.require(peer.name)
    return {"name": peer.name, "arith": recipe.arith, "versions": versions(recipe.packages), "load_s": peer.load_s,
            "first_token_s": peer.load_s + first_s, "peak_rss_bytes": []}  # fmt: skip


@contextmanager
def beside(model: Any, peer: str | None, workloads: Sequence[Workload]) -> Iterator[peers.Peer | None]:
    """The external engine, with room for these workloads; None where there is none."""
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
    """How an external engine runs a workload."""
    key = "prefill_tok_s" if workload.kind == "prefill" else "decode_tok_s"
    keep = workload.kind == "decode"
    return lambda: (peer.generate(workload.prompts, workload.max_tokens, keep=keep)[key], 0.0)


def alternate(runs: Mapping[str, Run], rounds: int) -> Iterator[dict[str, Any]]:
    """After each round: tokens a second of each engine and, of two, the ratio of the first to the second."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    compile_s = 0.0
    for turn in range(rounds + 1):
        for name, run in runs.items():
            speed, compiling = run()
            compile_s += compiling
            if turn:
                speeds[name].append(speed)
        if turn:
            result: dict[str, Any] = {name: summary(some) for name, some in speeds.items()}
            if len(speeds) == 2:
                result["ratio"] = summary([a / b for a, b in zip(*speeds.values(), strict=True)])
            yield {**result, "compile_s": compile_s}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and the values themselves in the order they were measured."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": list(values)}


def never_ending(file: ModelFile) -> ModelFile:
    """The same model without end tokens, as the others are asked to ignore theirs: every run takes the same steps."""
    return replace(file, vocabulary=replace(file.vocabulary, end_ids=frozenset()))


def words(file: ModelFile, n: int, which: int = 0) -> list[int]:
    """``n`` token ids, always the same for one ``which``, ordinary tokens of the vocabulary."""
    return np.random.default_rng([n, which]).integers(0, min(len(file.vocabulary), 50_000), n).tolist()


def bytes_per_token(file: ModelFile) -> int:
    """Bytes of weights that one decoded token must read: all, but of an untied embedding only a row."""
    skipped = 0 if file.config.tied else file.tensors["token_embd.weight"].nbytes
    return sum(t.nbytes for t in file.tensors.values()) - skipped
