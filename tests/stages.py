"""What the tests of both engines ask of stages: capturing them, and how far rounding may move each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from assay.formats.contract.config import LAYER_STAGES, WHOLE_MODEL_STAGES, Config

Key = tuple[str, int | None]


def expected_order(n_layers: int) -> list[Key]:
    """Every stage of every layer, in the order in which a tap has to be shown them."""
    layers = [(stage, layer) for layer in range(n_layers) for stage in LAYER_STAGES]
    first, *last = WHOLE_MODEL_STAGES
    return [(first, None), *layers, *((stage, None) for stage in last)]


def captured(engine: Any, ids: Sequence[int]) -> dict[Key, np.ndarray]:
    """Every activation of ``forward(ids)``, f64, each flattened to [n_tokens, size], in the order shown."""
    shown: dict[Key, np.ndarray] = {}

    def capture(stage: str, layer: int | None, activation: np.ndarray) -> np.ndarray:
        assert (stage, layer) not in shown, f"{stage} of layer {layer} was shown twice"
        assert len(activation) == len(ids)
        shown[stage, layer] = np.array(activation, np.float64).reshape(len(ids), -1)
        return activation

    engine.forward(ids, capture)
    return shown


def replacing(key: Key, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """A tap that changes one activation and leaves the others alone."""
    return lambda stage, layer, activation: change(activation) if (stage, layer) == key else activation


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b| over all elements."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def rounding_bound(config: Config, layer: int | None, unit: float = 2.0**-24) -> float:
    """Relative L2 distance to f64 that rounding can explain for any stage of ``layer`` (None: after the last).

    A sum of K independent terms, added one by one, has a relative error of about sqrt(K / 6) u: its partial sums
    grow like sqrt(k), and each rounds once. A token's way through a layer crosses five such sums (q·k, ·v, output,
    gate or up, down). What sqrt(6) leaves over is for norms, softmax and luck; observed is an eighth of the bound.
    """
    longest = max(config.hidden_size, config.ffn_size, config.n_heads * config.head_dim)
    n_sums = 5 * (config.n_layers + 1 if layer is None else layer + 1)
    return longest**0.5 * unit * n_sums


def first_beyond_rounding(found: Mapping[Key, np.ndarray], truth: Mapping[Key, np.ndarray],
                          config: Config) -> tuple[Key, float] | None:  # fmt: skip
    """The first stage whose distance from the truth is more than rounding, and the distance; None if all is well."""
    assert list(found) == list(truth)
    for (stage, layer), expected in truth.items():
        depth = 0 if stage == "embedding" else layer
        distance = relative(found[stage, layer], expected)
        if not distance <= rounding_bound(config, depth):
            return (stage, layer), distance
    return None
