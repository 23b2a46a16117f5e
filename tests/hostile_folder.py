"""A folder to start in that has packages by the names of our rooms, each of which ends whoever imports it."""

from __future__ import annotations

from pathlib import Path

ROOMS = ("accel", "formats", "goldens", "parity", "reference")
"""The folders at the root that are imported as ``assay.NAME``, and never by their bare names."""
NAMES = (*ROOMS, "benchmark", "commands", "fetch", "judging", "peers", "tests")


def hostile_folder(folder: Path) -> Path:
    """Make ``folder``, with all of NAMES in it."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('{name} of the current folder was imported')")
    return folder
