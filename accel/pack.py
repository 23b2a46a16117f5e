"""All weights of a model on the device, one stack of layers for each role and type.

A Q4_K_M file mixes types by layer (half of ``ffn_down`` is Q6_K, the other half Q4_K). To run all layers
through one compiled body, the matrices of one role are stacked by type, and two small tables say where a
layer's matrix is:

    ffn_down   Q6_K, 14 slots     kind  0 0 0 1 1 0 1 1 ...   which stack layer l is in
               Q4_K, 14 slots     slot  0 1 2 0 1 3 2 3 ...   and at which place

The output matrix, 151,936 rows of it, is cut into slices of rows, and each slice takes a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from accel.layout import LAYOUTS, planes_of
from formats import ModelFile, Tensor
from formats.anatomy import layer_tensors

OUTPUT_SLICES = 16
"""The partial sums of a whole output matrix would be tens of megabytes; those of a slice stay in the cache."""
PACKING_THREADS = 2  # NumPy's copies run without the interpreter's lock; more threads than this gain nothing


@jax.tree_util.register_dataclass
@dataclass
class Packed:
    """Matrices of one shape [out_features, in_features] and one type, each in a slot."""

    low: tuple[jax.Array, ...]
    """Byte planes [n_slots, n_groups, out_features]; see ``accel/layout.py``."""
    high: tuple[jax.Array, ...]
    fields: dict[str, jax.Array]
    """``scale``, ``min`` [n_slots, n_groups, out], ``d``, ``dmin`` [n_slots, n_groups / groups a block, out]; or
    ``raw`` [n_slots, out, row_bytes] for a type without a plane layout."""
    type: str = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass
class Stack:
    """The matrices of one role in all layers."""

    parts: tuple[Packed, ...]
    """One for each type that occurs."""
    kind: jax.Array
    """[n_layers] int32: index into ``parts``."""
    slot: jax.Array
    """[n_layers] int32: the slot in that part."""


@jax.tree_util.register_dataclass
@dataclass
class Params:
    """A whole model on the device."""

    embedding: Packed
    matrices: dict[str, Stack]
    """By role: ``attn_q``, ``attn_k``, ``attn_v``, ``attn_output``, ``ffn_gate``, ``ffn_up``, ``ffn_down``."""
    vectors: dict[str, jax.Array]
    """By name: norms' gains and biases of all layers, f32 [n_layers, size]."""
    final_gain: jax.Array
    output: Packed


def pack(file: ModelFile, progress: Callable[[int, int], None] | None = None) -> Params:
    """Read every tensor of ``file`` onto the device; ``progress(done, total)`` counts tensors.

    Raises FormatError for a NaN or infinite scale.
    """
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
            matrices[name.removesuffix(".weight")] = stack(members)
        else:
            vectors[name] = jnp.asarray(np.stack([t.decode() for t in members]))
        count(len(members))
    embedding = pack_slices(tensors["token_embd.weight"])
    output = embedding if config.tied else pack_slices(tensors["output.weight"])
    final_gain = jnp.asarray(tensors["output_norm.weight"].decode())
    count(len(tensors) - done)
    return Params(embedding, matrices, vectors, final_gain, output)


def stack(tensors: Sequence[Tensor]) -> Stack:
    """Stack one role's tensors, layer by layer, by type."""
    types = list(dict.fromkeys(t.type.name for t in tensors))
    kind = np.array([types.index(t.type.name) for t in tensors], np.int32)
    slot = np.array([np.sum(kind[:i] == kind[i]) for i in range(len(kind))], np.int32)
    parts = tuple(
        fill(name, [partial(finite_rows, t, 0, t.n_rows) for t in tensors if t.type.name == name]) for name in types
    )
    return Stack(parts, jnp.asarray(kind), jnp.asarray(slot))


def pack_slices(tensor: Tensor) -> Packed:
    """One tall matrix, cut into equal slices of rows: OUTPUT_SLICES, or the next smaller number that divides."""
    n_slices = next(n for n in range(OUTPUT_SLICES, 0, -1) if tensor.n_rows % n == 0)
    step = tensor.n_rows // n_slices
    starts = range(0, tensor.n_rows, step)
    return fill(tensor.type.name, [partial(finite_rows, tensor, start, start + step) for start in starts])


def finite_rows(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Rows as uint8 [stop - start, row_bytes], their scales checked; FormatError for a NaN or infinite one."""
    tensor.check_finite(start, stop)
    return tensor.raw()[start:stop]


def fill(type_name: str, readers: Sequence[Callable[[], np.ndarray]]) -> Packed:
    """Pack what each reader returns into its slot, several at a time."""

    def read(i: int) -> dict[str, np.ndarray]:
        raw = readers[i]()
        return planes_of(type_name, raw) if type_name in LAYOUTS else {"raw": raw}

    first = read(0)
    host = {name: np.empty((len(readers), *array.shape), array.dtype) for name, array in first.items()}
    for name, array in first.items():
        host[name][0] = array

    def place(i: int) -> None:
        for name, array in read(i).items():
            host[name][i] = array

    with ThreadPoolExecutor(PACKING_THREADS) as pool:
        list(pool.map(place, range(1, len(readers))))
    return Packed(
        low=by_plane(host.pop("low", ())),
        high=by_plane(host.pop("high", ())),
        fields={name: jnp.asarray(array) for name, array in host.items()},
        type=type_name,
    )


def by_plane(slots: np.ndarray | Iterable[np.ndarray]) -> tuple[jax.Array, ...]:
    """[n_slots, n_planes, n_groups, out] -> one device array [n_slots, n_groups, out] a plane.

    Separate arrays, because then each plane of a layer is a slice with one user, which XLA reads in place. Sixteen
    slices of one array cost a copy of the layer: 10 to 36 billion weights/s in place of 30 to 46.
    """
    if not isinstance(slots, np.ndarray):
        return ()
    return tuple(jnp.asarray(np.ascontiguousarray(slots[:, j])) for j in range(slots.shape[1]))
