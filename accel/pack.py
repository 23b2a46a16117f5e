"""All weights of a model on the device, one stack of layers for each role and type.

A Q4_K_M file mixes types by layer (half of ``ffn_down`` is Q6_K, the other half Q4_K). To run all layers
through one compiled body, the matrices of one role are stacked by type, and two small tables say where a
layer's matrix is:

    ffn_down   Q6_K, 14 slots     kind  0 0 0 1 1 0 1 1 ...   which stack layer l is in
               Q4_K, 14 slots     slot  0 1 2 0 1 3 2 3 ...   and at which place

Matrices that multiply the same activations and have the same types (gate and up; query and key) are joined, rows
after rows: fewer and wider loops, some 15 % faster.

The output matrix, 151,936 rows of it, is cut into slices of rows, and each slice takes a slot. The embedding, where it
is a matrix of its own, is only ever looked up, a row at a time: it stays as the file has it, on a CPU *where* it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from assay.accel.layout import LAYOUTS, parts_of
from assay.formats import ModelFile, Tensor
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.contract.config import layer_tensors
from assay.formats.system.progress import quiet

OUTPUT_SLICES = 16
"""The partial sums of a whole output matrix would be tens of megabytes; those of a slice stay in the cache."""
SAME_INPUT = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""Roles that multiply the same activations."""
PACKING_THREADS = 2  # NumPy's copies run without the interpreter's lock; more threads than this gain nothing
CHUNK_ROWS, LOT_ELEMENTS = 1536, 768
"""What is re-ordered at once: little enough to stay in the cache, enough for NumPy's price of a call not to show."""


@jax.tree_util.register_dataclass
@dataclass
class Packed:
    """Matrices of one shape [out_features, in_features] and one type, each in a slot."""

    words: tuple[jax.Array, ...]
    """Packed words [n_slots, n_groups, out] uint16; see ``accel/layout.py``. Separate arrays, because then each one of
    a layer is a slice with one user, which XLA reads in place. Sixteen slices of one array cost a copy of the layer,
    or an index computation a byte: 10 to 36 billion weights/s in place of 30 to 46."""
    scales: tuple[jax.Array, ...]
    """[n_slots, n_groups, out], as many as the layout says; none where a group has only ``d``."""
    fields: dict[str, jax.Array]
    """``min`` [n_slots, n_groups, out], ``d``, ``dmin`` [n_slots, n_groups / groups a block, out]; or ``raw``
    [n_slots, out, row_bytes] for a type without a layout of packed words."""
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
    embedding = tensors["token_embd.weight"]
    output = shapes_of_slices(embedding if config.tied else tensors["output.weight"])
    bytes_of = jax.ShapeDtypeStruct((1, embedding.n_rows, row_bytes(embedding)), jnp.uint8)
    return Params(
        embedding=output if config.tied else whole(embedding, bytes_of),
        matrices=stacks,
        vectors={name: shape(len(v), *v[0].shape) for name, v in vectors.items()},
        final_gain=shape(*tensors["output_norm.weight"].shape),
        output=output,
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
        if progress:
            progress(done, len(tensors))

    on_device = {name: jnp.asarray(np.stack([t.decode() for t in v])) for name, v in vectors.items()}
    count(sum(map(len, vectors.values())))
    stacks = {}
    for roles, layers in matrices.items():
        kind, slot = places(layers)
        parts = [
            fill(part, [partial(finite_rows, m) for m, k in zip(layers, kind, strict=True) if k == i],
                 file.release, partial(count, len(roles)))
            for i, part in enumerate(planned.matrices[roles].parts)
        ]  # fmt: skip
        stacks[roles] = Stack(tuple(parts), jnp.asarray(kind), jnp.asarray(slot))
    embedding, tied = tensors["token_embd.weight"], file.config.tied
    output = pack_slices(planned.output, embedding if tied else tensors["output.weight"], file.release)
    if not tied:
        for _ in finite_rows([embedding]):
            file.release()
    final_gain = jnp.asarray(tensors["output_norm.weight"].decode())
    count(len(tensors) - done)
    looked_up = output if tied else whole(embedding, jax.device_put(embedding.raw()[None]))
    return Params(looked_up, stacks, on_device, final_gain, output)


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


def whole(tensor: Tensor, raw: Any) -> Packed:
    """A matrix that is only looked up: its bytes, uint8 [1, n_rows, row_bytes], as the file has them.

    The CPU device takes an array over without a copy if it begins at a multiple of 64 bytes, also one that is a map of
    the file; then a row comes into memory when its token occurs, and a file cut short meanwhile ends the process, as it
    does the oracle's. (Elsewhere, and else, it is copied.)
    """
    return Packed((), (), {"raw": raw}, tensor.type.name)


def pack_slices(planned: Packed, tensor: Tensor, release: Callable[[], None]) -> Packed:
    """One tall matrix, cut into slices of rows."""
    step = tensor.n_rows // n_slices(tensor)
    slices = [range(start, start + step) for start in range(0, tensor.n_rows, step)]
    return fill(planned, [partial(finite_rows, [tensor], rows) for rows in slices], release)


def row_bytes(tensor: Tensor) -> int:
    """Bytes of a row of blocks."""
    return tensor.row_bytes


def finite_rows(tensors: Sequence[Tensor], rows: range | None = None) -> Iterator[np.ndarray]:
    """Rows of each tensor (all, or ``rows``), one tensor after the other, in chunks: uint8 [n_rows, row_bytes].

    Raises FormatError for a NaN or infinite scale.
    """
    for tensor in tensors:
        wanted = range(tensor.n_rows) if rows is None else rows
        for start in range(wanted.start, wanted.stop, CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, wanted.stop))
            tensor.check_finite(chunk)
            yield tensor.raw(chunk)


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


