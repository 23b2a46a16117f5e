"""What a mutant is: one small change of an engine, described without naming any engine.

A *seam* is a place at which an engine can be changed from outside. The record says which seam and what changes there;
whoever knows the engines applies it (``assay/judging/proof``). A seam that an engine lacks is "not applied", which
counts against the catalogue, never silently for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.parity.precision import Key

EVERY_LAYER = -2
"""In place of a layer's number. (None is a stage of the whole model.)"""
ARITHMETICS = ("f32", "fast", "ggml")
Site = Key | None


@dataclass(frozen=True)
class Where:
    """Of which tokens an activation is changed: all, unless something is given."""

    first: int = 0
    """From this position on."""
    stop: int | None = None
    """Before this position."""
    sequence: int | None = None
    """Of this sequence of a batch only."""
    special: bool = False
    """Of control tokens only."""
    warm: bool = False
    """Only where something was in the cache already."""
    chunks: bool = True
    """Where several tokens are read at once."""
    steps: bool = True
    """Where one token is read (of each sequence)."""


@dataclass(frozen=True)
class Activation:
    """Seam: an activation x [n_tokens, width] at a stage becomes ``x[:, order] * gain + offset``, then is rounded."""

    stage: str
    layer: int | None = EVERY_LAYER
    gain: float = 1.0
    offset: float = 0.0
    """In units of the activation."""
    channels: tuple[int, int] | None = None
    """(first, stop) of the channels that are changed; None: all."""
    order: str | None = None
    """A permutation of channels: ``heads``, ``tiled`` (of query heads), ``one`` (moved on by one), ``reversed``."""
    keep_bits: int = 23
    """Bits of the significand that are kept, the others cut off: 7 is bf16 by truncation."""
    levels: int = 0
    """Rounded in blocks of 32 to so many steps on either side: 127 is 8 bits. 0: not."""
    where: Where = Where()


@dataclass(frozen=True)
class Twin:
    """Seam: the named functions that every engine of this family has, by the numbers that they compute with."""

    eps: float = 1.0
    """rms_norm: eps times this."""
    gain_plus: float = 0.0
    """rms_norm: added to the gain, as families have it whose files store gain - 1."""
    neighbours: bool = False
    """rotate: pairs (2i, 2i + 1) in place of (i, i + head_dim / 2)."""
    q_turn: float = 0.0
    k_turn: float = 0.0
    """rotate: queries, or keys, stand so many positions further on."""
    backwards: bool = False
    """rotate: the other way round."""
    turned: float = 1.0
    """rotate: the share of the pairs that is rotated."""
    score: float = 1.0
    """attention: scores times this."""
    ahead: int = 0
    """attention: how many positions further than its own a query sees."""
    tiled: bool = False
    """attention: query head h reads key/value head h % n_kv_heads."""
    lost: tuple[int, int] | None = None
    """attention: cached positions (first, stop) are read as zeros."""
    late: tuple[int, int] | None = None
    """attention: (n, p): a query at position p or later reads each slot from n on one slot too far."""
    written: int = 0
    """write: so many positions too far, where something is in the cache already."""
    layers_on: int = 0
    """write: into the cache of the layer so many further on (cyclic)."""
    sequences_on: int = 0
    """write: values of a batch into the sequence so many further on (cyclic)."""
    cache_bits: int = 23
    """write: bits of the significand of keys and values that are kept."""
    cache_levels: int = 0
    """write: keys and values in blocks of 32 with so many steps; 7 is 4 bits."""
    counter: int = 0
    """choose: drawn with the number of a token so much later."""
    temperature: float = 1.0
    penalty: float = 1.0
    """choose: repeat penalty times this."""
    top_k: int = 0
    """choose: so many more are kept."""
    top_p: float = 1.0
    unseen: bool = False
    """choose: the repeat penalty forgets what was seen."""


@dataclass(frozen=True)
class Angles:
    """Seam: the table of cosines and sines, f32 [n_positions, 2, head_dim / 2]."""

    theta: float = 1.0
    """The base times this."""
    single: bool = False
    """Angles in f32."""
    repeats_after: int = 0
    """Positions from here on begin at 0 again; 0: none do."""
    stands_at: int = 0
    """Positions from here on are all this one; 0: none are."""


Change = Callable[[np.ndarray, str], np.ndarray]
"""Rows of blocks, uint8 [n_rows, row_bytes], and the name of their type, as somebody else reads them."""


@dataclass(frozen=True)
class Bytes:
    """Seam: the encoded rows of the tensors whose names match."""

    tensors: str
    """A pattern: ``blk.*.ffn_up.weight``."""
    change: Change
    types: tuple[str, ...] = ()
    """Only tensors of these types; none given: of any."""
    used_as: str = "both"
    """Of a matrix that is embedding and head: ``head``, ``lookup``, or ``both``."""


@dataclass(frozen=True)
class Reader:
    """Seam: what a file is read as."""

    config: tuple[tuple[str, float], ...] = ()
    """Hyper-parameters and the factors that they are off by."""
    exchange: tuple[str, str] | None = None
    """Two patterns with one ``*``: tensors that take each other's place."""
    zero: str = ""
    """A pattern: tensors that are lost, and read as zeros."""
    end_ids: bool = True
    """False: the ids that end a generation are not known."""
    shared: bool = False
    """True: truth and oracle read the same, as they have one reader."""


@dataclass(frozen=True)
class Source:
    """Seam: a function's source, in which ``old`` must occur exactly once and becomes ``new``."""

    function: str
    """``attention.KVCache.join``: module and name inside an engine's package."""
    old: str
    new: str
    compiled: bool = False
    """Whether it is part of a compiled program, so that all of them must be compiled anew."""


@dataclass(frozen=True)
class Words:
    """Seam: text on its way to ids. ``change`` is a name that ``assay/judging/proof/words.py`` knows."""

    change: str


Seam = Activation | Twin | Angles | Bytes | Reader | Source | Words


@dataclass(frozen=True)
class Mutant:
    """One change, and what is claimed of it."""

    name: str
    family: str
    seam: Seam
    site: Site = None
    """The stage and the first layer that compute something wrong; None: no stage does, tokens or texts differ."""
    real_bug: int | None = None
    """Its number in the table of bugs that real engines had (``docs/proof.md``)."""
    scalable: Callable[[float], Seam] | None = None
    """The same seam at another size, 1 being the size above."""
    arithmetics: tuple[str, ...] = ARITHMETICS
    """Those in which it must be seen."""

    def sized(self, size: float) -> Mutant:
        """The mutant at a fraction of its size. Its name says so."""
        if size == 1:
            return self
        if self.scalable is None:
            raise ValueError(f"{self.name} has one size")
        return replace(self, name=f"{self.name} x{size:g}", seam=self.scalable(size))


def described(seam: Seam) -> dict[str, Any]:
    """A seam's fields that differ from their defaults, for reports."""
    fields = {name: value for name, value in vars(seam).items() if value != getattr(type(seam), name, object())}
    return {"seam": type(seam).__name__.lower(), **{k: str(getattr(v, "__name__", v)) for k, v in fields.items()}}
