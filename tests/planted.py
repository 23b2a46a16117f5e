"""Engines with a fault planted at one stage, and the faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.formats.contract.engine import Tap
from assay.parity.precision import Key

IDS = [300, 12, 77, 410, 3, 3, 250, 19, 476, 300, 9, 8]
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Planted:
    """``engine`` with what it computes at ``site`` changed, before anybody is shown it."""

    engine: Any
    site: Key
    change: Change

    def spoil(self, tap: Tap | None) -> Tap:
        """A tap that changes the site, before ``tap`` is shown it."""

        def spoiled(stage: str, layer: int | None, activation: np.ndarray) -> np.ndarray:
            if (stage, layer) == self.site:
                activation = self.change(activation.astype(np.float64)).astype(activation.dtype)
            return tap(stage, layer, activation) if tap else activation

        return spoiled

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        return self.engine.forward(ids, self.spoil(tap))

    def prefill(self, ids: Sequence[int], cache: Any = None, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        return self.engine.prefill(ids, cache, self.spoil(tap))

    def decode(self, token: int, cache: Any, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        return self.engine.decode(token, cache, self.spoil(tap))

    def fingerprint(self) -> dict[str, Any]:
        return self.engine.fingerprint()


def turned(by: float) -> Change:
    """Every pair of the NEOX layout turned on by an angle, as a wrong position would."""

    def change(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * np.cos(by) - second * np.sin(by), first * np.sin(by) + second * np.cos(by)], -1)

    return change


def at(index: Any, change: Change) -> Change:
    """``change`` applied to some elements only."""

    def one(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[index] = change(x[index])
        return x

    return one


FAULTS: dict[str, tuple[Key, Change]] = {
    "an embedding row off by one": (("embedding", None), at(4, lambda x: np.roll(x, 1))),
    "a norm divided by n - 1": (("attn_norm", 1), lambda x: x * np.sqrt(1 - 1 / x.shape[-1])),
    "a gain too large by a hundred-thousandth": (("ffn_norm", 2), lambda x: x * (1 + 1e-5)),
    "one row of a matrix with its sign turned": (("k_proj", 3), at((slice(None), 5), np.negative)),
    "one block of a row too large by a thousandth": (("ffn_up", 1), at((slice(None), 17), lambda x: x * 1.001)),
    "a bias lost": (("v_bias", 0), lambda x: x - x.mean(0)),
    "query at the next position": (("q_rope", 2), turned(1e-3)),
    "key turned at one position only": (("k_rope", 1), at(7, turned(1e-2))),
    "two heads exchanged": (("attention", 0), lambda x: np.roll(x.reshape(len(x), 4, -1), 1, axis=1).reshape(x.shape)),
    "residual added twice": (("attn_residual", 3), lambda x: 2 * x),
    "gate and up exchanged": (("ffn_silu", 1), lambda x: x[:, ::-1]),
    "gelu for silu": (("ffn_silu", 2), lambda x: np.where(x > 0, x * 1.02, x)),
    "an infinity": (("ffn_out", 0), at((3, 9), lambda x: x + np.inf)),
    "one vocabulary row": (("logits", None), at((slice(None), 99), lambda x: x + 0.01)),
}
