"""What happened to a tensor between two files: the known accidents of converters, each recognised by its numbers.

How closely a tensor can be expected to follow its original depends on how coarsely it is stored: TOLERANCES is the
relative RMS that one rounding into the type makes at most on weights (f16: 2**-11, bf16: 2**-8, each with room; 4-bit
types 0.1, and 2-bit ones 0.35).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from assay.formats.containers.base import Container, TensorInfo
from assay.formats.inspection.diff.measure import Measures, difference
from assay.formats.inspection.diff.prints import permutation, prints_of
from assay.formats.inspection.row_chunks import matrix_shape, readable
from assay.formats.qwen2.tensor_names import canonical_name, naming

TOLERANCES = {"F32": 1e-6, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 2e-2, "Q3_K": 0.25, "Q2_K": 0.4}
ANY_QUANTISED = 0.15
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 160, 192, 256)


class Diagnosis(NamedTuple):
    """``code`` is stable, ``text`` one line."""

    code: str
    text: str


def diagnoses(a: Container, ours: TensorInfo, b: Container, theirs: TensorInfo, measures: Measures | None, *,
              same_bytes: bool) -> Iterator[Diagnosis]:  # fmt: skip
    """What is to be said of one pair that is not identical."""
    if ours.shape != theirs.shape:
        yield from _of_shapes(a, ours, b, theirs, same_bytes)
        return
    if measures is None or measures.not_finite:
        return
    if measures.n_different == 0:
        yield Diagnosis("other-type", f"same values, other type: {ours.type.name} in A, {theirs.type.name} in B")
        return
    found = list(_of_values(ours, theirs, measures))
    yield from found or _of_order(a, ours, b, theirs)


def _of_shapes(a: Container, ours: TensorInfo, b: Container, theirs: TensorInfo,
               same_bytes: bool) -> Iterator[Diagnosis]:  # fmt: skip
    turned = ours.shape == theirs.shape[::-1]
    if same_bytes:
        what = "the dims are reversed" if turned else "the dims differ"
        yield Diagnosis("shape-only", f"same bytes, but {what}: {list(ours.shape)} in A, {list(theirs.shape)} in B")
        return
    comparable = turned and readable(a, ours.name) and readable(b, theirs.name)
    if comparable and np.array_equal(prints_of(a, ours).rows, prints_of(b, theirs).columns):
        yield Diagnosis("transposed", f"same values, transposed: B[j, i] = A[i, j], {list(ours.shape)} in A")


def _of_values(ours: TensorInfo, theirs: TensorInfo, m: Measures) -> Iterator[Diagnosis]:
    if m.bb == 0 or m.aa == 0:
        side = "B" if m.bb == 0 else "A"
        kind = "bias lost" if ours.name.endswith(".bias") else "values lost"
        yield Diagnosis("zeroed", f"{kind}: all zero in {side}")
        return
    tolerance = max(TOLERANCES.get(info.type.name, ANY_QUANTISED) for info in (ours, theirs))
    scale, rest = m.ab / m.aa, math.sqrt(max(1 - m.cosine**2, 0.0))  # b = scale * a + something of relative size rest
    rms, mean = math.sqrt(m.aa / m.n), m.d / m.n
    spread = math.sqrt(max(m.dd / m.n - mean * mean, 0.0))  # of b - a about its mean
    if m.max_sum == 0 or (rest <= tolerance and abs(scale + 1) <= tolerance):
        yield Diagnosis("sign-flipped", "sign flipped: B = -A" + ("" if m.max_sum == 0 else " up to rounding"))
    elif rest <= tolerance and abs(scale - 1) > max(1e-5, 2 * rest):
        yield Diagnosis("scaled", f"scaled by a constant: B = {scale:.6g} A, the relative rest is {rest:.1e}")
    elif m.n > 1 and spread <= tolerance * rms and abs(mean) > max(1e-5 * rms, 2 * spread):
        yield Diagnosis("shifted", f"a constant added: B = A + {mean:.6g}, the relative rest is {spread / rms:.1e}")
    elif m.relative_rms <= tolerance:
        if ours.type.name == theirs.type.name:
            yield Diagnosis("rounded", f"same numbers rounded differently into {ours.type.name}, "
                            f"{m.relative_rms:.1e} apart")  # fmt: skip
        else:
            yield Diagnosis("other-type", f"same numbers rounded into another type: {ours.type.name} in A, "
                            f"{theirs.type.name} in B, {m.relative_rms:.1e} apart")  # fmt: skip


def _of_order(a: Container, ours: TensorInfo, b: Container, theirs: TensorInfo) -> Iterator[Diagnosis]:
    """Rows or columns in another order, or a square matrix transposed."""
    p, q = prints_of(a, ours), prints_of(b, theirs)
    n_rows, n_columns = matrix_shape(ours)
    if n_rows == n_columns and n_rows > 1 and np.array_equal(p.rows, q.columns):
        yield Diagnosis("transposed", f"same values, transposed: B[j, i] = A[i, j], both {list(ours.shape)}")
        return
    sides = [("elements" if n_rows == 1 else "columns", p.columns, q.columns)]
    if n_rows > 1:
        sides.insert(0, ("rows", p.rows, q.rows))
    for side, left, right in sides:
        order = permutation(left, right)
        if order is not None:
            yield Diagnosis("permuted", f"{side} in another order: {_order(order)}")
            return


def _order(order: np.ndarray) -> str:
    """A permutation in words: that between the two rope pairings if it is that one, else how many moved."""
    n = len(order)
    for head_dim in HEAD_DIMS:
        if n % head_dim == 0:
            halves = np.arange(n).reshape(-1, 2, head_dim // 2)
            interleaved = halves.swapaxes(1, 2).ravel()
            if np.array_equal(order, interleaved) or np.array_equal(np.argsort(order), interleaved):
                return f"rope pairs, halves against neighbours, within heads of {head_dim}"
    whole = [size for size in HEAD_DIMS if n % size == 0 and n > size and _moves_whole(order, size)]
    moved = int((order != np.arange(n)).sum())
    if whole:
        return f"whole heads of {max(whole)} moved, {moved} of {n}"
    first = int((order != np.arange(n)).argmax())
    return f"{moved} of {n} moved; B's {first} is A's {order[first]}"


def _moves_whole(order: np.ndarray, size: int) -> bool:
    heads = order.reshape(-1, size)
    return bool((heads[:, 0] % size == 0).all() and (np.diff(heads, axis=1) == 1).all())


def of_names(a: Container, b: Container) -> tuple[tuple[str, str], list[Diagnosis]]:
    """The two naming styles, and a note if they differ."""
    styles = naming(list(a.tensors)), naming(list(b.tensors))
    if styles[0] == styles[1]:
        return styles, []
    return styles, [Diagnosis("naming", f"A has {styles[0]} names, B {styles[1]} names; paired by the common ones")]


def of_missing(container: Container, only: Sequence[TensorInfo], here: str, there: str) -> list[Diagnosis]:
    """What the tensors that only one file has mean."""
    found = []
    biases = [info.name for info in only if info.name.endswith(".bias")]
    if biases:
        found.append(Diagnosis("biases-lost", f"biases lost: {there} lacks {len(biases)} that {here} has, "
                               f"such as {biases[0]}"))  # fmt: skip
    outputs = [info for info in only if canonical_name(info.name) == "output.weight"]
    embeddings = [info for name, info in container.tensors.items() if canonical_name(name) == "token_embd.weight"]
    for output in outputs:
        for embedding in embeddings:
            like = (output.type.name, output.shape) == (embedding.type.name, embedding.shape)
            if like and difference(container, output, container, embedding) is None:
                found.append(Diagnosis("tied", f"{here}'s {output.name} is a copy of its embedding: {there} ties them, "
                                       "nothing is lost"))  # fmt: skip
    return found


def of_moved(a: Container, b: Container,
             differing: Sequence[tuple[str, TensorInfo, TensorInfo, Measures]]) -> Iterator[Diagnosis]:  # fmt: skip
    """Tensors whose values are in the other file under another name: swapped, or layers shifted.

    Equal values have equal sums of squares, so only where those agree are the values looked at again.
    """
    where: dict[tuple[str, tuple[int, ...]], tuple[str, TensorInfo]] = {}
    for name, _, theirs, m in differing:
        where[f"{m.bb:.9e}", theirs.shape] = name, theirs
    for name, ours, _, m in differing:
        other, theirs = where.get((f"{m.aa:.9e}", ours.shape), (name, ours))
        if other != name and np.array_equal(prints_of(a, ours).rows, prints_of(b, theirs).rows):
            yield Diagnosis("moved", f"the values of A's {name} are those of B's {other}")
