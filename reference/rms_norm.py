"""Root-mean-square normalisation: give every token's vector the same length before it is used.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
"""

from __future__ import annotations

import numpy as np


def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """y = x / sqrt(mean(x²) + eps) · gain, over the last axis.

    x [n_tokens, hidden_size], gain [hidden_size] -> [n_tokens, hidden_size] in x's dtype.

    ``eps`` (1e-6 in Qwen2) matters where the vector is short: the embeddings of ``<|im_start|>`` and its kin
    have a tiny mean square, so a wrong eps halves exactly the tokens that only chat prompts contain.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * gain
