"""Checks on the numbers: none missing, none infinite, not mostly zero, no dead rows.

Limits of zeros, norm and dead embedding rows: aprender's semantic checks (tensor-layout-v1, PMAT-235). Measured beside
them: the most zeros in a matrix of Qwen2.5-Coder 0.5B Q4_K_M is 20 % (a value projection), of the 1.5B 7 %; neither
has a single dead row, and no tensor's norm is below 0.19.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from assay.formats.containers.base import TensorInfo
from assay.formats.inspection.checks.check import Check, judged, skipped
from assay.formats.inspection.stats import TensorStats, Values
from assay.formats.qwen2.tensor_names import role_and_layer

EMBEDDING = "token_embd.weight"
EMBEDDING_ZEROS, WEIGHT_ZEROS = 0.50, 0.80
LEAST_NORM = 1e-6
EMBEDDING_DEAD = 0.25


def checks(stats: Mapping[str, TensorStats], infos: Mapping[str, TensorInfo]) -> Iterator[Check]:
    foreign = [f"{name} ({infos[name].type.name})" for name, one in stats.items() if one.values is None]
    yield judged("values.readable", len(foreign), "0 tensors of unknown type",
                 "what cannot be decoded is not judged by the checks below", warn=foreign)  # fmt: skip
    decoded = {name: one.values for name, one in stats.items() if one.values is not None and one.values.n}
    if not decoded:
        for name in ("finite", "norm", "constant", "zeros.embedding", "zeros.weights", "dead-rows.embedding",
                     "dead-rows.weights"):  # fmt: skip
            yield skipped(f"values.{name}", "", "the file holds no tensor that can be decoded")
        return
    yield _finite(decoded)
    yield _norm(decoded)
    yield _constant(decoded)
    yield from _zeros(decoded)
    yield from _dead_rows(decoded)


def _finite(decoded: Mapping[str, Values]) -> Check:
    bad = [f"{name}: {v.nan} NaN, {v.inf} Inf" for name, v in decoded.items() if v.nan or v.inf]
    return judged("values.finite", sum(v.nan + v.inf for v in decoded.values()), "0 NaN or Inf",
                  "one of them turns every logit into NaN, and an argmax over NaN into token 0", fail=bad)  # fmt: skip


def _norm(decoded: Mapping[str, Values]) -> Check:
    least = min(decoded, key=lambda name: decoded[name].l2)
    bad = [f"{name}: {v.l2:.3g}" for name, v in decoded.items() if not v.l2 > LEAST_NORM]
    return judged("values.norm", decoded[least].l2, f"L2 norm > {LEAST_NORM:g}",
                  "a tensor of zeros is one that was lost", fail=bad)  # fmt: skip


def _constant(decoded: Mapping[str, Values]) -> Check:
    bad = [f"{name}: all {v.min:g}" for name, v in decoded.items() if v.n > 1 and v.min == v.max and not v.nan + v.inf]
    return judged("values.constant", len(bad), "0 tensors of one value",
                  "a loader's default (gains of 1, biases of 0), never the result of training", fail=bad)  # fmt: skip


def _zeros(decoded: Mapping[str, Values]) -> Iterator[Check]:
    why = "a file of 94.5 % zeros once passed every structural check"
    embedding = decoded.get(EMBEDDING)
    name, limit = "values.zeros.embedding", f"< {EMBEDDING_ZEROS:.0%} zeros"
    if embedding is None:
        yield skipped(name, limit, f"the file holds no {EMBEDDING}")
    else:
        share = embedding.zero_share
        yield judged(name, share, limit, why, fail=[f"{share:.1%}"] if share >= EMBEDDING_ZEROS else [])
    others = {n: v for n, v in decoded.items() if n != EMBEDDING}
    name, limit = "values.zeros.weights", f"< {WEIGHT_ZEROS:.0%} zeros"
    if not others:
        yield skipped(name, limit, "the file holds no other tensor")
        return
    bad = [f"{n}: {v.zero_share:.1%}" for n, v in others.items() if v.zero_share >= WEIGHT_ZEROS]
    yield judged(name, max(v.zero_share for v in others.values()), limit, why, fail=bad)


def _dead_rows(decoded: Mapping[str, Values]) -> Iterator[Check]:
    why = "rows of one value; a trained embedding has few, for tokens never seen"
    embedding = decoded.get(EMBEDDING)
    name, limit = "values.dead-rows.embedding", f"< {EMBEDDING_DEAD:.0%} of the rows"
    if embedding is None:
        yield skipped(name, limit, f"the file holds no {EMBEDDING}")
    else:
        share, culprit = embedding.dead_rows / embedding.n_rows, f"{embedding.dead_rows} rows of {embedding.n_rows}"
        yield judged(name, share, limit, why, fail=[culprit] if share >= EMBEDDING_DEAD else [],
                     warn=[culprit] if share else [])  # fmt: skip
    matrices = {n: v for n, v in decoded.items() if v.n_rows > 1 and n != EMBEDDING}
    name, limit = "values.dead-rows.weights", "0 rows (half of them fails)"
    if not matrices:
        yield skipped(name, limit, "the file holds no other matrix")
        return
    dead = [n for n, v in matrices.items() if v.dead_rows]
    said = {n: f"{n}: {matrices[n].dead_rows} rows of {matrices[n].n_rows}" for n in dead}
    half = [n for n in dead if 2 * matrices[n].dead_rows >= matrices[n].n_rows and role_and_layer(n)[1] is not None]
    yield judged(name, sum(v.dead_rows for v in matrices.values()), limit,
                 "an output that never depends on its input; real files have none",
                 fail=[said[n] for n in half], warn=[said[n] for n in dead if n not in half])  # fmt: skip
