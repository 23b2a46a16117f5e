"""Does the judge ever call a right engine wrong? ``python -m tests.real.null_comparisons [MODEL] [--number 400]``.

With ``--log FILE`` every comparison is appended there, and what is printed is about all of them: so runs under other
numbers of threads (``taskset``), ``XLA_FLAGS``, versions of JAX, models and seeds add up to one limit.

Comparisons of which every one should be green: the fast engine and the oracle in all arithmetics, on excerpts of code
and prose of 1 to 64 tokens, raw and in ChatML, by stages and by tokens; read at once, one by one, in chunks of random
length, in a batch; and the oracle with every sum added one by one, or in an order of its own. Under ``taskset -c 0``
everything has one thread. Prints one JSON object: verdicts counted, the upper 95 % limit of the rate of false alarms,
and how near to the judge's limit each kind came at worst.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import assay.reference.model
from assay import engines
from assay.engines import find, load
from assay.formats import open_model
from assay.formats.system.cpus import processors
from assay.formats.system.progress import quiet
from assay.judging.engines_under_test import UnderTest, baseline
from assay.judging.judge import judge_flips, judge_free_run, judge_stages, written
from assay.parity.flips import account, observe
from assay.parity.verdict import Verdict, of_flips
from assay.reference.linear import linear
from tests.real.fast_agreement import CODE, PROSE

RUNS = 4
CANDIDATES = (("accel", "f32"), ("accel", "fast"), ("reference", "f32"), ("reference", "ggml"))


def one_by_one(x: np.ndarray, weights: Any, name: str, arith: Any) -> np.ndarray:
    """The oracle's product, each sum added term after term."""
    if arith.name != "f32":
        return linear(x, weights, name, arith)
    matrix = np.concatenate([block for _, block in weights.row_blocks(name)])
    y = np.zeros((len(x), len(matrix)), np.float32)
    for k in range(x.shape[1]):
        y += x[:, k : k + 1] * matrix[:, k]
    return y


def shuffled(x: np.ndarray, weights: Any, name: str, arith: Any) -> np.ndarray:
    """The oracle's product, its terms in another order."""
    if arith.name != "f32":
        return linear(x, weights, name, arith)
    order = np.random.default_rng(len(name)).permutation(x.shape[1])
    return np.concatenate([x[:, order] @ block[:, order].T for _, block in weights.row_blocks(name)], axis=1)


@contextmanager
def computing(product: Any) -> Iterator[None]:
    """The oracle with another product; truth, in f64, keeps its own."""
    assay.reference.model.linear = product
    try:
        yield
    finally:
        assay.reference.model.linear = linear


def sample(under_test: UnderTest, rng: np.random.Generator) -> list[int]:
    """An excerpt of 1 to 64 tokens, half of them as a user's message."""
    text = (CODE, PROSE)[rng.integers(2)]
    at, n = int(rng.integers(len(text) - 600)), int(rng.integers(1, 65))
    chat = bool(rng.integers(2))
    return under_test.sample(text[at : at + 400], None, chat)[:n]


def in_chunks(under_test: UnderTest, ids: list[int], rng: np.random.Generator) -> Verdict:
    """The last position of each chunk, chunks of random length."""
    declared = under_test.declared(1)
    assert declared is not None
    ends, rows, cache = np.unique([*rng.integers(1, len(ids) + 1, 3), len(ids)]), [], None
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        logits, cache = under_test.candidate.prefill(ids[start:end], cache)
        rows.append(np.array(logits)[: len(under_test.file.vocabulary)])
    predicted = under_test.baseline.prediction(ids, declared, RUNS)
    return of_flips(account(observe(predicted.of(ends - 1), np.stack(rows))), declared)


def by_stages(under_test: UnderTest, ids: list[int], path: str) -> tuple[Verdict, float]:
    """Verdict and worst ratio."""
    found = judge_stages(under_test, ids, path, RUNS, quiet)
    assert found is not None
    return found.verdict, found.finding.ratio


def by_tokens(under_test: UnderTest, ids: list[int], path: str) -> tuple[Verdict, float]:
    """Verdict and how far logit gaps moved."""
    positions = judge_flips(under_test, ids, path, RUNS, quiet)
    assert positions is not None
    counted = account(positions)
    return of_flips(counted, under_test.declared(1 if path == "decode" else len(ids))), counted.noise


