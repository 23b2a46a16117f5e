"""An external engine before the judge: logits of every position, asked from its server one token at a time.

A server names only the likeliest N tokens and their log-probabilities. Differences of these are differences of logits,
so among the named everything can be compared. The others are NaN: not known, and never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from assay.formats import InputError, ModelFile
from assay.formats.contract.engine import Tap
from assay.peers import PEERS, Peer

N_NAMED = 200


class ExternalEngine:
    """A running external engine as ``contract.engine.Engine``, as far as a server lets it be one: it has no taps."""

    def __init__(self, peer: Peer, file: ModelFile, version: str) -> None:
        self.peer, self.file, self.version = peer, file, version

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Log-probabilities [n_tokens, n_vocab], f64, NaN where none was named.

        Raises InputError for a tap: nobody can look inside a server.
        """
        self._demand_no(tap)
        return np.stack([self.prefill(ids[: n + 1])[0] for n in range(len(ids))])

    def _demand_no(self, tap: Tap | None) -> None:
        if tap is not None:
            raise InputError(f"{self.peer.name} shows no stages", where="tap", remedy="'assay flips' needs none")

    def prefill(self, ids: Sequence[int], cache: Any = None, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        """Log-probabilities [n_vocab] after ``ids``, which follow ``cache``; and the ids read so far, as the cache."""
        self._demand_no(tap)
        read = [*(cache or []), *ids]
        row = np.full(len(self.file.vocabulary), np.nan)
        for token, logprob in self.peer.named_tokens(read, N_NAMED):
            if token < len(row):
                row[token] = logprob
        return row, read

    def decode(self, token: int, cache: Any, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        """As ``prefill`` of one token."""
        return self.prefill([token], cache, tap)

    def demand_plain(self, exact: np.ndarray, found: np.ndarray) -> None:
        """Raise InputError if the judge cannot use ``found`` [n_tokens, n_vocab]; ``exact``: the true logits."""

    def generate(self, ids: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        """At most ``n`` greedy tokens after ``ids``, up to the first end token; of margins it says nothing."""
        return self.peer.generate([ids], n, keep=True, ends=True)["ids"][0], []

    def fingerprint(self) -> dict[str, Any]:
        """What could make two runs of this engine differ."""
        return {"engine": self.peer.name, "arith": PEERS[self.peer.name].arith, "version": self.version}
