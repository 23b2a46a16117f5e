"""The oracle's access to weights: decoded when needed, a few rows at a time, so that memory stays small.

A 1.5B model is 1.1 GB on disk and 6 GB in f32. Each matrix product therefore walks over its matrix in row
blocks of a few megabytes, decodes one, uses it and forgets it. ``cache=True`` keeps the decoded f32 matrices
instead: some ten times faster a token, for four bytes a weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from assay.formats import ModelFile, Tensor

ROW_BLOCK_ELEMENTS = 1 << 19  # 2 MiB of f32: small beside the cache of a core, large beside a call's overhead


class Weights:
    """Tensors of one model by name."""

    def __init__(self, model: ModelFile, *, cache: bool = False) -> None:
        self.model = model
        self._cache: dict[str, np.ndarray] | None = {} if cache else None

    def tensor(self, name: str) -> Tensor:
        """The tensor in its storage format."""
        return self.model.tensors[name]

    def vector(self, name: str, dtype: np.dtype) -> np.ndarray:
        """A bias or gain, decoded whole, [size] in ``dtype``."""
        return self.tensor(name).decode().astype(dtype)

    def embedding(self, ids: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Rows ``ids`` of the embedding matrix: [n_tokens, hidden_size] in ``dtype``."""
        table = self.tensor("token_embd.weight")
        return np.concatenate([table.rows(i, i + 1) for i in ids.tolist()]).astype(dtype)

    def row_blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The matrix in consecutive row blocks: (rows, f32 [n_rows_of_block, in_features])."""
        if self._cache is not None:
            if name not in self._cache:
                self._cache[name] = self.tensor(name).decode()
            yield slice(None), self._cache[name]
            return
        tensor = self.tensor(name)
        for rows in row_slices(tensor.shape):
            yield rows, tensor.rows(rows.start, rows.stop)


def row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive slices over the rows of a matrix [n_rows, n_columns], about ROW_BLOCK_ELEMENTS each."""
    n_rows, n_columns = shape
    step = max(1, ROW_BLOCK_ELEMENTS // n_columns)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
