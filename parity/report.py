"""One page that says what was found: a self-contained HTML file, no network, no script needed to read it.

Drawn from plain data, so that anything that can say what it measured can have a page made of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from assay.formats.system.printable import printable
from assay.parity.sample import place

CELL, LEFT, TOP = 22, 110, 22
"""Pixels of the heat map."""


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


STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #667085; --line: #e4e7ec; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2.5rem auto; max-width: 1120px;
  padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem; }
p { max-width: 46rem; } .soft { color: var(--soft); font-size: .9rem; }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600; }
.green { background: #18794e; } .red { background: #b42318; } .grey { background: #667085; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
td, th { padding: .22rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child { text-align: left; } th { color: var(--soft); font-weight: 500; }
.text { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; border: 1px solid var(--line);
  border-radius: 6px; padding: 1rem; }
.text span { border-radius: 3px; padding: .1rem 0; } .text .flip { outline: 2px solid #b42318; }
.wide { overflow-x: auto; } svg text { font: 11px system-ui, sans-serif; fill: #475467; }
code { background: #f2f4f7; padding: .15rem .4rem; border-radius: 4px; font-size: .88rem; word-break: break-all; }
"""


def page(*, title: str, verdict: str, green: bool | None, reason: str, facts: Mapping[str, str], command: str,
         cells: Sequence[Cell], tolerance: float, tokens: Sequence[Token], flips: str) -> str:  # fmt: skip
    """The whole page. ``green`` None is for a comparison that did not take place."""
    colour = "grey" if green is None else "green" if green else "red"
    parts = [
        f"<h1>{shown(title)}</h1>",
        f'<p><span class="verdict {colour}">{shown(verdict)}</span> {shown(reason)}</p>',
        f"<p><code>{shown(command)}</code></p>",
    ]
    if cells:
        parts += ["<h2>Each stage's local error, in floors</h2>",
                  '<p class="soft">Every stage of every layer is fed with the truth; its error is divided by the '
                  "largest error that noisy runs of the oracle show there. 1 is the floor; beyond "
                  f"{tolerance:g} is a bug. Point at a cell for its figures.</p>",
                  f'<div class="wide">{heat_map(cells, tolerance)}</div>']  # fmt: skip
    if tokens:
        parts += ["<h2>The text, each token by what it would take to flip the one after it</h2>",
                  f'<p>{shown(flips)}</p><p class="soft">White: the next token is certain. The darker, the nearer its '
                  "margin is to the noise of the declared arithmetic; red outline: it flipped.</p>",
                  f'<div class="text">{shaded(tokens)}</div>',
                  "<h2>Margins against predicted noise</h2>",
                  '<p class="soft">Each dot is a position. Below the line a flip is more likely than one in six.</p>',
                  f'<div class="wide">{scatter(tokens)}</div>']  # fmt: skip
    if cells:
        parts += ["<h2>Stages</h2>", table(cells)]
    rows = "".join(f"<tr><td>{shown(key)}</td><td>{shown(value)}</td></tr>" for key, value in facts.items())
    parts.append(f"<h2>Environment</h2><table>{rows}</table>")
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{shown(title)}</title>'
            f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n")  # fmt: skip


def shown(text: str) -> str:
    """Text of unknown origin as the page holds it: nothing in it is HTML, or turns what follows it around."""
    return escape(printable(text, keep="\n\t"))


def heat(ratio: float, tolerance: float) -> str:
    """White at no error, blue at the floor, through amber to red at ``tolerance`` floors and beyond."""
    if not ratio <= tolerance:
        return "#b42318"
    if ratio <= 1:
        return mixed((255, 255, 255), (132, 173, 255), ratio)
    return mixed((132, 173, 255), (253, 176, 34), (ratio - 1) / (tolerance - 1))


