"""Measuring speed: our engine through the same ``generate`` that users call, a peer in turn with it.

Speed on a shared machine drifts by tens of percent from minute to minute, so what counts is the ratio of two
engines measured alternately, A B A B, in one run: medians, with the extremes beside them.
"""

from __future__ import annotations

import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from assay.engines import generate, load
from assay.peers import running
from formats import ModelFile

PREFILL = (32, 128, 512, 2048)
DECODE_AT = (1, 512, 4096)
DECODE_TOKENS = 32
Run = Callable[[Sequence[int], int], dict[str, Any]]


def bench(file: ModelFile, *, engine: str, arith: str | None, peer: str | None, rounds: int, prefill: Sequence[int],
          decode_at: Sequence[int], report: Callable[[str], None]) -> dict[str, Any]:  # fmt: skip
    """Measure ``engine`` on ``file``, alternating with ``peer`` if one is named; everything ready for JSON.

    Each workload is run once unmeasured (compiling, warming up), then ``rounds`` times by each engine in turn.
    """
    started = time.perf_counter()
    model = load(file, engine=engine, arith=arith)
    first = generate(model, words(file, 16), max_tokens=1)
    cold_s = time.perf_counter() - started
    runs: dict[str, Run] = {engine: lambda ids, n: ours(model, ids, n)}
    workloads = [("prefill", n, 1) for n in prefill] + [("decode", n, DECODE_TOKENS) for n in decode_at]
    workloads = [w for w in workloads if w[1] + w[2] <= file.config.context_length]
    rows = []
    with ExitStack() as stack:
        if peer:
            room = max(n + more for _, n, more in workloads) + 8
            runs[peer] = stack.enter_context(running(peer, file.path, room)).generate
        for kind, n, more in workloads:
            report(f"{kind} {n}")
            rows.append({"kind": kind, "tokens": n, **alternate(runs, words(file, n), more, f"{kind}_tok_s", rounds)})
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bandwidth = read_bandwidth()
    return {
        "machine": machine(),
        "engine": model.fingerprint(),
        "peer": peer,
        "rounds": rounds,
        "open_s": model.open_s,
        "first_token": {"cold_s": cold_s, "compile_s": first.timings.compile_s},
        "peak_rss_bytes": peak_rss,
        "file_bytes": file.size,
        "read_bandwidth_bytes_s": bandwidth,
        "weight_bytes_per_token": bytes_per_token(file),
        "results": rows,
    }


def ours(model: Any, ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """One run of an Assay engine, greedy. (An end token would end it early; the speed would still be right.)"""
    timings = generate(model, ids, max_tokens=max_tokens).timings.as_dict()
    return {"prefill_tok_s": timings["prefill_tok_s"], "decode_tok_s": timings["decode_tok_s"]}


def alternate(runs: dict[str, Run], ids: Sequence[int], max_tokens: int, key: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of each engine, and the ratio of the first to the second, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            speed = run(ids, max_tokens)[key]
            if turn and speed:
                speeds[name].append(speed)
    out: dict[str, Any] = {
        name: {"median": statistics.median(s), "low": min(s), "high": max(s)} for name, s in speeds.items() if s
    }
    if len(speeds) == 2 and all(speeds.values()):
        mine, theirs = speeds.values()
        out["ratio"] = statistics.median(a / b for a, b in zip(mine, theirs, strict=False))
    return out


def words(file: ModelFile, n: int) -> list[int]:
    """``n`` token ids, always the same, ordinary tokens of the vocabulary."""
    return np.random.default_rng(n).integers(0, min(len(file.vocabulary), 50_000), n).tolist()


def bytes_per_token(file: ModelFile) -> int:
    """Bytes of weights that one decoded token must read: all, but of an untied embedding only a row."""
    skipped = 0 if file.config.tied else file.tensors["token_embd.weight"].raw().nbytes
    return sum(t.raw().nbytes for t in file.tensors.values()) - skipped


def read_bandwidth() -> float:
    """Bytes a second that two threads read from memory together; the best of five."""
    arrays = [np.ones(32 << 20) for _ in range(2)]  # 256 MiB each: nothing of it stays in a cache
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=array.sum) for array in arrays]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - started))
    return best


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for package in ("numpy", "jax", "jaxlib", "xllamacpp"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"system": platform.platform(), "processor": processor(), "python": platform.python_version(), **versions}


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
