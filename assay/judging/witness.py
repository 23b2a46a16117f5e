"""An outside witness: an engine that shares nothing with this project reads the same file, and the truth is held
against it.

The truth is our oracle's, and so is the floor; an equation that is wrong in the oracle is wrong in both, and every gate
is green for a candidate with the same mistake. llama.cpp and transformers have their own readers, equations and
kernels. A witness stands before the judge as any engine does, with an arithmetic of its own (8-bit activations, f32):

    it is beyond its floor                 the truth is not what this file says, or the witness is wrong
    it is far *inside* its floor           the floor is too wide to see anything: the noisy oracle is off
    otherwise                              the truth is what the witness computes, as far as its arithmetic can tell

The first two accuse the oracle (``REFERENCE-SUSPECT``), whatever was found of the candidate: it is not known who is
right. With whom the candidate agrees is said, since that is where to look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from assay.formats import InputError
from assay.formats.contract.arguments import checked
from assay.formats.system.progress import Progress
from assay.judging.engines_under_test import WINDOW, UnderTest
from assay.judging.judge import judge_flips
from assay.parity.bisect import TOLERANCE_FACTOR
from assay.parity.flips import Account, Positions, account, noise_ratio
from assay.parity.verdict import faults_of
from assay.peers import PEERS, running
from assay.peers.judged import ExternalEngine

WITNESSES: Mapping[str, tuple[str, ...]] = {"llama.cpp": ("gguf",), "transformers": ("gguf", "hf")}
"""By name: the formats that it reads by itself. (Converted for it, a file would have been read by our reader again.)"""
BY_CHANCE = 1e-3
"""A floor is called too wide by chance for one right witness of a thousand."""


class Evidence(NamedTuple):
    """What a witness says of the truth."""

    witness: str
    version: str
    """Of the package that brings it."""
    counted: Account
    """The truth's tokens and its own."""
    faults: tuple[str, ...]
    """What its declared arithmetic does not explain, in words; empty where it stands by the truth."""
    candidate: str = ""
    """With whom the candidate agrees, in words; empty where nothing was found, or the floor is too wide to tell."""

    @property
    def says(self) -> str:
        """One line."""
        if not self.faults:
            return (f"{self.witness} stands by the truth: over {self.counted.positions:,} positions it moved the logit "
                    f"gaps {self.counted.noise:.2g} times its predicted noise")  # fmt: skip
        candidate = f"; of the candidate: {self.candidate}" if self.candidate else ""
        return f"{self.witness} does not stand by the truth: {'; '.join(self.faults)}{candidate}"


@checked
def hear(under_test: UnderTest, witness: str, ids: Sequence[int], runs: int, progress: Progress,
         candidate: Positions | None = None) -> Evidence:  # fmt: skip
    """Hold the truth of ``ids`` against ``witness``; ``candidate``: what was seen of the candidate on them.

    Raises InputError for a witness that there is not, that is not installed, or that does not read this format.
    """
    demand(under_test, witness)
    package = PEERS[witness].packages[0]
    with running(witness, under_test.file.path, context=WINDOW + 8) as peer:
        outside = UnderTest(under_test.baseline, ExternalEngine(peer, under_test.file, version(package)))
        seen = judge_flips(outside, ids, "prefill", runs, progress)
    assert seen is not None  # a peer declares its arithmetic
    counted = account(seen)
    beyond = faults_of(counted)
    wide = too_wide(counted) if PEERS[witness].arith == "ggml" else []  # f32's floor is a bound: nobody uses all of it
    agrees = agreement(candidate, seen) if candidate is not None and beyond else ""
    return Evidence(witness, f"{package} {version(package)}", counted, (*beyond, *wide), agrees)


def demand(under_test: UnderTest, witness: str) -> None:
    """Raise InputError for a witness that cannot be heard on this file."""
    if witness not in WITNESSES:
        raise InputError(f"there is no witness {witness!r}", where="--witness",
                         remedy=f"Choose one of {', '.join(WITNESSES)}")  # fmt: skip
    if under_test.file.format not in WITNESSES[witness]:
        raise InputError(f"{witness} must read the file by itself, and cannot read {under_test.file.format.upper()}",
                         where="--witness", remedy="Ask it about the GGUF file of the same model")  # fmt: skip


def too_wide(counted: Account) -> list[str]:
    """What is wrong with a floor of which a real engine of that arithmetic uses next to nothing.

    The same factor as in the other direction. Of n moves, each of its predicted size, the mean square is as small as
    that with the probability of a chi-square; where n is so small that this is above BY_CHANCE, nothing is said.
    """
    from scipy.special import chdtr

    n, used = counted.positions, counted.noise
    if not used < 1 / TOLERANCE_FACTOR or chdtr(n, n * used**2) >= BY_CHANCE:
        return []
    return [f"it moved the logit gaps only {used:.2g} times the predicted noise, so the floor is too wide"]


def agreement(candidate: Positions, witness: Positions) -> str:
    """With whom the candidate agrees, where the witness does not stand by the truth."""
    if not faults_of(account(candidate)):
        return "it computes what the oracle does, which may be what both share: the reading of the file"
    apart = noise_ratio(candidate.moved - witness.moved, np.hypot(candidate.sigma, witness.sigma))
    return "it computes what the witness does" if apart <= TOLERANCE_FACTOR else "it agrees with neither"
