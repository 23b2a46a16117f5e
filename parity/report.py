"""One page that says what was found: a self-contained HTML file, no network, no script needed to read it.

Drawn from plain data, so that anything that can say what it measured can have a page made of it. Here is what is on
the page and where; ``report.html.jinja`` is how it is written. File names, prompts and fingerprints are other people's
text: each value passes through :func:`visible` and Jinja's autoescape, so none of it can be markup, or hide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from assay.formats.system.printable import printable
from assay.parity.sample import place

CELL, LEFT, TOP = 22, 110, 22
"""Pixels of the heat map."""
WHITE, BLUE, AMBER, RED = (255, 255, 255), (132, 173, 255), (253, 176, 34), (180, 35, 24)


class Token(NamedTuple):
    """One position of the text, as the page shows it."""

    text: str
    next: str
    """The token that the truth prefers after it."""
    margin: float
    sigma: float
    probability: float
    flipped: bool


class Cell(NamedTuple):
    """One stage of one layer."""

    stage: str
    layer: int | None
    over_floor: float
    local: float
    accumulated: float
    std_ratio: float


class Label(NamedTuple):
    """Text in a drawing; ``anchor`` as in SVG; ``upwards``: turned to be read from below."""

    x: float
    y: float
    text: str
    anchor: str = "middle"
    upwards: bool = False


class Box(NamedTuple):
    """A filled rectangle; ``kind``, here as in the next two, is its class in the style sheet."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    kind: str
    title: str = ""


class Line(NamedTuple):
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


class Dot(NamedTuple):
    """A position in a scatter plot."""

    x: float
    y: float
    kind: str
    title: str


class Drawing(NamedTuple):
    """A picture in pixels, the origin at the top left; ``name`` is read out to those who cannot see it."""

    name: str
    width: int
    height: int
    labels: Sequence[Label]
    boxes: Sequence[Box] = ()
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()


def page(*, title: str, verdict: str, green: bool | None, reason: str, facts: Mapping[str, str], command: str,
         cells: Sequence[Cell], tolerance: float, tokens: Sequence[Token], flips: str) -> str:  # fmt: skip
    """The whole page, which UTF-8 can hold. ``green`` None is for a comparison that did not take place."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__)
    environment = Environment(loader=FileSystemLoader(here.parent), autoescape=True, finalize=visible,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template(here.with_suffix(".html.jinja").name).render(
        title=title,
        verdict=verdict,
        colour="grey" if green is None else "green" if green else "red",
        reason=reason,
        command=command,
        facts=facts,
        tolerance=f"{tolerance:g}",
        heat_map=heat_map(cells, tolerance) if cells else None,
        stages=worst_layers(cells),
        tokens=[shaded(token) for token in tokens],
        scatter=scatter(tokens) if tokens else None,
        flips=flips,
    )


def visible(value: Any) -> Any:
    """A text as the page shows it: nothing in it turns what follows around. Finished markup is left as it is."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not hasattr(value, "__html__") else value


def heat(ratio: float, tolerance: float) -> str:
    """White at no error, blue at the floor, through amber to red at ``tolerance`` floors and beyond."""
    if not ratio <= tolerance:
        return mixed(RED, RED, 0)
    if ratio <= 1:
        return mixed(WHITE, BLUE, ratio)
    return mixed(BLUE, AMBER, (ratio - 1) / (tolerance - 1))