def in_a_batch(under_test: UnderTest, ids: list[int], others: Sequence[list[int]]) -> tuple[Verdict, float]:
    """What is written beside others."""
    found = judge_free_run(under_test, ids, 8, RUNS, quiet, lambda ids, n: written(
        engines.generate_batch(under_test.candidate, [*others, ids], max_tokens=n)[-1]))  # fmt: skip
    return of_flips(found, under_test.declared(1)), found.noise if found else np.nan


def upper_limit(alarms: int, comparisons: int, confidence: float = 0.95) -> float:
    """The largest rate of false alarms that so few do not rule out (Clopper and Pearson, 1934); 3 / n if none."""
    from scipy.special import betaincinv

    return float(betaincinv(alarms + 1, comparisons - alarms, confidence)) if alarms < comparisons else 1.0


def summary(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All that was compared: verdicts counted, the limit, where it ran, and how near to the limit each kind came."""
    verdicts = Counter(one["verdict"] for one in comparisons)
    alarms = sum(not Verdict(one["verdict"]).green for one in comparisons)
    worst: dict[str, list[float]] = defaultdict(list)
    for one in comparisons:
        worst[f"{one['what']}: {one['name']}"].append(np.nan if one["near"] is None else one["near"])
    return {"comparisons": len(comparisons), "alarms": alarms, "upper_95": upper_limit(alarms, len(comparisons)),
            "verdicts": verdicts, "where": Counter(one["where"] for one in comparisons),
            "worst": {key: [round(float(np.nanmax(v)), 2), len(v)] for key, v in sorted(worst.items())
                      if not np.isnan(v).all()}}  # fmt: skip


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description="Comparisons that must all be green.")
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    flags = os.environ.get("XLA_FLAGS", "no XLA flags")
    where = f"{options.model}, {processors()} processors, jax {version('jax')}, {flags}"
    file, rng = open_model(find(options.model)), np.random.default_rng(options.seed)
    shared = baseline(file)
    candidates = []
    for engine, arith in CANDIDATES:
        model = load(file, engine=engine, arith=arith)
        if engine == "reference":
            model.weights = shared.truth.weights
        candidates.append((f"{engine} {arith}", UnderTest(shared, model)))
    serial, other = (("reference f32, sums one by one", one_by_one), ("reference f32, other order", shuffled))
    comparisons = []
    for i in range(options.number):
        name, under_test = candidates[i % len(candidates)]
        how = i // len(candidates) % 7
        ids = sample(under_test, rng)
        if how < 2:
            what, (verdict, near) = "stages", by_stages(under_test, ids, ("prefill", "decode")[how])
        elif how < 4:
            what, (verdict, near) = "tokens", by_tokens(under_test, ids, ("prefill", "decode")[how - 2])
        elif how == 4:
            what, verdict, near = "chunks", in_chunks(under_test, ids, rng), np.nan
        elif how == 5:
            what, (verdict, near) = (
                "batch",
                in_a_batch(under_test, ids[:24], [sample(under_test, rng)[:9] for _ in range(rng.integers(1, 5))]),
            )
        else:
            name, product = (serial, other)[i % 2]
            declared = candidates[2][1].declared(len(ids))
            assert declared is not None
            shared.noise_floor(ids, declared, RUNS)  # of the usual product
            with computing(product):
                what, (verdict, near) = "stages", by_stages(candidates[2][1], ids, "prefill")
        one = {"what": what, "name": name, "verdict": verdict, "near": float(near) if np.isfinite(near) else None,
               "where": where}  # fmt: skip
        comparisons.append(one)
        if options.log:
            with options.log.open("a") as log:
                log.write(json.dumps(one) + "\n")
        if not verdict.green:
            print(json.dumps({"alarm": i, "what": what, "name": name, "ids": ids, "near": near}), flush=True)
    if options.log:
        comparisons = [json.loads(line) for line in options.log.read_text().splitlines()]
    print(json.dumps(summary(comparisons), indent=1))


if __name__ == "__main__":
    main()
