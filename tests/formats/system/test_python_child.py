"""A child imports what it is said to need from where its parent has it, and nothing from its surroundings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from assay.formats.system.python_child import python_child
from tests.hostile_folder import ROOMS

TRY = """
import importlib, json, sys
def place(name):
    try:
        return importlib.import_module(name).__file__
    except ModuleNotFoundError:
        return None
print(json.dumps({name: place(name) for name in sys.argv[1:]}))
"""
HOSTILE = "raise SystemExit('a file of the surroundings was imported')"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(TRY)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this process searches before all others, as one that PYTHONPATH names."""
    folder = tmp_path / "installed"
    for name in ("needed", "beside_it", "markupsafe", "http", "org"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "markupsafe", raising=False)  # an earlier test may have imported the real one
    return folder


def surroundings(folder: Path) -> dict[str, str]:
    """A folder to start in, and variables, that would have a child import what ends it."""
    for name in ("needed", "numpy", "json", "surrounding", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text(HOSTILE)
    return {**os.environ, "PYTHONPATH": ".", "PYTHONSTARTUP": str(folder / "json.py")}


def places(command: list[str], folder: Path) -> dict[str, str | None]:
    folder.mkdir()
    done = subprocess.run(command, cwd=folder, env=surroundings(folder), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_what_is_needed(program: Path, installed: Path, tmp_path: Path) -> None:
    """Not even what the standard library tries to import: copy and pickle look for a package called org."""
    wanted = ("needed", "markupsafe", "beside_it", "org", "numpy", "surrounding", "copy", "assay")
    found = places(python_child(program, *wanted, needs=("needed", "markupsafe"), only=True), tmp_path / "here")
    for name in ("needed", "markupsafe"):
        assert found.pop(name) == str(installed / name / "__init__.py")
    assert found.pop("copy") == sys.modules["copy"].__file__
    assert set(found.values()) == {None}
    assert {path.name for path in installed.rglob("*.pyc")} == set()


def test_what_lies_beside_it_too(program: Path, installed: Path, tmp_path: Path) -> None:
    """After the standard library, so that nothing replaces that, and before what is installed elsewhere."""
    wanted = ("needed", "beside_it", "markupsafe", "http", "numpy", "surrounding")
    found = places(python_child(program, *wanted, needs=("needed",)), tmp_path / "here")
    for name in ("needed", "beside_it", "markupsafe"):
        assert found[name] == str(installed / name / "__init__.py")
    assert found["http"] is not None and "installed" not in Path(found["http"]).parts
    assert found["numpy"] == sys.modules["numpy"].__file__ and found["surrounding"] is None


def test_a_package_in_a_zip_file_or_a_relative_folder(program: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as archive:
        archive.writestr("zipped/__init__.py", "")
    (tmp_path / "nearby").mkdir()
    (tmp_path / "nearby" / "single.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages.zip"))
    monkeypatch.syspath_prepend("nearby")
    monkeypatch.chdir(tmp_path)
    found = places(python_child(program, "zipped", "single", needs=("zipped", "single"), only=True), tmp_path / "here")
    assert found == {"zipped": str(tmp_path / "packages.zip" / "zipped" / "__init__.py"),
                     "single": str(tmp_path / "nearby" / "single.py")}  # fmt: skip


def test_a_module_sees_its_own_arguments_and_what_is_missing_is_its_own_error(installed: Path) -> None:
    (installed / "needed" / "tool.py").write_text("import sys; print(__name__, sys.argv[1:])")
    command = python_child("needed.tool", "-c", "a b", needs=("needed", "no_such_package"))
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "__main__ ['-c', 'a b']\n"
    (installed / "needed" / "tool.py").write_text("import no_such_package")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.endswith("ModuleNotFoundError: No module named 'no_such_package'\n")


def test_every_child_of_the_package_is_started_so() -> None:
    root = Path(__file__).parents[3]
    sources = [path for room in ("assay", *ROOMS) for path in (root / room).rglob("*.py")]
    starters = {path.name for path in sources if "sys.executable" in path.read_text(encoding="utf-8")}
    assert starters == {"python_child.py"}
