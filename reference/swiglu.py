"""The gate of the feed-forward network: SwiGLU(x) = silu(W_gate·x) ⊙ W_up·x, one projection deciding how much
of the other passes. The two products and the ⊙ stand in ``reference/model.py``; here is the activation.

Source: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6 (SwiGLU without biases).
"""

from __future__ import annotations

import numpy as np


def silu(x: np.ndarray) -> np.ndarray:
    """silu(x) = x·sigmoid(x) = x / (1 + e^-x), elementwise, in x's dtype.

    e^-x overflows for very negative x; x/inf = -0 is then the right limit, so the overflow is not an error.
    """
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))
