"""Declaring more than is used: an engine that rounds less than it says lets faults pass that could have been seen.

Where a product's inputs really are rounded as declared, its local error is one more draw of the noise that made the
floor. A relative L2 distance over a whole activation adds up so many roundings that two draws of it differ by little,
and the floor is the largest of a few. So an error below a quarter of the floor (``TOLERANCE_FACTOR``, the other way
round) in every layer is not a lucky draw: two bits or more of what was declared are not used.
"""

from __future__ import annotations

from assay.formats.contract.declaration import MATRICES, Declaration, in_words, is_coarse
from assay.parity.floor import TOLERANCE_FACTOR, NoiseFloor
from assay.parity.precision import PRODUCT_OF, Key, Precision
from assay.parity.stages import Distances


def declared_more(precision: Precision, local: Distances, floor: NoiseFloor) -> list[str]:
    """A sentence for each rounding that is declared and was not seen in the local errors of the stages it moves."""
    found: list[str] = []
    if (declared := precision.declaration) is None:
        return found
    for matrix in MATRICES:
        keys = [key for key in local if key[0] == PRODUCT_OF[matrix] and coarse_at(declared, matrix, key[1])]
        if (share := largest_share(keys, local, floor)) is not None:
            kinds = dict.fromkeys(kind for key in keys for kind in (
                declared.activation(matrix, key[1]), declared.weight(matrix, key[1])) if is_coarse(kind))  # fmt: skip
            found.append(said(f"{' and '.join(map(in_words, kinds))} in products with {matrix}", share))
    keys = [key for key in local if key[0] == "attention"]
    seen = is_coarse(declared.cache) and not is_coarse(declared.scores)  # whose noise stands for the worst case
    if seen and (share := largest_share(keys, local, floor)) is not None:
        found.append(said(f"keys and values kept in {declared.cache}", share))
    if is_coarse(declared.results) and (share := largest_share(list(local), local, floor)) is not None:
        found.append(said(f"results rounded to {declared.results}", share))
    return found


def coarse_at(declared: Declaration, matrix: str, layer: int | None) -> bool:
    """Whether anything coarser than f32 is declared of the products with a matrix of this layer."""
    return is_coarse(declared.activation(matrix, layer)) or is_coarse(declared.weight(matrix, layer))


def largest_share(keys: list[Key], local: Distances, floor: NoiseFloor) -> float | None:
    """The largest local error of these stages in floors, if it is one that a lucky draw does not explain."""
    shares = [local[key].relative_l2 / limit for key in keys if (limit := floor[key].relative_l2) > 0]
    return max(shares) if shares and max(shares) < 1 / TOLERANCE_FACTOR else None


def said(what: str, share: float) -> str:
    """The finding in words."""
    return (f"declares {what}, but errors there are at most {share:.2g} of what that makes: declare what is computed, "
            "and smaller faults are seen")  # fmt: skip
