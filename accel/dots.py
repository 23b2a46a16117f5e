"""Integers out of packed words: the exact dot product of a group, and the single elements.

Why this is fast. Every function here is elementwise over [n_groups, n_outputs], so XLA fuses all words of a
matrix into one loop that LLVM vectorises along the outputs, each activation broadcast. There is no horizontal add
and no reduction inside. A word is read once, from memory to register.

Why it is exact. All of it is integer arithmetic. A 16-bit sum may wrap on the way (that is modular arithmetic, which
loses nothing) as long as its final value fits. So that it does, b-bit integers are centred: at most 16 of 5 bits
make 16 · 16 · 127 = 32,512, 8 of 6 bits 8 · 32 · 127, 2 of 8 bits 2 · 128 · 127, the same; 16 uncentred nibbles
16 · 15 · 127 = 30,480.

Telescoping saves the masks. Let f_k be the fields of a word w, at shifts s_k, of b_k bits each, and X_k what they are
multiplied with. Then

    Σ_k f_k·X_k  =  Σ_k (w >> s_k)·(X_k − 2^b_{k−1}·X_{k−1})

because every shifted word but the wanted field is taken off again one step later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from assay.accel.layout import GROUP, LAYOUTS, Layout, evenly_spaced

PackedWords = Sequence[jax.Array]
"""Those of one matrix: uint16 [n_groups, n_outputs] each."""


def group_dots(layout: Layout, packed_words: PackedWords, x: jax.Array) -> list[jax.Array]:
    """Σ_e (q_e − zero)·x_e over each group, or over each part of it that has its own scale.

    x int16 [n_groups, 32], each value an 8-bit integer. Exact: ``n_scales`` arrays, int32 [n_groups, n_outputs].
    """
    center = 0 if layout.bits == 4 else 1 << layout.bits - 1
    n_runs = len(layout.words)
    elements_of = np.array([sorted({field.element for word in run for field in word}) for run in layout.words])
    totals = in_order(x, elements_of.reshape(-1)).reshape(len(x), n_runs, -1).astype(jnp.int32).sum(2)
    # Made once, before the loop: shifting and subtracting activations in it costs as much as the products.
    factors, totals = lax.optimization_barrier((telescoped(layout, x), totals))
    fields, words_left = iter(range(factors.shape[1])), iter(packed_words)
    dots = [jnp.int32(0)] * layout.n_scales
    for i, run in enumerate(layout.words):
        total, part = totals[:, i, None], i * layout.n_scales // n_runs
        sums = (-center * total).astype(jnp.uint16)
        for word in run:
            bits, shift = next(words_left), 0
            for field in word:
                sums += (bits >> shift if shift else bits) * factors[:, next(fields), None]
                shift += field.bits
        dots[part] += lax.bitcast_convert_type(sums, jnp.int16).astype(jnp.int32) + (center - layout.zero) * total
    return dots


def in_order(x: jax.Array, elements: np.ndarray) -> jax.Array:
    """Columns ``elements`` of x; nothing to do where they stand in that order already."""
    return x if np.array_equal(elements, np.arange(x.shape[1])) else x[:, elements]


def telescoped(layout: Layout, x: jax.Array) -> jax.Array:
    """What each shifted word is multiplied with, X_k − 2^b_{k−1}·X_{k−1} modulo 2^16, field after field.

    x int16 [n_groups, 32] -> uint16 [n_groups, n_fields].
    """
    here, before = [], []  # (element, what it is multiplied with)
    for word in (word for run in layout.words for word in run):
        here += [(field.element, 1 << field.low) for field in word]
        before += [(0, 0), *((field.element, 1 << field.low + field.bits) for field in word[:-1])]

    def times(which: list[tuple[int, int]]) -> jax.Array:
        element, factor = np.array(which).T
        return lax.bitcast_convert_type(x, jnp.uint16)[:, element] * factor.astype(np.uint16)

    return times(here) - times(before)


Piece = tuple[int, int, int, int]
"""(word, shift, bits, low): bits ``low`` .. of an integer are at ``shift`` .. of that word."""


def pieces_of(layout: Layout) -> list[list[Piece]]:
    """Where the integer of each of the 32 elements is kept."""
    pieces: list[list[Piece]] = [[] for _ in range(GROUP)]
    for i, word in enumerate(word for run in layout.words for word in run):
        shift = 0
        for field in word:
            pieces[field.element].append((i, shift, field.bits, field.low))
            shift += field.bits
    return pieces


def elements(type_name: str, packed_words: PackedWords) -> list[jax.Array]:
    """q_e − zero for each element of a group, in order: int32 [n_groups, n_outputs] each."""
    layout = LAYOUTS[type_name]
    return [
        sum(((packed_words[i].astype(jnp.int32) >> shift & (1 << bits) - 1) << low for i, shift, bits, low in pieces),
            jnp.int32(-layout.zero))
        for pieces in pieces_of(layout)
    ]  # fmt: skip


def sheets(type_name: str, packed_words: PackedWords) -> list[tuple[list[int], jax.Array]]:
    """All elements at once, for decoding a whole matrix: (elements, q − zero int32 [n, n_groups, n_outputs]) by sheet.

    A sheet is all elements that stand at the same bits of their words: evenly spaced ones. The words are first laid
    together, a plain copy; then a sheet is one fused loop. (Stacking decoded elements instead puts a branch for
    each of 32 sources into the loop: four times slower.)
    """
    layout, together = LAYOUTS[type_name], lax.optimization_barrier(jnp.stack(packed_words))
    pieces = pieces_of(layout)

    def places(e: int) -> list[tuple[int, int, int]]:
        return [piece[1:] for piece in pieces[e]]

    out = []
    for _, group in groupby(sorted(range(GROUP), key=places), key=places):
        members, quants = list(group), jnp.int32(-layout.zero)
        for k, (_, shift, bits, low) in enumerate(pieces[members[0]]):
            of_words = together[evenly_spaced([pieces[e][k][0] for e in members])].astype(jnp.int32)
            quants += (of_words >> shift & (1 << bits) - 1) << low
        out.append((members, quants))
    return out
