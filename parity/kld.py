"""A ``.kld`` file: a base model's log-probabilities, as ``llama-perplexity --kl-divergence-base`` writes them.

    "_logits_" | i32 n_ctx | i32 n_vocab | i32 n_chunk | i32 ids[n_chunk][n_ctx] | rows              little-endian
    row        f32 step | f32 least | u16 level[n_vocab], and one more u16 where n_vocab is odd

A text is cut into chunks of n_ctx tokens, each read by itself; what is left over is dropped. Scored are the positions
n_ctx // 2 .. n_ctx - 2 of a chunk, a row each: what is before them is context, and after the last no token is known.
The log-probability of token t is step * level[t] + least; step is a 65,535th of the distance from the likeliest token
to the least likely, or to 16 nats below the likeliest, where the rest is cut off. So a row is rounded by up to 1.2e-4
nats, and its probabilities add up to 1 only nearly; a KL divergence near 1e-7 means nothing, and can be negative.

A file is untrusted: its size must be what the header says before memory is asked for, and rows are read one by one.
Source: llama.cpp, ``tools/perplexity``.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from assay.formats.containers.cursor import CHANGED, opened
from assay.formats.contract.arguments import checked
from assay.formats.errors import FormatError, InputError, NumericError
from assay.formats.system.atomic_file import replacing
from assay.parity.divergence import Divergence, statistics

MAGIC = b"_logits_"
HEADER = struct.Struct("<8siii")
SCALE = struct.Struct("<ff")
LEVELS = 65_535
RANGE = 16.0
"""Nats below the likeliest token at which a row is cut, and log-probability below which llama.cpp adds up no more."""
MAX_CONTEXT, MAX_VOCAB, MAX_TOKENS = 1 << 20, 1 << 24, 1 << 26
"""Far beyond any model and text; the tokens of a file are held in memory, 4 bytes each."""
AGAIN = "The file is damaged or unfinished; write it again."


@dataclass(frozen=True, eq=False)
class Base:
    """What a ``.kld`` file holds; rows are read when they are asked for."""

    path: Path
    n_vocab: int
    chunks: np.ndarray
    """Token ids i32 [n_chunk, n_ctx]."""

    def rows(self, chunk: int) -> Iterator[np.ndarray]:
        """The log-probabilities f64 [n_vocab] of each scored position of a chunk.

        Raises FormatError: file-changed, bad-row (it is not a probability distribution, rounded as above).
        """
        size, n = row_bytes(self.n_vocab), len(scored(self.chunks.shape[1]))
        at = rows_at(self.chunks) + chunk * n * size
        with opened(self.path) as (fd, _):
            for offset in range(at, at + n * size, size):
                raw = os.pread(fd, size, offset)
                if len(raw) < size:
                    raise _fail(self.path, "file-changed", "the file became shorter", "row", offset, CHANGED)
                yield _decoded(raw, self.n_vocab, self.path, offset)


def scored(n_ctx: int) -> range:
    """The positions of a chunk that have a row."""
    return range(n_ctx // 2, n_ctx - 1)


def row_bytes(n_vocab: int) -> int:
    """Bytes of a row."""
    return SCALE.size + 2 * (n_vocab + n_vocab % 2)


def rows_at(chunks: np.ndarray) -> int:
    """The byte at which the rows begin."""
    return HEADER.size + 4 * chunks.size


@checked
def read(path: Path) -> Base:
    """Open a ``.kld`` file.

    Raises FormatError, before anything is allocated: those of ``opened``, truncated, bad-magic, bad-count (of context,
    vocabulary or chunks), bad-size; then bad-id for a token outside the vocabulary.
    """
    with opened(path) as (fd, status):
        raw = os.pread(fd, HEADER.size, 0)
        if not raw.startswith(MAGIC):
            raise _fail(path, "bad-magic", f"{raw[:8]!r} is not {MAGIC!r}", "magic", 0,
                        "Give a file that 'llama-perplexity --kl-divergence-base' or 'assay perplexity' wrote.")
        if len(raw) < HEADER.size:
            raise _fail(path, "truncated", f"{len(raw)} bytes are no header of {HEADER.size}", "header", 0)
        _, n_ctx, n_vocab, n_chunk = HEADER.unpack(raw)
        for field, value, least, most, offset in (("n_ctx", n_ctx, 3, MAX_CONTEXT, 8),
                                                  ("n_vocab", n_vocab, 2, MAX_VOCAB, 12),
                                                  ("n_chunk", n_chunk, 1, MAX_TOKENS // n_ctx if n_ctx > 0 else 0, 16)):
            if not least <= value <= most:
                raise _fail(path, "bad-count", f"{value} is not from {least} to {most}", field, offset)
        rows, start = len(scored(n_ctx)) * row_bytes(n_vocab), HEADER.size + 4 * n_ctx * n_chunk
        if status.st_size != start + n_chunk * rows:
            whole = max(0, status.st_size - start) // rows
            code = "truncated" if status.st_size < start + n_chunk * rows else "bad-size"
            raise _fail(path, code, f"{n_chunk} chunks take {start + n_chunk * rows} bytes, the file has "
                        f"{status.st_size}, which holds {min(whole, n_chunk)} of them", "rows", start)  # fmt: skip
        ids = np.frombuffer(os.pread(fd, 4 * n_ctx * n_chunk, HEADER.size), "<i4")
    if len(ids) != n_ctx * n_chunk:
        raise _fail(path, "file-changed", "the file became shorter", "ids", HEADER.size, CHANGED)
    if len(wrong := np.flatnonzero((ids < 0) | (ids >= n_vocab))):
        raise _fail(path, "bad-id", f"token {ids[wrong[0]]} is not one of {n_vocab}", "ids",
                    HEADER.size + 4 * int(wrong[0]))  # fmt: skip
    return Base(path, n_vocab, ids.reshape(n_chunk, n_ctx))


def _decoded(raw: bytes, n_vocab: int, path: Path, offset: int) -> np.ndarray:
    step, least = SCALE.unpack_from(raw)
    if not (math.isfinite(step) and math.isfinite(least) and step >= 0):
        raise _fail(path, "bad-row", f"step {step} and least {least} are not a scale", "row", offset)
    row = step * np.frombuffer(raw, "<u2", n_vocab, SCALE.size).astype(np.float64) + least
    with np.errstate(over="ignore"):
        total = float(np.exp(row).sum())
    # Each term is off by half a step, which is 1.2e-4; each token that was cut off has gained at most e^-RANGE; the
    # rest is f32's.
    if not 1 - 1e-3 <= total <= 1 + n_vocab * math.exp(-RANGE) + 1e-3:
        raise _fail(path, "bad-row", f"the probabilities add up to {total:.6g}", "row", offset)
    return row


def _fail(path: Path, code: str, detail: str, field: str, offset: int, remedy: str = AGAIN) -> FormatError:
    return FormatError(code, detail, path=path, field=field, offset=offset, remedy=remedy)


@contextmanager
@checked
def writing(path: Path, chunks: np.ndarray, n_vocab: int, *,
            force: bool = False) -> Iterator[Callable[[np.ndarray], None]]:  # fmt: skip
    """A file to which the block gives the logits [n_scored, n_vocab] of one chunk after the other.

    It gets its name when the block ends. Raises InputError as ``replacing`` does, and for a number of chunks or rows
    that is not that of ``chunks``, ids [n_chunk, n_ctx]; NumericError for logits that are not numbers.
    """
    n, done = len(scored(chunks.shape[1])), 0

    def add(logits: np.ndarray) -> None:
        nonlocal done
        if logits.shape != (n, n_vocab):
            raise InputError(f"{logits.shape} is not ({n}, {n_vocab})", where="logits of a chunk",
                             remedy="Give those of the scored positions")  # fmt: skip
        for row in logits:
            file.write(encoded(row))
        done += 1

    with replacing(path, force=force) as file:
        file.write(HEADER.pack(MAGIC, chunks.shape[1], n_vocab, len(chunks)) + chunks.astype("<i4").tobytes())
        yield add
        if done != len(chunks):
            raise InputError(f"{done} of {len(chunks)} chunks were written", where=str(path), remedy="Write them all")


def encoded(logits: np.ndarray) -> bytes:
    """A row of the file from logits [n_vocab]; NumericError if one is not a number."""
    from scipy.special import logsumexp

    x = np.asarray(logits, np.float64)
    if not np.isfinite(x).all():
        raise NumericError("logits are not numbers", where="logits", remedy="'assay parity' says where that begins")
    least = max(float(x.min()), float(x.max()) - RANGE)
    step = (float(x.max()) - least) / LEVELS
    levels = np.rint((np.maximum(x, least) - least) / step) if step else np.zeros(len(x))
    return SCALE.pack(step, least - float(logsumexp(x))) + np.pad(levels.astype("<u2"), (0, len(x) % 2)).tobytes()


@checked
def surprise(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """-log p of the token after each scored position, nats, f64 [n_scored]; of a chunk's logits [n_scored, n_vocab]."""
    from scipy.special import logsumexp

    following = ids[scored(len(ids)).start + 1 :]
    return np.array([logsumexp(row) - row[token] for row, token in zip(logits.astype(np.float64, copy=False), following,
                                                                       strict=True)])  # fmt: skip


