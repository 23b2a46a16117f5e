"""How the commands that look inside files print: plain columns, colours on a terminal only, nothing cut in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from assay.formats.system.finite import finite as finite
from assay.formats.system.printable import printable
from assay.output import console

VERDICTS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIPPED": "dim"}


def shown(text: str | Text) -> Text:
    """A cell, or a part of a line, escaped before it is laid out: it takes the room that it will need."""
    return Text(printable(text)) if isinstance(text, str) else Text(printable(text.plain), text.style)


def columns(names: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Collection[str] = (),
            title: str | None = None) -> None:  # fmt: skip
    """A table without lines; columns named in ``right`` hold numbers. Too long a text is folded, never cut."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False,
                  padding=(0, 1 if len(names) > 7 else 2, 0, 0), show_edge=False)  # fmt: skip
    for name in names:
        number = name in right
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*map(shown, row))
    console().print(table)


def line(*parts: str | tuple[str, str], indent: int = 0) -> None:
    """One line of text, of which a part may be a pair (text, style); on a terminal folded under its first word."""
    out = console()
    text = Text.assemble(*(shown(Text(*part) if isinstance(part, tuple) else part) for part in parts))
    if not parts:
        out.print()
    elif sys.stdout.isatty():
        out.print(Padding(text, (0, 0, 0, indent), expand=False))
    else:
        out.print(Text(" " * indent).append_text(text), soft_wrap=True)


def grid(rows: Iterable[Sequence[Text]], *, fold_from: int) -> None:
    """Columns without a heading; those from ``fold_from`` on are folded where the terminal ends."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for i, row in enumerate(rows):
        if i == 0:
            for j in range(len(row)):
                table.add_column(no_wrap=j < fold_from, overflow="fold")
        table.add_row(*map(shown, row))
    out = console()
    with out.capture() as captured:
        out.print(table)
    for text in captured.get().splitlines():
        print(text.rstrip(), file=out.file)  # a pipe wants no padding at the end of a line


def number(value: float | None, digits: int = 4) -> str:
    """Few digits; nothing for what is not there."""
    return "" if value is None else f"{value:.{digits}g}"


def share(value: float) -> str:
    """A percentage that is 0 only if the value is."""
    if value == 0:
        return "0"
    return f"{value:.2%}" if value >= 5e-5 else "<0.01%"


def size(nbytes: int) -> str:
    """``485.5 MB``; powers of ten, as disks are sold."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


def plural(n: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
