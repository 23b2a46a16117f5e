"""The anatomy of a Qwen2 model: its hyper-parameters, the names of its stages, the tensors it must have.

The only thing that the oracle and the fast path share about the model is written here, and it is names and
shapes, not arithmetic.

Axis glossary, used in every docstring of the project:

    n_tokens     positions of one sequence            n_heads      query heads
    hidden_size  width of the residual stream         n_kv_heads   key/value heads; each serves n_heads / n_kv_heads
    ffn_size     inner width of the feed-forward      head_dim     width of one head
    n_vocab      rows of the embedding and logits (a file may pad it beyond the tokenizer's vocabulary)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of a Qwen2 model, as its file states them."""

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    n_vocab: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool
    """True if the output projection is the embedding matrix itself (no ``output.weight`` in the file)."""


WHOLE_MODEL_STAGES = ("embedding", "final_norm", "logits")
LAYER_STAGES = (
    "attn_norm",
    "q_proj", "k_proj", "v_proj",  # before bias
    "q_bias", "k_bias", "v_bias",  # after bias
    "q_rope", "k_rope",
    "attention",  # before the output projection, heads side by side
    "attn_out",  # after it
    "attn_residual",
    "ffn_norm",
    "ffn_gate", "ffn_up",
    "ffn_silu",  # silu(gate)
    "ffn_swiglu",  # silu(gate) * up
    "ffn_out",
    "ffn_residual",
)  # fmt: skip
STAGES = ("embedding", *LAYER_STAGES, "final_norm", "logits")
"""Every stage in the order it is computed; the names under which a tap is shown activations."""


def layer_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors by short name. A matrix is [out, in]: it maps x to ``W @ x``."""
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "attn_norm.weight": (config.hidden_size,),
        "attn_q.weight": (q_size, config.hidden_size),
        "attn_q.bias": (q_size,),
        "attn_k.weight": (kv_size, config.hidden_size),
        "attn_k.bias": (kv_size,),
        "attn_v.weight": (kv_size, config.hidden_size),
        "attn_v.bias": (kv_size,),
        "attn_output.weight": (config.hidden_size, q_size),
        "ffn_norm.weight": (config.hidden_size,),
        "ffn_gate.weight": (config.ffn_size, config.hidden_size),
        "ffn_up.weight": (config.ffn_size, config.hidden_size),
        "ffn_down.weight": (config.hidden_size, config.ffn_size),
    }


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor the model must have, and of no other: 12 a layer, plus 2 or 3."""
    shapes = {
        "token_embd.weight": (config.n_vocab, config.hidden_size),
        "output_norm.weight": (config.hidden_size,),
    }
    if not config.tied:
        shapes["output.weight"] = (config.n_vocab, config.hidden_size)
    for layer in range(config.n_layers):
        for name, shape in layer_tensors(config).items():
            shapes[f"blk.{layer}.{name}"] = shape
    return shapes
