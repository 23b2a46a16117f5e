"""The matrix product y = W·x: nearly all of the work, and the only place where quantised weights appear.

In f64 and f32 a row block of W is decoded and multiplied. In ``ggml`` arithmetic the blocks stay integers and
the *activations* become integers too (``reference/block_dot.py``).
"""

from __future__ import annotations

import numpy as np

from assay.reference.arithmetic import Arithmetic
from assay.reference.block_dot import block_dot, quantize_activations
from assay.reference.weights import Weights, row_slices


def linear(x: np.ndarray, weights: Weights, name: str, arith: Arithmetic) -> np.ndarray:
    """y[t] = W·x[t], W the tensor ``name`` of shape [out_features, in_features].

    x [n_tokens, in_features] -> [n_tokens, out_features] in the arithmetic's dtype.
    """
    tensor = weights.tensor(name)
    if arith.rounded:
        x = arith.rounded(name, x)
    y = np.empty((len(x), tensor.n_rows), arith.dtype)
    if arith.block_dots:
        padding = tensor.row_elements - x.shape[1]  # rows may end in padding, which zeros leave without effect
        quantized = quantize_activations(np.pad(x, ((0, 0), (0, padding))), tensor.type.name)
        for rows in row_slices(tensor.shape):
            y[:, rows] = block_dot(quantized, tensor, rows)
    else:
        for rows, block in weights.row_blocks(name):
            y[:, rows] = x @ block.astype(arith.dtype, copy=False).T
    return y
