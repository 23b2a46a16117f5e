"""A progress bar on standard error, if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from assay.formats.system.progress import Progress as Callback
from assay.formats.system.progress import quiet
from assay.output import Output


@contextmanager
def bar() -> Iterator[Callback]:
    """A callback ``progress(done, total, label)`` that draws one bar; a new label starts it anew.

    The bar vanishes at the end. Where standard error is not a terminal the callback does nothing.
    """
    if not sys.stderr.isatty():
        yield quiet
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Output(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)
        shown = ""

        def show(done: int, total: int, label: str) -> None:
            nonlocal shown
            if label != shown:
                progress.reset(task, total=total, description=label, visible=True)
                shown = label
            progress.update(task, completed=done, total=total)

        yield show
