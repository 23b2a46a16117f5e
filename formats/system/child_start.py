"""How a child of ``python_child.py`` starts: run by path, with a plan, the program and its arguments.

    python -I child_start.py '{"folders": {package: folder}, "beside": bool, "is_file": bool}' PROGRAM ARGUMENT..

It imports nothing of the package around it, so that a child which needs only others' packages gets only those.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class Where:
    """Finds each package in the folder given for it; asked before every other finder, it says nothing of the rest."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.folders = folders

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:  # fmt: skip
        """Python's own protocol of finders."""
        return PathFinder.find_spec(name, [self.folders[name]], target) if name in self.folders else None


def search(folders: Sequence[str]) -> None:
    """Search ``folders`` too: after the standard library, which nothing may replace, and before what is installed."""
    import site  # not for a child that was started without it

    installed = site.getsitepackages()
    first = next((i for i, folder in enumerate(sys.path) if folder in installed), len(sys.path))
    sys.path[first:first] = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


def main() -> None:
    """Run the program as ``__main__``; its arguments are all that it sees in ``sys.argv``."""
    plan = json.loads(sys.argv[1])
    del sys.argv[:2]
    sys.meta_path.insert(0, Where(plan["folders"]))
    if plan["beside"]:
        search(list(plan["folders"].values()))
    if plan["is_file"]:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
