"""Python processes of our own: they import what this process would, and nothing that their surroundings add.

``python -m NAME`` searches the current folder and PYTHONPATH, where anything may lie; ``python -I`` searches neither,
and so misses what was installed for one user, or into a folder that PYTHONPATH names. So a child starts isolated, and
is told where this process finds the packages that it needs. ``child_start.py`` is its side of this.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

START = Path(__file__).with_name("child_start.py")


def python_child(program: str | Path, *arguments: str, needs: Sequence[str], only: bool = False) -> list[str]:
    """The command that runs ``program``, a module's name or the path of a file, as a process of its own.

    ``needs``: the top-level packages that it imports, beside the standard library; a missing one is the program's
    to report. What these need in turn is found beside them, or where the interpreter has its packages. With ``only``
    nothing but them and the standard library can be imported, and no bytecode is written.
    """
    folders = {name: folder for name in needs if (folder := folder_of(name))}
    plan = {"folders": folders, "beside": not only, "is_file": isinstance(program, Path)}
    flags = ("-I", "-S", "-B") if only else ("-I",)
    return [sys.executable, *flags, str(START), json.dumps(plan), str(program), *arguments]


def folder_of(package: str) -> str | None:
    """The folder (or zip file) in which this process finds a top-level package; None if it has no such package."""
    spec = find_spec(package)
    inside = spec and (next(iter(spec.submodule_search_locations or ()), None) or spec.origin)
    return os.path.dirname(os.path.abspath(inside)) if inside else None
