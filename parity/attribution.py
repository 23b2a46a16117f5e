"""Which axis is to blame: from which cells of a factorial run failed to the conditions under which it fails.

A cell is one level of every axis (``{"prompt": "chat", "path": "decode", ..}``). A condition names levels of some axes
and holds in every cell that has them. It is to blame only if every cell in which it holds failed; the fewest and
shortest such conditions that account for all failures are the attribution. One fault on one axis comes out as that
axis's level alone, a fault of decoding an APR file as the two together, two faults as two conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from assay.formats.contract.arguments import checked

Levels = Mapping[str, str]


@checked
def attribute(cells: Sequence[tuple[Levels, bool]]) -> list[dict[str, str]]:
    """The conditions under which ``cells`` (levels, failed) fail; empty if none does, ``[{}]`` if all do."""
    failed = {i for i, (_, bad) in enumerate(cells) if bad}
    to_blame: dict[frozenset[int], dict[str, str]] = {}
    for condition in conditions([levels for levels, _ in cells]):
        holds = frozenset(i for i, (levels, _) in enumerate(cells) if condition.items() <= levels.items())
        if holds and holds <= failed:
            to_blame.setdefault(holds, condition)  # the shortest for these cells: they come first
    found, left = [], set(failed)
    while left:
        holds = max(to_blame, key=lambda some: (len(some & left), -len(to_blame[some])))
        found.append(to_blame[holds])
        left -= holds
    return found


def conditions(cells: Sequence[Levels]) -> list[dict[str, str]]:
    """Every combination of levels that occurs together, shortest first."""
    axes = list(cells[0]) if cells else []
    return [
        dict(zip(some, levels, strict=True))
        for n in range(len(axes) + 1)
        for some in combinations(axes, n)
        for levels in dict.fromkeys(tuple(cell[axis] for axis in some) for cell in cells)
    ]