def mixed(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> str:
    """A colour between two, as CSS writes it."""
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def heat_map(cells: Sequence[Cell], tolerance: float) -> str:
    """Stages down, layers across; what belongs to no layer stands in a column of its own."""
    stages = list(dict.fromkeys(cell.stage for cell in cells))
    layers = sorted({cell.layer for cell in cells if cell.layer is not None})
    column = {layer: i + 1 for i, layer in enumerate(layers)} | {None: 0}
    below = TOP + CELL * len(stages) + 8
    width, height = LEFT + CELL * max(len(layers) + 1, 8) + 10, below + 32
    out = [f'<svg width="{width}" height="{height}" role="img" aria-label="local error over floor">']
    out += [f'<text x="{LEFT + CELL * column[layer] + CELL / 2}" y="14" text-anchor="middle">{layer}</text>'
            for layer in layers]  # fmt: skip
    out += [f'<text x="{LEFT - 8}" y="{TOP + CELL * i + 15}" text-anchor="end">{stage}</text>'
            for i, stage in enumerate(stages)]  # fmt: skip
    for cell in cells:
        x, y = LEFT + CELL * column[cell.layer], TOP + CELL * stages.index(cell.stage)
        where = place(cell.stage, cell.layer)
        says = (
            f"{where}: {cell.over_floor:.2f} floors, local error {cell.local:.2e}, accumulated {cell.accumulated:.2e}"
        )
        out.append(f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="3" stroke="#d0d5dd" '
                   f'fill="{heat(cell.over_floor, tolerance)}"><title>{shown(says)}</title></rect>')  # fmt: skip
    return "".join([*out, legend(tolerance, below), "</svg>"])


def legend(tolerance: float, y: float) -> str:
    """The colours of the heat map, from no error to a bug, and what they stand for."""
    ratios = [0.0, 0.5, 1.0, (1 + tolerance) / 2, tolerance, math.inf]
    names = ["0", "", "1 floor", "", f"{tolerance:g}", "bug"]
    return "".join(
        f'<rect class="key" x="{LEFT + CELL * i}" y="{y}" width="{CELL - 2}" height="8" '
        f'fill="{heat(ratio, tolerance)}"/>'
        f'<text x="{LEFT + CELL * i + CELL / 2 - 1}" y="{y + 21}" text-anchor="middle">{name}</text>'
        for i, (ratio, name) in enumerate(zip(ratios, names, strict=True))
    )


def shaded(tokens: Sequence[Token]) -> str:
    """The text; a token's background says how near its successor is to flipping."""
    out = []
    for token in tokens:
        z = token.margin / token.sigma if token.sigma else math.inf
        share = max(0.0, min(1.0, 1 - z / 8))  # eight standard deviations are beyond any doubt
        says = (f"then {token.next!r}: margin {token.margin:.4f}, noise {token.sigma:.4f}, "
                f"flip probability {token.probability:.2g}")  # fmt: skip
        background = mixed((255, 255, 255), (253, 176, 34), share)
        flip = ' class="flip"' if token.flipped else ""
        out.append(f'<span{flip} style="background:{background}" title="{shown(says)}">{shown(token.text)}</span>')
    return "".join(out)


def scatter(tokens: Sequence[Token], width: int = 560, height: int = 360) -> str:
    """Margin over predicted noise, both on logarithmic axes."""
    floor = 1e-9
    xs = [math.log10(max(token.sigma, floor)) for token in tokens]
    ys = [math.log10(max(token.margin, floor)) for token in tokens]
    x0, x1 = math.floor(min(xs)), math.floor(max(xs)) + 1
    y0, y1 = math.floor(min(ys)), math.floor(max(ys)) + 1

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + (x - x0) / (x1 - x0) * (width - 80), height - 40 - (y - y0) / (y1 - y0) * (height - 60)

    out = [f'<svg width="{width}" height="{height}" role="img" aria-label="margins against noise">']
    for decade in range(y0, y1 + 1):
        _, y = at(x0, decade)
        out.append(f'<line x1="60" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eaecf0"/>'
                   f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')  # fmt: skip
    for decade in range(x0, x1 + 1):
        x, _ = at(decade, y0)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{height - 40}" stroke="#eaecf0"/>'
                   f'<text x="{x:.1f}" y="{height - 24}" text-anchor="middle">{10.0**decade:g}</text>')  # fmt: skip
    low, high = max(x0, y0), min(x1, y1)
    if low < high:
        (ax, ay), (bx, by) = at(low, low), at(high, high)
        out.append(f'<line x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}" stroke="#98a2b3" '
                   'stroke-dasharray="4 3"/>')  # fmt: skip
    for token, x, y in zip(tokens, xs, ys, strict=True):
        px, py = at(x, y)
        colour = "#b42318" if token.flipped else "#2970ff"
        out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.2" fill="{colour}" fill-opacity=".55">'
                   f"<title>{shown(repr(token.text))} then {shown(repr(token.next))}</title></circle>")  # fmt: skip
    middle = height / 2
    out.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">predicted noise of the margin (logits)'
               f'</text><text x="14" y="{middle}" transform="rotate(-90 14 {middle})" text-anchor="middle">margin'
               "</text></svg>")  # fmt: skip
    return "".join(out)


def table(cells: Sequence[Cell]) -> str:
    """The worst layer of each stage."""
    rows = ["<tr><th>stage</th><th>worst layer</th><th>over floor</th><th>local error</th><th>accumulated</th>"
            "<th>std ratio</th></tr>"]  # fmt: skip
    for stage in dict.fromkeys(cell.stage for cell in cells):
        worst = max((cell for cell in cells if cell.stage == stage), key=lambda cell: cell.over_floor)
        layer = "" if worst.layer is None else str(worst.layer)
        rows.append(f"<tr><td>{stage}</td><td>{layer}</td><td>{worst.over_floor:.2f}</td><td>{worst.local:.2e}</td>"
                    f"<td>{worst.accumulated:.2e}</td><td>{worst.std_ratio:.4f}</td></tr>")  # fmt: skip
    return f"<table>{''.join(rows)}</table>"
