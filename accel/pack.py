"""Weights on the device, still quantised: the file's blocks, one stack of layers for each role and type.

A Q4_K_M file mixes types by layer (half of ``ffn_down`` is Q6_K, the other half Q4_K). To run all layers
through one compiled body, the matrices of one role are stacked by type, and two small tables say where a
layer's matrix is:

    ffn_down   Q6_K [14, out, row_bytes]     kind  0 0 0 1 1 0 1 1 ...   which stack layer l is in
               Q4_K [14, out, row_bytes]     slot  0 1 2 0 1 3 2 3 ...   and at which place
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from formats import ModelFile, Tensor
from formats.anatomy import layer_tensors


@jax.tree_util.register_dataclass
@dataclass
class Stack:
    """The matrices [out_features, in_features] of one role in all layers, in their storage formats."""

    blocks: tuple[jax.Array, ...]
    """One uint8 [n_layers_of_this_type, out_features, row_bytes] for each type."""
    kind: jax.Array
    """[n_layers] int32: index into ``types``."""
    slot: jax.Array
    """[n_layers] int32: index into that type's stack."""
    types: tuple[str, ...] = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass
class Params:
    """A whole model on the device."""

    embedding: Stack
    matrices: dict[str, Stack]
    """By role: ``attn_q``, ``attn_k``, ``attn_v``, ``attn_output``, ``ffn_gate``, ``ffn_up``, ``ffn_down``."""
    vectors: dict[str, jax.Array]
    """By name: norms' gains and biases of all layers, f32 [n_layers, size]."""
    final_gain: jax.Array
    output: Stack


def stack_matrices(tensors: Sequence[Tensor]) -> Stack:
    """Stack one role's tensors, layer by layer, by type; raises FormatError for a NaN or infinite scale."""
    types = tuple(dict.fromkeys(t.type.name for t in tensors))
    kind = np.array([types.index(t.type.name) for t in tensors], np.int32)
    slot = np.array([int(np.sum(kind[:i] == kind[i])) for i in range(len(kind))], np.int32)
    blocks = []
    for name in types:
        members = [t for t in tensors if t.type.name == name]
        stacked = np.empty((len(members), *members[0].raw().shape), np.uint8)
        for i, tensor in enumerate(members):
            tensor.check_finite()
            stacked[i] = tensor.raw()
        blocks.append(jnp.asarray(stacked))
    return Stack(tuple(blocks), jnp.asarray(kind), jnp.asarray(slot), types)


def pack(file: ModelFile, progress: Callable[[int, int], None] | None = None) -> Params:
    """Read every tensor of ``file`` onto the device; ``progress(done, total)`` counts tensors."""
    config, tensors = file.config, file.tensors
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress(done, len(tensors))

    matrices: dict[str, Stack] = {}
    vectors: dict[str, jax.Array] = {}
    for name, shape in layer_tensors(config).items():
        members = [tensors[f"blk.{layer}.{name}"] for layer in range(config.n_layers)]
        if len(shape) == 2:
            matrices[name.removesuffix(".weight")] = stack_matrices(members)
        else:
            vectors[name] = jnp.asarray(np.stack([t.decode() for t in members]))
        count(len(members))
    embedding = stack_matrices([tensors["token_embd.weight"]])
    output = embedding if config.tied else stack_matrices([tensors["output.weight"]])
    final_gain = jnp.asarray(tensors["output_norm.weight"].decode())
    count(len(tensors) - done)
    return Params(embedding, matrices, vectors, final_gain, output)
