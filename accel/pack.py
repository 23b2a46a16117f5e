"""All weights of a model on the device, one stack of layers for each role and type.

A Q4_K_M file mixes types by layer (half of ``ffn_down`` is Q6_K, the other half Q4_K). To run all layers
through one compiled body, the matrices of one role are stacked by type, and two small tables say where a
layer's matrix is:

    ffn_down   Q6_K, 14 slots     kind  0 0 0 1 1 0 1 1 ...   which stack layer l is in
               Q4_K, 14 slots     slot  0 1 2 0 1 3 2 3 ...   and at which place

Matrices that multiply the same activations and have the same types (gate and up; query and key) are joined, rows
after rows: fewer and wider loops, some 15 % faster.

The output matrix, 151,936 rows of it, is cut into slices of rows, and each slice takes a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accel.layout import LAYOUTS, parts_of
from formats import ModelFile, Tensor
from formats.anatomy import layer_tensors

OUTPUT_SLICES = 16
"""The partial sums of a whole output matrix would be tens of megabytes; those of a slice stay in the cache."""
SAME_INPUT = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""Roles that multiply the same activations."""
Release = Callable[[], None]
ROWS_AT_ONCE = 1024
PACKING_THREADS = 2  # NumPy's copies run without the interpreter's lock; more threads than this gain nothing


@jax.tree_util.register_dataclass
@dataclass
class Packed:
    """Matrices of one shape [out_features, in_features] and one type, each in a slot."""

    words: tuple[jax.Array, ...]
    """Planes [n_slots, n_groups, out] uint16; see ``accel/layout.py``. Separate arrays, because then each plane of a
    layer is a slice with one user, which XLA reads in place. Sixteen slices of one array cost a copy of the layer,
    or an index computation a byte: 10 to 36 billion weights/s in place of 30 to 46."""
    scales: tuple[jax.Array, ...]
    """[n_slots, n_groups, out], as many as the layout says; none where a group has only ``d``."""
    fields: dict[str, jax.Array]
    """``min`` [n_slots, n_groups, out], ``d``, ``dmin`` [n_slots, n_groups / groups a block, out]; or ``raw``
    [n_slots, out, row_bytes] for a type without a plane layout."""
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
    matrices: dict[tuple[str, ...], Stack]
    """By the roles joined in each stack, such as ``("attn_q", "attn_k")``, ``("attn_v",)``; all seven occur once."""
    vectors: dict[str, jax.Array]
    """By name: norms' gains and biases of all layers, f32 [n_layers, size]."""
    final_gain: jax.Array
    output: Packed


def plan(file: ModelFile) -> Params:
    """What ``pack`` will return, with a ``jax.ShapeDtypeStruct`` for each array: enough to compile against."""
    config, tensors = file.config, file.tensors
    index: Any = jax.ShapeDtypeStruct((config.n_layers,), jnp.int32)
    vectors, matrices = of_all_layers(file)
    stacks = {}

    def shape(*size: int) -> Any:
        return jax.ShapeDtypeStruct(size, jnp.float32)

    for roles, layers in matrices.items():
        kind, _ = places(layers)
        of_kind = [[m for m, k in zip(layers, kind, strict=True) if k == i] for i in range(kind.max() + 1)]
        parts = tuple(shapes(m[0][0].type.name, len(m), sum(t.n_rows for t in m[0]), row_bytes(m[0][0]))
                      for m in of_kind)  # fmt: skip
        stacks[roles] = Stack(parts, index, index)
    embedding = shapes_of_slices(tensors["token_embd.weight"])
    return Params(
        embedding=embedding,
        matrices=stacks,
        vectors={name: shape(len(v), *v[0].shape) for name, v in vectors.items()},
        final_gain=shape(*tensors["output_norm.weight"].shape),
        output=embedding if config.tied else shapes_of_slices(tensors["output.weight"]),
    )


def pack(file: ModelFile, progress: Callable[[int, int], None] | None = None) -> Params:
    """Read every tensor of ``file`` onto the device; ``progress(done, total)`` counts tensors.

    Raises FormatError for a NaN or infinite scale.
    """
    planned, tensors = plan(file), file.tensors
    vectors, matrices = of_all_layers(file)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        file.release()
        if progress:
            progress(done, len(tensors))

    on_device = {name: jnp.asarray(np.stack([t.decode() for t in v])) for name, v in vectors.items()}
    count(sum(map(len, vectors.values())))
    stacks = {}
    for roles, layers in matrices.items():
        kind, slot = places(layers)
        parts = [
            fill(part, [partial(finite_rows, m) for m, k in zip(layers, kind, strict=True) if k == i],
                 partial(count, len(roles)))
            for i, part in enumerate(planned.matrices[roles].parts)
        ]  # fmt: skip
        stacks[roles] = Stack(tuple(parts), jnp.asarray(kind), jnp.asarray(slot))
    embedding = pack_slices(planned.embedding, tensors["token_embd.weight"], file.release)
    output = embedding
    if not file.config.tied:
        output = pack_slices(planned.output, tensors["output.weight"], file.release)
    final_gain = jnp.asarray(tensors["output_norm.weight"].decode())
    count(len(tensors) - done)
    return Params(embedding, stacks, on_device, final_gain, output)


Matrices = dict[tuple[str, ...], list[tuple[Tensor, ...]]]
"""By the roles that are joined: in each layer, the tensors to be put one after the other."""