def mixed(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> str:
    """A colour between two, as CSS writes it."""
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def heat_map(cells: Sequence[Cell], tolerance: float) -> Drawing:
    """Stages down, layers across; what belongs to no layer stands in a column of its own."""
    stages = list(dict.fromkeys(cell.stage for cell in cells))
    layers = sorted({cell.layer for cell in cells if cell.layer is not None})
    left: dict[int | None, int] = {layer: LEFT + CELL * i for i, layer in enumerate([None, *layers])}
    top = {stage: TOP + CELL * i for i, stage in enumerate(stages)}
    labels = [Label(left[layer] + CELL / 2, 14, str(layer)) for layer in layers]
    labels += [Label(LEFT - 8, top[stage] + 15, stage, "end") for stage in stages]
    boxes = [
        Box(left[cell.layer], top[cell.stage], CELL - 2, CELL - 2, heat(cell.over_floor, tolerance), "cell",
            f"{place(cell.stage, cell.layer)}: {cell.over_floor:.2f} floors, local error {cell.local:.2e}, "
            f"accumulated {cell.accumulated:.2e}")
        for cell in cells
    ]  # fmt: skip
    below = TOP + CELL * len(stages) + 8
    key = {0.0: "0", 0.5: "", 1.0: "1 floor", (1 + tolerance) / 2: "", tolerance: f"{tolerance:g}", math.inf: "bug"}
    for i, (ratio, name) in enumerate(key.items()):
        boxes.append(Box(LEFT + CELL * i, below, CELL - 2, 8, heat(ratio, tolerance), "key"))
        labels.append(Label(LEFT + CELL * i + CELL / 2 - 1, below + 21, name))
    width = LEFT + CELL * max(len(layers) + 1, 8) + 10
    return Drawing("local error over floor", width, below + 32, labels, boxes)


def shaded(token: Token) -> dict[str, Any]:
    """A token of the text; its background says how near its successor is to flipping."""
    z = token.margin / token.sigma if token.sigma else math.inf
    share = max(0.0, min(1.0, 1 - z / 8))  # eight standard deviations are beyond any doubt
    title = (f"then {token.next!r}: margin {token.margin:.4f}, noise {token.sigma:.4f}, "
             f"flip probability {token.probability:.2g}")  # fmt: skip
    return {"text": token.text, "flipped": token.flipped, "background": mixed(WHITE, AMBER, share), "title": title}


def scatter(tokens: Sequence[Token], width: int = 560, height: int = 360) -> Drawing:
    """Margin over predicted noise, both on logarithmic axes."""
    floor = 1e-9
    xs = [math.log10(max(token.sigma, floor)) for token in tokens]
    ys = [math.log10(max(token.margin, floor)) for token in tokens]
    x0, x1 = math.floor(min(xs)), math.floor(max(xs)) + 1
    y0, y1 = math.floor(min(ys)), math.floor(max(ys)) + 1

    def across(x: float) -> float:
        return round(60 + (x - x0) / (x1 - x0) * (width - 80), 1)

    def down(y: float) -> float:
        return round(height - 40 - (y - y0) / (y1 - y0) * (height - 60), 1)

    lines = [Line(60, down(y), width - 20, down(y), "grid") for y in range(y0, y1 + 1)]
    lines += [Line(across(x), 20, across(x), height - 40, "grid") for x in range(x0, x1 + 1)]
    low, high = max(x0, y0), min(x1, y1)
    if low < high:
        lines.append(Line(across(low), down(low), across(high), down(high), "even"))
    labels = [Label(52, down(y) + 4, f"{10.0**y:g}", "end") for y in range(y0, y1 + 1)]
    labels += [Label(across(x), height - 24, f"{10.0**x:g}") for x in range(x0, x1 + 1)]
    labels += [Label(width / 2, height - 6, "predicted noise of the margin (logits)"),
               Label(14, height / 2, "margin", upwards=True)]  # fmt: skip
    dots = [Dot(across(x), down(y), "dot flipped" if token.flipped else "dot", f"{token.text!r} then {token.next!r}")
            for token, x, y in zip(tokens, xs, ys, strict=True)]  # fmt: skip
    return Drawing("margins against noise", width, height, labels, lines=lines, dots=dots)


def worst_layers(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """The worst layer of each stage, a row of the table."""
    worst: dict[str, Cell] = {}
    for cell in cells:
        if cell.stage not in worst or cell.over_floor > worst[cell.stage].over_floor:
            worst[cell.stage] = cell
    return [(cell.stage, "" if cell.layer is None else str(cell.layer), f"{cell.over_floor:.2f}", f"{cell.local:.2e}",
             f"{cell.accumulated:.2e}", f"{cell.std_ratio:.4f}") for cell in worst.values()]  # fmt: skip
