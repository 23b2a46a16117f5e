"""The one exit for text: what the command line prints passes through here, and none of it commands a terminal.

Names, templates, servers and users may put escape sequences into what is printed. So when the program starts, standard
output and standard error are replaced by streams that escape them (``formats/system/printable.py``): a command cannot
forget to. Two things go around: the colours of Rich, whose consoles are ``Output``, which escapes the text inside them;
and the text that a model writes, in a pipe.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from assay.formats.system.printable import printable

UNWRAPPED = 10_000
"""Characters: wider than any table, for a program that reads it."""
LAID_OUT = "\n\t"
"""Control characters that a stream lets pass: they place what follows, and overwrite nothing."""


class Escaping:
    """A text stream in front of another one, in which what a terminal would obey is escaped."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # Rich's own name for the stream that its consoles write to instead

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text, keep=LAID_OUT))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class Output(Console):
    """A Rich console for data: nothing printed is markup, and its control characters are escaped.

    A pipe whose reader has gone is left to ``assay/cli.py``; Rich itself would exit with 1.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        file = unescaped(sys.stderr if stderr else sys.stdout)
        super().__init__(file=file, stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def unescaped(stream: Any) -> TextIO:
    """The stream behind ``Escaping``, and behind Rich's own while it draws a progress bar."""
    while behind := getattr(stream, "rich_proxied_file", None):
        stream = behind
    return stream


def console() -> Output:
    """Standard output, as wide as the terminal; a pipe is never too narrow."""
    return Output(width=None if sys.stdout.isatty() else UNWRAPPED)


def say(line: str) -> None:
    """One line on standard error. If nobody can read it that changes nothing."""
    with suppress(OSError):
        print(f"assay: {printable(line)}", file=sys.stderr)


def write_generated(text: str) -> None:
    """Text that a model wrote, at once: escaped on a terminal, as it is anywhere else.

    To a program it is data, of which no byte may change. On a terminal a prompt could make the model spell an escape
    sequence, and whoever looks at an answer has not agreed to have it carried out.
    """
    out = sys.stdout
    (out if out.isatty() else unescaped(out)).write(text)
    out.flush()


def prepare_streams() -> None:
    """Write UTF-8 whatever the locale, and escape what a terminal would obey.

    What UTF-8 cannot hold (half of a file name's byte) is escaped, too. A standard stream that was closed before we
    started is nothing to read, and nowhere to write.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  open for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, Escaping(sys.stdout)), cast(TextIO, Escaping(sys.stderr))
