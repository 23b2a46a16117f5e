"""Every module has one name, and imports run downwards: the rules of pyproject.toml, by the tools that read them."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile_folder import ROOMS, hostile_folder

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import assay
def unreadable(name):
    raise
names = [module.name for module in pkgutil.walk_packages(assay.__path__, "assay.", onerror=unreadable)]
for name in names:
    if not name.endswith(".__main__"):  # which would run the command line
        importlib.import_module(name)
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


@pytest.mark.parametrize("place", ["a hostile folder", "the root of the repository"])
def test_no_module_has_two_names(place: str, tmp_path: Path) -> None:
    """In the root, where each could be imported by its bare name as well."""
    folder = ROOT if place == "the root of the repository" else hostile_folder(tmp_path / "here")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    ours = {name: os.path.realpath(file) for name, file in loaded.items() if file and Path(file).is_relative_to(ROOT)
            and ".venv" not in Path(file).parts}  # fmt: skip
    assert len(ours) > 150 and len(set(ours.values())) == len(ours)
    assert {name.partition(".")[0] for name in ours} == {"assay"} and not loaded.keys() & set(ROOMS)


def test_bare_imports_are_banned() -> None:
    forms = ("import {}", "import {}.x as y", "from {} import x", "from {}.x import y", "def f(): import {}")
    source = "\n".join(form.format(room) for room in ROOMS for form in forms)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--output-format", "json",
               "--stdin-filename", "assay/cli.py", "-"]  # fmt: skip
    done = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True, timeout=60)
    banned = [(found["code"], found["location"]["row"]) for found in json.loads(done.stdout)]
    assert banned == [("TID251", row) for row in range(1, len(ROOMS) * len(forms) + 1)]


IMPORTERS = ("__import__", "find_spec", "import_module", "importorskip", "run_module")


def bare_names(source: str) -> list[str]:
    """The texts that calls in ``source`` import by, and that begin with a room's bare name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
            if called in IMPORTERS and text.partition(".")[0] in ROOMS:
                found.append(text)
    return found


@pytest.mark.parametrize("call", ['import_module("formats")', 'importlib.import_module("accel.chat")',
                                  '__import__("parity")', 'import_module(f"reference.{name}")'])  # fmt: skip
def test_a_bare_import_by_text_is_found(call: str) -> None:
    assert len(bare_names(call)) == 1 and not bare_names(call.replace('"', '"assay.', 1))


def test_nothing_is_imported_by_a_bare_name_in_a_text() -> None:
    sources = [path for folder in ("assay", *ROOMS, "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 200
    assert {str(path): bare for path in sources if (bare := bare_names(path.read_text(encoding="utf-8")))} == {}


def test_imports_run_downwards() -> None:
    """The contracts of pyproject.toml, [tool.importlinter]."""
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    done = subprocess.run([*lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout
