"""The command line as typed, in this process: a process of its own would wait seconds for its imports."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from assay import cli


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error of one command."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object that a successful ``--json`` printed."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    def is_refusal(self, code: int) -> bool:
        """Whether it is this exit code, one line on standard error, and an object on standard output iff --json."""
        if "--json" in self.arguments:
            refused = json.loads(self.out)
            explained = refused["exit_code"] == code and bool(refused["error"]["what"])
        else:
            explained = not self.out
        lines = [line for line in self.err.splitlines() if not line.startswith("assay: warning: ")]
        return explained and self.code == code and len(lines) == 1 and lines[0].startswith("assay: ")


def assay(*arguments: str, stdin: bytes = b"") -> Outcome:
    """Run ``assay`` with these arguments; ``stdin`` is what is piped into it."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", newline="")  # as Python opens standard error
    typed = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    code: Any = None
    as_typed = patch.multiple(sys, argv=["assay", *arguments], stdin=typed)
    with as_typed, redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return Outcome(arguments, code, *(text_of(stream) for stream in (out, err)))


def oracle(*arguments: str, stdin: bytes = b"") -> Mapping[str, Any]:
    """The JSON of ``assay run`` with the oracle and few tokens."""
    return assay("run", "--engine", "reference", "-n", "8", "--json", *arguments, stdin=stdin).json


def text_of(stream: io.TextIOWrapper) -> str:
    """What was written."""
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