def fill(planned: Packed, readers: Sequence[Callable[[], Iterable[np.ndarray]]],
         release: Callable[[], None] = quiet, filled: Callable[[], None] = quiet) -> Packed:  # fmt: skip
    """Pack the chunks of rows that each reader yields, one after the other, into its slot.

    ``release`` is called after each chunk, ``filled`` after each slot. What was packed is not needed a second time:
    giving its pages of the file back as one goes keeps the file and the packed weights from being in memory both.
    """
    host = jax.tree.map(lambda a: aligned(a.shape, a.dtype), planned)

    def place(slot: int) -> None:
        matrix, first = jax.tree.map(lambda a: a[slot], host), 0
        for chunk in readers[slot]():
            place_rows(matrix, chunk, first)
            first += len(chunk)
            release()
        filled()

    with ThreadPoolExecutor(PACKING_THREADS) as pool:
        list(pool.map(place, range(len(readers))))
    return jax.tree.map(jax.device_put, host)


def place_rows(matrix: Packed, chunk: np.ndarray, first: int) -> None:
    """Write rows of blocks, uint8 [n_rows, row_bytes], as rows ``first`` and following of a matrix on the host."""
    rows, block = slice(first, first + len(chunk)), BY_NAME[matrix.type]
    if "raw" in matrix.fields:
        matrix.fields["raw"][rows] = chunk
        return
    step = LOT_ELEMENTS // block.block_elements * block.block_bytes
    for column in range(0, chunk.shape[1], step):
        parts = packed_of(matrix.type, parts_of(matrix.type, chunk[:, column : column + step]))
        for array, part in zip(jax.tree.leaves(matrix), jax.tree.leaves(parts), strict=True):
            at = column * len(array) // chunk.shape[1]  # arrays have so many rows for each block
            array[at : at + len(part), rows] = part


def parts_of_rows(type_name: str, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of blocks, uint8 [n_rows, row_bytes], as what is kept of them on the device."""
    return parts_of(type_name, raw) if type_name in LAYOUTS else {"raw": raw}


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that starts on a multiple of 64 bytes: the CPU device takes such memory over as it is."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
