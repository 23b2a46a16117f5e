"""Where the rows that a tap is shown belong: a prompt comes in pieces, an answer token by token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from assay.parity.precision import Key
from assay.parity.sample import check_shapes


class Rows:
    """What one pass has shown of each stage, beside ``truth``."""

    def __init__(self, truth: Mapping[Key, np.ndarray]) -> None:
        self.truth = truth
        self.parts: dict[Key, list[np.ndarray]] = {}
        self.seen: dict[Key, int] = {}

    def add(self, stage: str, layer: int | None, found: np.ndarray) -> slice:
        """The rows of the truth that these next ones of a stage belong to; SampleError where it has no such rows.

        A prompt's logits are those after its last token; one that is read in pieces shows them after each.
        """
        key = stage, layer
        if stage == "logits" and len(self.truth[key]) == len(found) == 1:
            self.seen.pop(key, None)
            self.parts.pop(key, None)
        before = self.seen.get(key, 0)
        at = slice(before, before + len(found))
        check_shapes(stage, layer, found, self.truth[key][at])
        self.seen[key] = at.stop
        self.parts.setdefault(key, []).append(found)
        return at

    def whole(self, stage: str, layer: int | None) -> np.ndarray | None:
        """A stage whose rows have all been shown, once: it is not kept."""
        key = stage, layer
        return self.filled(key) if self.seen[key] == len(self.truth[key]) else None

    def filled(self, key: Key) -> np.ndarray:
        """A stage, with the truth's rows where a pass has not shown them; likewise once."""
        parts = self.parts.pop(key)
        if missing := len(self.truth[key]) - self.seen[key]:
            parts.append(self.truth[key][-missing:].reshape(missing, *parts[0].shape[1:]).astype(parts[0].dtype))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
