"""A picture of what ``assay bench`` measured: one panel each for prefill, decode and batch (extra ``report``)."""

from __future__ import annotations

import io
import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from assay.formats import InputError
from assay.formats.system.atomic_file import replacing

PANELS = {
    "prefill": ("reading a prompt", "prompt length"),
    "decode": ("decoding one sequence", "tokens before it"),
    "batch": ("decoding many sequences", "sequences at once"),
}
COLOURS = ("#1f6f8b", "#e0a458")
"""Ours and the external engine's: dark and light, so that they differ in grey too."""


def check(path: Path, *, force: bool) -> None:
    """Raise InputError unless a picture can be written to ``path``; called before anything is measured."""
    if find_spec("matplotlib") is None:
        raise InputError("matplotlib is not installed", where="--plot",
                         remedy="Install it: pip install 'assay[report]'")
    if path.suffix.lower() != ".png":
        raise InputError("it is not the name of a PNG file", where=f"--plot {path}", remedy="Name it FILE.png")
    if not path.parent.is_dir():
        raise InputError("there is no such folder", where=f"--plot {path.parent}", remedy="Create it first")
    if path.is_dir() or (path.exists() and not force):
        raise InputError("the file exists already", where=f"--plot {path}",
                         remedy="Give another name, or --force to replace it")


def draw(facts: dict[str, Any], path: Path) -> None:
    """Draw ``facts``, the object of ``assay bench --json``, into the PNG file ``path``.

    Bars are medians, whiskers the extremes, and the number above a pair is the median ratio of the first to the
    second. Raises InputError if the file cannot be written.
    """
    picture = png(facts)
    with replacing(path, force=True) as file:  # ``check`` has asked
        file.write(picture)


def png(facts: dict[str, Any]) -> bytes:
    """The picture as PNG bytes."""
    from matplotlib.figure import Figure

    names = [facts["engine"]["engine"], *([facts["peer"]["name"]] if facts["peer"] else [])]
    panels = {kind: rows for kind in PANELS if (rows := [r for r in facts["results"] if r["kind"] == kind])}
    groups = [len(rows) + 0.6 for rows in panels.values()] or [3]  # an axis takes as much room as half a group
    figure = Figure(figsize=(max(9.0, 2 + 1.25 * sum(groups)), 5.4), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False, width_ratios=groups)[0]
    for axis, (kind, rows) in zip(axes, panels.items(), strict=False):
        draw_panel(axis, kind, rows, names)
    if panels:
        axes[0].set_ylabel("tokens per second")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    room = int(12 * figure.get_figwidth())  # characters of this size
    lines = [part for line in title_lines(facts) for part in textwrap.wrap(line, room)]
    title = figure.suptitle("\n".join(lines), fontsize=10, x=0.01, ha="left")
    title.set_parse_math(False)  # a model's name is data: no $ in it is TeX
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a character that the font lacks becomes a box
        figure.savefig(written, format="png")
    return written.getvalue()


def draw_panel(axis: Any, kind: str, rows: list[dict[str, Any]], names: list[str]) -> None:
    """One kind of workload: a group of bars for each size."""
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        speeds = [row[name] for row in rows]
        places = [g - 0.4 + width * (i + 0.5) for g in range(len(rows))]
        medians = [s["median"] for s in speeds]
        whiskers = [[s["median"] - s["low"] for s in speeds], [s["high"] - s["median"] for s in speeds]]
        axis.bar(places, medians, 0.94 * width, color=COLOURS[i], label=name)
        axis.errorbar(places, medians, yerr=whiskers, fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
    for group, row in enumerate(rows):
        if "ratio" in row:
            top = max(row[name]["high"] for name in names)
            axis.annotate(f"{row['ratio']['median']:.2f}×", (group, top), (0, 5), textcoords="offset points",
                          ha="center", fontsize=9, fontweight="bold")  # fmt: skip
    axis.set_title(PANELS[kind][0], fontsize=10, fontweight="bold")
    axis.set_xlabel(PANELS[kind][1], fontsize=9)
    axis.set_xticks(range(len(rows)), [str(row["size"]) for row in rows])
    axis.margins(y=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis="y", color="#dddddd", linewidth=0.7)


def title_lines(facts: dict[str, Any]) -> list[str]:
    """Model, engines and their versions, machine and date: what a figure means nothing without."""
    machine, engine, peer = facts["machine"], facts["engine"], facts["peer"]
    ours = f"{engine['engine']} ({engine['arith']}; {listed(machine, 'jax', 'numpy')})"
    theirs = f" beside {peer['name']} ({peer['arith']}; {listed(peer['versions'], *peer['versions'])})" if peer else ""
    place = f"{machine['processor'] or machine['system']}, {machine['threads']} threads"
    how = f"median of {facts['rounds']} rounds, whiskers lowest to highest"
    how += f", above them {engine['engine']} / {peer['name']}" if peer else ""
    name = textwrap.shorten(facts["model"]["name"], 100)
    return [name, ours + theirs, f"{place}, {facts['date'][:10]}; {how}"]


def listed(versions: dict[str, str], *packages: str) -> str:
    """``jax 0.10.2, numpy 2.4.6`` of those that are there."""
    return ", ".join(f"{package} {versions[package]}" for package in packages if package in versions)