def of_all_layers(file: ModelFile) -> tuple[dict[str, list[Tensor]], Matrices]:
    """The vectors of all layers by name, and the matrices by the roles that are packed together."""
    by_name = {
        name: [file.tensors[f"blk.{layer}.{name}"] for layer in range(file.config.n_layers)]
        for name in layer_tensors(file.config)
    }
    vectors = {name: v for name, v in by_name.items() if len(v[0].shape) == 1}
    by_role = {name.removesuffix(".weight"): v for name, v in by_name.items() if name not in vectors}
    return vectors, {roles: list(zip(*(by_role[r] for r in roles), strict=True)) for roles in joined(by_role)}


def joined(by_role: dict[str, list[Tensor]]) -> list[tuple[str, ...]]:
    """The roles, those of one group together where their types agree in every layer."""
    groups: list[tuple[str, ...]] = []
    for family in SAME_INPUT:
        by_types: dict[tuple[str, ...], tuple[str, ...]] = {}
        for role in family:
            types = tuple(t.type.name for t in by_role[role])
            by_types[types] = (*by_types.get(types, ()), role)
        groups.extend(by_types.values())
    return groups


def places(layers: Sequence[Sequence[Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """For each layer, the number of its type in order of appearance, and its slot among those of that type: int32."""
    names = [members[0].type.name for members in layers]
    types = list(dict.fromkeys(names))
    kind = np.array([types.index(name) for name in names], np.int32)
    return kind, np.array([np.sum(kind[:i] == kind[i]) for i in range(len(kind))], np.int32)


def n_slices(tensor: Tensor) -> int:
    """Into how many equal slices of rows a tall matrix is cut: OUTPUT_SLICES, or the next smaller that divides."""
    return next(n for n in range(OUTPUT_SLICES, 0, -1) if tensor.n_rows % n == 0)


def shapes_of_slices(tensor: Tensor) -> Packed:
    """What :func:`pack_slices` will return."""
    n = n_slices(tensor)
    return shapes(tensor.type.name, n, tensor.n_rows // n, row_bytes(tensor))


def pack_slices(planned: Packed, tensor: Tensor, release: Release) -> Packed:
    """One tall matrix, cut into slices of rows."""
    step = tensor.n_rows // n_slices(tensor)
    slices = [slice(start, start + step) for start in range(0, tensor.n_rows, step)]
    return fill(planned, [partial(finite_rows, [tensor], rows) for rows in slices], release)


def row_bytes(tensor: Tensor) -> int:
    """Bytes of a row of blocks."""
    return tensor.row_bytes


def finite_rows(tensors: Sequence[Tensor], rows: slice = slice(None)) -> np.ndarray:
    """Rows of each tensor, one tensor after the other, uint8 [n_rows, row_bytes], their scales checked.

    Raises FormatError for a NaN or infinite scale.
    """
    for tensor in tensors:
        tensor.check_finite(rows)
    return np.concatenate([tensor.raw(rows) for tensor in tensors]) if len(tensors) > 1 else tensors[0].raw(rows)


def shapes(type_name: str, n_slots: int, n_rows: int, row_bytes: int) -> Packed:
    """A ``Packed`` of ``jax.ShapeDtypeStruct`` for ``n_slots`` matrices of ``n_rows`` rows."""
    parts = parts_of_rows(type_name, np.zeros((1, row_bytes), np.uint8))
    struct = {
        name: jax.ShapeDtypeStruct(
            (n_slots, n_rows, row_bytes) if name == "raw" else (n_slots, len(part), n_rows), part.dtype
        )
        for name, part in parts.items()
    }
    return packed_of(type_name, struct)


def packed_of(type_name: str, parts: dict[str, Any]) -> Packed:
    """A ``Packed`` from its parts by name."""
    n_words, parts = sum(name.startswith("word") for name in parts), dict(parts)
    words = tuple(parts.pop(f"word{i}") for i in range(n_words))
    scales = tuple(parts.pop(name) for name in ("scale0", "scale1") if name in parts)
    return Packed(words, scales, parts, type_name)


def fill(planned: Packed, readers: Sequence[Callable[[], np.ndarray]], release: Release = lambda: None) -> Packed:
    """Pack the rows that each reader returns into its slot, several at a time; ``release`` is called after each.

    What was packed is not needed a second time: giving its pages of the file back as one goes keeps the file and
    the packed weights from being in memory both. Rows go through in small lots, which stay in the cache.
    """
    host = jax.tree.map(lambda a: aligned(a.shape, a.dtype), planned)

    def place(slot: int) -> None:
        raw = readers[slot]()
        for start in range(0, len(raw), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            parts = packed_of(planned.type, parts_of_rows(planned.type, raw[rows]))
            where = (slot, rows) if "raw" in planned.fields else (slot, slice(None), rows)
            for array, part in zip(jax.tree.leaves(host), jax.tree.leaves(parts), strict=True):
                array[where] = part
        release()

    with ThreadPoolExecutor(PACKING_THREADS) as pool:
        list(pool.map(place, range(len(readers))))
    return jax.tree.map(jax.device_put, host)


def parts_of_rows(type_name: str, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of blocks, uint8 [n_rows, row_bytes], as what is kept of them on the device."""
    return parts_of(type_name, raw) if type_name in LAYOUTS else {"raw": raw}


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that starts on a multiple of 64 bytes: the CPU device takes such memory over as it is."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
