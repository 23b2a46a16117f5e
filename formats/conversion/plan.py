"""How each tensor of a conversion is to be stored: byte for byte where the target has its type, else as asked.

    planned = plan(container, model, "apr", treatment="F32")
    [p.stored() for p in planned]                      # for a writer; read, and decoded, piece by piece

A *treatment* is the name of a type. Without one, a tensor whose type the target does not have is refused, for only the
user can say whether 7 bytes a weight or another rounding is worse. With one, it applies to just those tensors, or with
``every`` to all matrices. F32 is exact; F16, BF16 and the quantised types round, and the census measures by how much.
One thing is done unasked, because it is exact and llama.cpp refuses to run without it: vectors in F16 or BF16 become
F32 in a GGUF file. The way back undoes it (``dtypes`` in a sidecar).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from assay.formats import blocks
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers import apr_types, safetensors
from assay.formats.containers.base import Container, StorageType, Stored, TensorInfo
from assay.formats.containers.cursor import shown
from assay.formats.errors import InputError
from assay.formats.model_file import tensor_of
from assay.formats.quantizers import QUANTIZABLE, quantize
from assay.formats.qwen2.description import Qwen2
from assay.formats.qwen2.tensor_names import canonical_name, hf_name

BYTES_AT_ONCE = 8 << 20
ELEMENTS_AT_ONCE = 4 << 20
"""Decoded at once: 16 MiB of f32."""
CALLED = {"gguf": "GGUF", "apr": "APR", "hf": "safetensors"}
EXACT, ROUNDED, SAME = "same values", "rounded", "same bytes"


@dataclass(frozen=True)
class Planned:
    """One tensor of the target."""

    name: str
    """Ours (GGUF's)."""
    renamed: str
    """The target's."""
    source: TensorInfo
    type: StorageType
    """In the target."""
    promise: str
    """What the census must find at least: SAME, EXACT or ROUNDED."""
    read: Callable[[], Iterator[np.ndarray]] = field(repr=False)

    def stored(self) -> Stored:
        return Stored(self.renamed, self.type, self.source.shape, self.read)


def plan(container: Container, model: Qwen2, target: str, *, treatment: str | None = None, every: bool = False,
         dtypes: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None) -> list[Planned]:  # fmt: skip
    """Every tensor of ``model`` on its way into a ``target`` file.

    ``dtypes`` (by the target's names) are types that vectors had before they were widened; ``names`` the target's
    names by ours, where they are not the usual ones. Raises InputError for a treatment that the target has no type
    for, and, without a treatment, for tensors whose type it does not have, all of them in one line.
    """
    demand_treatment(treatment, target)
    planned: list[Planned] = []
    refused: Counter[str] = Counter()
    for name, info in model.tensors.items():
        renamed = (names or {}).get(name) or (name if target == "gguf" else hf_name(name))
        kind = type_of(container, info, target, treatment, every, (dtypes or {}).get(renamed))
        if kind is None:
            refused[info.type.name] += 1
        else:
            planned.append(planned_as(container, name, renamed, info, kind))
    if refused:
        some = " and ".join(f"{n} tensors in {kind}" for kind, n in sorted(refused.items()))
        holds = "whole blocks only" if target == "gguf" else ", ".join(kinds_of(target))
        raise InputError(f"{some} cannot be stored as they are: {CALLED[target]} holds {holds}", where="convert",
                         remedy="Say what to store them as: --as F32 (larger, every value exact), or another type, "
                         "which rounds")  # fmt: skip
    return planned


def demand_treatment(treatment: str | None, target: str) -> None:
    """Raise InputError unless ``treatment`` is a type that can be made, and that the target has."""
    if treatment is None:
        return
    possible = [kind for kind in QUANTIZABLE if kind in kinds_of(target)]
    if treatment not in possible:
        raise InputError(f"tensors cannot be stored as {shown(treatment)} in {CALLED[target]}", where="--as",
                         remedy=f"Use one of {', '.join(possible)}")  # fmt: skip


def kinds_of(target: str) -> tuple[str, ...]:
    """Names of the types that a format has and this project decodes."""
    table = {"gguf": BY_NAME, "apr": apr_types.CODE_OF, "hf": safetensors.DTYPES}[target]
    own = ("APR_Q4", "APR_Q8") if target == "apr" else ()
    return (*(name for name in blocks.DECODABLE if name in table), *own)


def holds(target: str, kind: StorageType, shape: tuple[int, ...]) -> bool:
    """Whether a ``target`` file can hold a tensor in this type; GGUF does not pad rows, APR does."""
    whole = target == "apr" or not shape or shape[-1] % kind.block_elements == 0
    return kind.name in kinds_of(target) and whole


def type_of(container: Container, info: TensorInfo, target: str, treatment: str | None, every: bool,
            narrow: str | None) -> StorageType | None:  # fmt: skip
    """The type in the target, or None if the tensor cannot be stored as asked."""
    vector = len(info.shape) < 2
    if narrow in ("F16", "BF16") and vector and info.type.name == "F32" and narrows(container, info, narrow):
        return BY_NAME[narrow]
    if target == "gguf" and vector and info.type.name in ("F16", "BF16"):
        return BY_NAME["F32"]
    if holds(target, info.type, info.shape) and not (every and treatment and not vector):
        return info.type
    return BY_NAME[treatment] if treatment and holds(target, BY_NAME[treatment], info.shape) else None


def narrows(container: Container, info: TensorInfo, narrow: str) -> bool:
    """Whether every value of a vector is one of type ``narrow``, too."""
    values = tensor_of(container, info).decode()
    return np.array_equal(blocks.dequantize(narrow, blocks.encode(narrow, values)), values)


def planned_as(container: Container, name: str, renamed: str, info: TensorInfo, kind: StorageType) -> Planned:
    """The plan for one tensor, its type decided."""
    if kind.name == info.type.name:
        return Planned(name, renamed, info, info.type, SAME, lambda: raw_pieces(container, info.name))
    if kind.name == container.row_type(info.name).name:
        return Planned(name, renamed, info, kind, EXACT, lambda: row_pieces(container, info))
    exact = kind.name == "F32" or (info.type.name == "F32" and len(info.shape) < 2)  # the latter: see narrows
    return Planned(name, renamed, info, kind, EXACT if exact else ROUNDED,
                   lambda: encoded_pieces(container, info, kind))  # fmt: skip


def raw_pieces(container: Container, name: str) -> Iterator[np.ndarray]:
    """A tensor's stored bytes in pieces; their pages are let go of, so that memory does not grow with the file."""
    raw = container.raw(name)
    for at in range(0, len(raw), BYTES_AT_ONCE):
        yield raw[at : at + BYTES_AT_ONCE]
        container.release()


def row_slices(info: TensorInfo) -> Iterator[slice]:
    """Runs of rows of about ELEMENTS_AT_ONCE elements."""
    step = max(1, ELEMENTS_AT_ONCE // max(info.shape[-1] if info.shape else 1, 1))
    for start in range(0, info.n_rows, step):
        yield slice(start, min(start + step, info.n_rows))


def row_pieces(container: Container, info: TensorInfo) -> Iterator[np.ndarray]:
    """Rows in blocks that every format knows, for a type that only this container has."""
    for rows in row_slices(info):
        yield container.rows(info.name, rows)
        container.release()


def decoded_pieces(container: Container, info: TensorInfo) -> Iterator[np.ndarray]:
    """Rows decoded, f32 [n_rows, shape[-1]] at a time. Raises FormatError non-finite."""
    tensor = tensor_of(container, info)
    for rows in row_slices(info):
        yield tensor.rows(rows.start, rows.stop)
        container.release()


def encoded_pieces(container: Container, info: TensorInfo, kind: StorageType) -> Iterator[np.ndarray]:
    """Rows decoded and stored in another type, the last block of a row filled up with zeros."""
    first = 0
    for values in decoded_pieces(container, info):
        if missing := -values.shape[1] % kind.block_elements:
            values = np.pad(values, ((0, 0), (0, missing)))
        where = f"tensor {shown(info.name)}, rows from {first}: "
        yield quantize(kind.name, np.ascontiguousarray(values), where=where)
        first += len(values)


def canonical_names(names: list[str]) -> dict[str, str]:
    """A file's tensor names by ours."""
    return {canonical_name(name): name for name in names}
