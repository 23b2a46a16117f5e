"""Reading a text as ``llama-perplexity`` does: in chunks that each start anew, of which the second half is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from assay.formats import InputError, ModelFile, SampleError
from assay.formats.contract.arguments import checked
from assay.judging.judge import PATHS
from assay.parity.kld import Base, scored


@checked
def chunks_of(ids: Sequence[int], n_ctx: int, most: int | None = None) -> np.ndarray:
    """The ids i32 [n_chunk, n_ctx] of a text, at most ``most`` chunks; what is left over is dropped.

    Raises InputError for a text that does not fill one chunk.
    """
    n = min(len(ids) // n_ctx, len(ids) if most is None else most)
    if n < 1:
        raise InputError(f"{len(ids)} tokens do not fill a chunk of {n_ctx}", where="prompt",
                         remedy="Give a longer text, or a smaller --ctx-size")  # fmt: skip
    return np.array(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)


@checked
def logits_of(engine: Any, chunks: np.ndarray, path: str) -> Iterator[np.ndarray]:
    """The engine's logits [n_scored, n_vocab] of one chunk after the other.

    Where a file asks for a token at the beginning (Qwen2's do not), it takes the first one's place in each chunk.
    """
    file: ModelFile = engine.file
    first = file.vocabulary.bos_id if file.vocabulary.add_bos else None
    for chunk in chunks.tolist():
        ids = chunk if first is None else [first, *chunk[1:]]
        rows = scored(len(ids))
        yield PATHS[path](engine, ids)[rows.start : rows.stop, : len(file.vocabulary)]


@checked
def demand_same_vocabulary(base: Base, file: ModelFile) -> None:
    """Raise SampleError for a base of another vocabulary, InputError for chunks that the model cannot read at once."""
    if base.n_vocab != len(file.vocabulary):
        raise SampleError(f"the base has {base.n_vocab} tokens, the model {len(file.vocabulary)}",
                          where="same-sample check: vocabulary",
                          remedy="Give the model that the base was made of, or a quantization of it")  # fmt: skip
    demand_context(base.chunks.shape[1], file)


@checked
def demand_context(n_ctx: int, file: ModelFile) -> None:
    """Raise InputError for chunks that are too long for the model, or so short that no position is scored."""
    if not 3 <= n_ctx <= file.config.context_length:
        raise InputError(f"chunks of {n_ctx} tokens", where="--ctx-size",
                         remedy=f"Give 3 to {file.config.context_length}, the context of the model")  # fmt: skip