class Scored(NamedTuple):
    """A candidate beside a base at some positions."""

    divergence: Divergence
    """``kl`` is as llama.cpp adds it up: over the tokens of which the base's log-probability is above -16."""
    same_top: np.ndarray
    """bool [n_positions]: both find the same token likeliest, the first of several."""


@checked
def against(base: Base, chunk: int, logits: np.ndarray) -> Scored:
    """The candidate's ``logits`` [n_scored, n_vocab] of a chunk held against the base's row by row."""
    from scipy.special import log_softmax

    n_ctx = base.chunks.shape[1]
    rows = []
    for position, p, found in zip(scored(n_ctx), base.rows(chunk), logits, strict=True):
        q, following = log_softmax(np.asarray(found, np.float64)), base.chunks[chunk, position + 1]
        kept = p > -RANGE
        kl = float(np.exp(p[kept]) @ (p[kept] - q[kept]))
        rows.append((kl, p[following], q[following], p.argmax() == q.argmax()))
    kl, true_next, found_next, same_top = (np.array(column) for column in zip(*rows, strict=True))
    unknown = np.full(len(kl), np.nan)  # which ten are likeliest the base, rounded as it is, cannot always tell
    return Scored(Divergence(kl, true_next, found_next, unknown, np.zeros(len(kl), bool)), same_top)


@checked
def figures(parts: list[Scored]) -> dict[str, float | None]:
    """The figures of ``--kl-divergence`` of all positions, named as in ``divergence.statistics``, and ``same_top``."""
    divergences, tops = zip(*parts, strict=True)
    joined = Divergence(*(np.concatenate(column) for column in zip(*divergences, strict=True)))
    same = np.concatenate(tops)
    known = {name: value for name, value in statistics(joined).items() if not name.startswith("same_top")}
    return {"positions": len(same), **known, "same_top": float(same.mean())}
