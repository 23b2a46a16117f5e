"""A stretch of a text on the way on which an engine generates: behind a cache that holds what comes before it.

The truth of a position does not depend on how it is read. So truth and oracle read a stretch at once, and what a
candidate shows of it piece by piece, or step by step, is held against the rows that belong to it. What comes before is
read as a prompt is, by the programs that no tap has touched; the floor's noisy runs read it with noise, as what a cache
holds is the candidate's own work too.

Stages are kept of few positions. They are judged where an engine takes another way: at the beginning, on both sides of
boundaries that it declares, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from assay.formats.contract.engine import Tap
from assay.parity.floor import NoiseFloor, floor_of
from assay.parity.precision import Key, Precision, each_run
from assay.parity.stages import MAX_TOKENS, local

WIDTH = {"prefill": 24, "decode": 8}
"""Positions of a window, half of them before a boundary. By prefill more than the 16 tokens that the fast engine
computes like single ones, so that a window goes through the program of a prompt; by decode each is a step."""
BEFORE = 1 << 20
"""What is added to a seed for the draws before a window: more than there are runs."""


class Window(NamedTuple):
    """Positions ``start`` to ``stop`` of a text, read by ``path``: prefill (at once) or decode (token by token)."""

    text: tuple[int, ...]
    start: int
    stop: int
    path: str

    @property
    def before(self) -> list[int]:
        """The ids that the cache holds."""
        return list(self.text[: self.start])

    @property
    def ids(self) -> list[int]:
        """The ids that are read, and judged."""
        return list(self.text[self.start : self.stop])

    @property
    def n_at_once(self) -> int:
        """Tokens that a candidate reads together."""
        return 1 if self.path == "decode" else self.stop - self.start


def shows_where_it_generates(engine: Any) -> bool:
    """Whether an engine's ``prefill`` and ``decode`` take a tap."""
    methods = (getattr(engine, name, None) for name in ("prefill", "decode"))
    return all(method is not None and "tap" in signature(method).parameters for method in methods)


def places(fingerprint: Mapping[str, Any]) -> list[int]:
    """The positions, ascending, at which an engine takes another way, as far as it declares them."""
    declared = fingerprint.get("boundaries") or {}
    lengths = [*declared.get("attention_block", ()), *declared.get("cache", ()), *declared.get("chunk", ())[-1:]]
    return sorted({int(length) for length in lengths})


def crossing(fingerprint: Mapping[str, Any], path: str, most: int) -> int:
    """The tokens, at most ``most``, that cross as many boundaries as so many can; ``MAX_TOKENS`` if they cross none."""
    half = WIDTH[path] // 2
    reached = [place + half for place in places(fingerprint) if place + half <= most]
    return min(most, max(reached, default=MAX_TOKENS))


def windows(text: Sequence[int], fingerprint: Mapping[str, Any], path: str, *, full: bool = False) -> list[Window]:
    """The stretches of ``text`` that are judged: all of it where that is short, else some of at most MAX_TOKENS in all.

    They do not overlap. Of the boundaries only the first, unless ``full``: each size of cache has programs of its own,
    and one with taps takes seconds to compile. Of more than there is room for, the first are taken.
    """
    if len(text) <= MAX_TOKENS:
        return [Window(tuple(text), 0, len(text), path)]
    width = WIDTH[path]
    inside = [place - width // 2 for place in places(fingerprint) if width < place < len(text) - width // 2]
    spans = [(0, width)]
    for start in [*inside[: MAX_TOKENS // width - 2 if full else 1], len(text) - width]:
        before = spans[-1]
        if start < before[1]:  # one that reaches across both
            spans[-1] = (before[0], start + width)
        else:
            spans.append((start, start + width))
    return [Window(tuple(text), *span, path) for span in spans]


class Generating:
    """A candidate in a window, as stages are judged (``precision.Tapped``)."""

    def __init__(self, engine: Any, window: Window) -> None:
        self.engine, self.window = engine, window

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits of the window: [1, n_vocab] of its last position by prefill, [n_tokens, n_vocab] by decode.

        ``tap`` is shown the window's rows as they are computed, and none of what comes before it.
        """
        cache = self.engine.prefill(self.window.before)[1] if self.window.start else None
        if self.window.path == "prefill":
            return np.array(self.engine.prefill(list(ids), cache, tap)[0])[None]
        steps = []
        for token in ids:
            logits, cache = self.engine.prefill([token], None, tap) if cache is None else (
                self.engine.decode(token, cache, tap))  # fmt: skip
            steps.append(np.array(logits))
        return np.stack(steps)


class AtOnce:
    """Truth or oracle in a window. ``filling`` reads what comes before, and its activations are moved by ``noise``."""

    def __init__(self, engine: Any, window: Window, filling: Any = None, noise: Tap | None = None) -> None:
        self.engine, self.window, self.filling, self.noise = engine, window, filling or engine, noise

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits of the window, as :meth:`Generating.forward` returns them."""
        cache = self.filling.prefill(self.window.before, None, self.noise)[1] if self.window.start else None
        if self.window.path == "prefill":
            return np.array(self.engine.prefill(list(ids), cache, tap)[0])[None]
        return self.engine.forward(list(ids), tap, cache)


def noise_floor(oracle: Any, window: Window, truth: Mapping[Key, np.ndarray], declared: Precision, filled: Precision, *,
                runs: int = 4) -> NoiseFloor:  # fmt: skip
    """The floor of every stage's local error in a window, behind a cache that was filled as ``filled`` declares."""

    def noisy(seed: int) -> Any:
        before = filled.noisy(oracle, seed + BEFORE)
        inside = declared.noisy(oracle, seed, window.start)
        one = AtOnce(inside, window, before, filled.noise(seed + BEFORE, fed=False))
        return local(one, window.ids, truth, declared.noise(seed))

    return floor_of(each_run(noisy, range(runs)))
