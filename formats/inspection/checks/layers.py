"""Checks that hold a layer against the others: copies, and numbers of another size.

How far a tensor's root mean square may lie from the median over the layers of its role. Largest factors measured in
Qwen2.5-Coder 0.5B and 1.5B (either direction): matrices 3.4, norm gains 23 (layer 0), biases 105 (keys of layer 0;
others report the same of the 7B). The limits are three times that; ten times the limit fails.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from assay.formats.inspection.checks.check import Check, judged, skipped
from assay.formats.inspection.stats import TensorStats
from assay.formats.qwen2.tensor_names import role_and_layer

FACTORS = {"matrix": 10.0, "gain": 70.0, "bias": 300.0}
FAILS_AT = 10.0
LEAST_LAYERS = 4
"""Of fewer, one odd layer moves the median itself."""


def checks(stats: Mapping[str, TensorStats]) -> Iterator[Check]:
    roles: dict[str, dict[int, TensorStats]] = {}
    for name, one in stats.items():
        role, layer = role_and_layer(name)
        if layer is not None:
            roles.setdefault(role, {})[layer] = one
    yield _duplicates(roles)
    yield _outliers(roles)


def _duplicates(roles: Mapping[str, Mapping[int, TensorStats]]) -> Check:
    limit, name = "0 copies", "layers.duplicates"
    if not any(len(layers) > 1 for layers in roles.values()):
        return skipped(name, limit, "fewer than two layers")
    copies = []
    for role, layers in roles.items():
        by_hash: dict[str, list[int]] = {}
        for layer, one in layers.items():
            by_hash.setdefault(one.sha256, []).append(layer)
        copies += [f"{role} of layers {', '.join(map(str, same))}" for same in by_hash.values() if len(same) > 1]
    return judged(name, len(copies), limit, "no two layers train to the same bytes; a converter wrote one twice",
                  fail=copies)  # fmt: skip


def _outliers(roles: Mapping[str, Mapping[int, TensorStats]]) -> Check:
    name, limit = "layers.outliers", "<= 1 time the limit of its kind"
    worst, fail, warn = 0.0, [], []
    for role, layers in roles.items():
        sizes = {n: one.values.rms for n, one in layers.items() if one.values is not None and one.values.l2 > 0}
        if len(sizes) < LEAST_LAYERS:
            continue
        median, most = statistics.median(sizes.values()), FACTORS[_kind(role)]
        for layer, size in sizes.items():
            factor = max(size / median, median / size)
            worst = max(worst, factor / most)
            said = f"blk.{layer}.{role}: {size / median:.3g} times the layers' median, limit {most:g}"
            (fail if factor > most * FAILS_AT else warn if factor > most else []).append(said)
    if not worst:
        return skipped(name, limit, f"fewer than {LEAST_LAYERS} layers to compare")
    return judged(name, worst, limit, "rms over the median of its role: matrices 10, gains 70, biases 300, "
                  "three times what real models show", fail=fail, warn=warn)  # fmt: skip


def _kind(role: str) -> str:
    if role.endswith(".bias"):
        return "bias"
    return "gain" if role.endswith("_norm.weight") else "matrix"
