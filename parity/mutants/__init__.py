"""The catalogue of mutants: small changes of an engine that a judge of engines must see (``assay prove``).

Families, names and claims stand in ``weights.py``, ``arithmetic.py`` and ``outside.py``; what a mutant is, in
``record.py``. Sizes below 1 are for detection curves.
"""

from __future__ import annotations

from assay.parity.mutants import arithmetic, outside, weights
from assay.parity.mutants.record import Mutant

CATALOGUE: tuple[Mutant, ...] = (*weights.ALL, *arithmetic.ALL, *outside.ALL)
SIZES = (0.1, 0.01)
FAMILIES = tuple(dict.fromkeys(mutant.family for mutant in CATALOGUE))


def named(name: str) -> Mutant:
    """The mutant of this name, a size below 1 as ``NAME x0.1``. Raises KeyError."""
    by_name = {mutant.name: mutant for mutant in (*CATALOGUE, *smaller())}
    return by_name[name]


def smaller() -> tuple[Mutant, ...]:
    """Those with sizes, at each size below 1."""
    return tuple(mutant.sized(size) for mutant in CATALOGUE if mutant.scalable for size in SIZES)
