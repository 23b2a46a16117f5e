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
ROWS_AT_ONCE = 512
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

    def of_all_layers(name: str) -> list[Tensor]:
        return [tensors[f"blk.{layer}.{name}"] for layer in range(config.n_layers)]

    shapes = layer_tensors(config)
    vectors = {
        name: jnp.asarray(np.stack([t.decode() for t in of_all_layers(name)]))
        for name, shape in shapes.items()
        if len(shape) == 1
    }
    by_role = {
        name.removesuffix(".weight"): of_all_layers(name) for name, shape in shapes.items() if len(shape) == 2
    }
    count(len(vectors) * config.n_layers)
    matrices = {}
    for roles in joined(by_role):
        matrices[roles] = stack(list(zip(*(by_role[role] for role in roles), strict=True)), file.release)
        count(len(roles) * config.n_layers)
    embedding = pack_slices(tensors["token_embd.weight"], file.release)
    output = embedding if config.tied else pack_slices(tensors["output.weight"], file.release)
    final_gain = jnp.asarray(tensors["output_norm.weight"].decode())
    count(len(tensors) - done)
    return Params(embedding, matrices, vectors, final_gain, output)


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


def stack(layers: Sequence[Sequence[Tensor]], release: Release) -> Stack:
    """Stack matrices layer by layer, by type; the tensors of one layer are of one type and are joined."""
    names = [members[0].type.name for members in layers]
    types = list(dict.fromkeys(names))
    kind = np.array([types.index(name) for name in names], np.int32)
    slot = np.array([np.sum(kind[:i] == kind[i]) for i in range(len(kind))], np.int32)
    parts = tuple(
        fill(
            one_type,
            [partial(finite_rows, m) for m, name in zip(layers, names, strict=True) if name == one_type],
            release,
        )
        for one_type in types
    )
    return Stack(parts, jnp.asarray(kind), jnp.asarray(slot))


def pack_slices(tensor: Tensor, release: Release) -> Packed:
    """One tall matrix, cut into equal slices of rows: OUTPUT_SLICES, or the next smaller number that divides."""
    n_slices = next(n for n in range(OUTPUT_SLICES, 0, -1) if tensor.n_rows % n == 0)
    step = tensor.n_rows // n_slices
    slices = [slice(start, start + step) for start in range(0, tensor.n_rows, step)]
    return fill(tensor.type.name, [partial(finite_rows, [tensor], rows) for rows in slices], release)


def finite_rows(tensors: Sequence[Tensor], rows: slice = slice(None)) -> np.ndarray:
    """Rows of each tensor, one tensor after the other, uint8 [n_rows, row_bytes], their scales checked.

    Raises FormatError for a NaN or infinite scale.
    """
    for tensor in tensors:
        tensor.check_finite(rows)
    return np.concatenate([tensor.raw()[rows] for tensor in tensors]) if len(tensors) > 1 else tensors[0].raw()[rows]


def fill(type_name: str, readers: Sequence[Callable[[], np.ndarray]], release: Release = lambda: None) -> Packed:
    """Pack the rows that each reader returns into its slot, several at a time; ``release`` is called after each.

    What was packed is not needed a second time: giving its pages of the file back as one goes keeps the file and
    the packed weights from being in memory both. Rows go through in small lots, which stay in the cache.
    """
    n_rows, row_bytes = readers[0]().shape
    host: dict[str, np.ndarray] = {}
    for name, one_row in parts_of_rows(type_name, np.zeros((1, row_bytes), np.uint8)).items():
        shape = (n_rows, row_bytes) if name == "raw" else (len(one_row), n_rows)
        host[name] = aligned((len(readers), *shape), one_row.dtype)

    def place(slot: int) -> None:
        raw = readers[slot]()
        for start in range(0, n_rows, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            for name, part in parts_of_rows(type_name, raw[rows]).items():
                host[name][(slot, rows) if name == "raw" else (slot, slice(None), rows)] = part
        release()

    with ThreadPoolExecutor(PACKING_THREADS) as pool:
        list(pool.map(place, range(len(readers))))
    device = {name: jax.device_put(array) for name, array in host.items()}
    layout = LAYOUTS.get(type_name)
    n_words = sum(map(len, layout.words)) if layout else 0
    return Packed(
        words=tuple(device.pop(f"word{i}") for i in range(n_words)),
        scales=tuple(device.pop(name) for name in ("scale0", "scale1") if name in device),
        fields=device,
        type=type_name,
    )


def parts_of_rows(type_name: str, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of blocks, uint8 [n_rows, row_bytes], as what is kept of them on the device."""
    return parts_of(type_name, raw) if type_name in LAYOUTS else {"raw": raw}


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that starts on a multiple of 64 bytes: the CPU device takes such memory over as it is."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)
