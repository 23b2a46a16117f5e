"""Every way of installing works in a hostile folder, and renders chats with the jinja2 that was installed with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hostile_folder import ROOMS, hostile_folder
from tests.packaging.distributions import tiny_wheel
from tests.packaging.installs import Install, Installer

pytestmark = pytest.mark.packaging

RENDER = """
import json, subprocess, sys
from pathlib import Path
import assay
from assay.accel.chat import render
from assay.formats.system.python_child import python_child
child = python_child(Path(sys.argv[1]), needs=("jinja2", "markupsafe"), only=True)
print(json.dumps({
    "assay": assay.__file__,
    "text": render([{"role": "user", "content": "Hi"}], "{{ messages[0].content }}").text,
    "imported": subprocess.run(child, env={}, cwd="/", capture_output=True, text=True).stdout.split(),
}))
"""
WHICH = "import jinja2, markupsafe; print(jinja2.__file__, markupsafe.__file__)"
WAYS = ("editable", "user", "target", "pythonpath", "checkout")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = hostile_folder(tmp_path / "here")
    (folder / "which.py").write_text(WHICH)
    return folder


def demand_works(install: Install, here: Path) -> None:
    """The package is the one installed, renders a chat with the jinja2 that came with it, and has its commands."""
    said = json.loads(install.run("-c", RENDER, str(here / "which.py"), here=here).stdout)
    assert said["assay"] == str(install.assay / "assay" / "__init__.py")
    assert said["text"] == "Hi"
    assert said["imported"] == [str(install.packages / name / "__init__.py") for name in ("jinja2", "markupsafe")]
    for first in (["-m", "assay"], ["script"])[: 1 + (install.script is not None)]:
        assert "def" in install.run(*first, "tokenize", "def", "-e", "reference", here=here).stdout


@pytest.mark.parametrize("way", WAYS)
def test_an_install_works_in_a_hostile_folder(way: str, installer: Installer, here: Path) -> None:
    demand_works(getattr(installer, way)(), here)


def test_another_distribution_with_our_rooms_names_changes_nothing(installer: Installer, here: Path) -> None:
    install = installer.isolated()
    demand_works(install, here)
    foreign = {f"{room}/__init__.py": "raise SystemExit('of another distribution')" for room in ROOMS}
    installer.pip(install.python, str(tiny_wheel(here, "foreign", foreign)))
    assert all((install.packages / room / "__init__.py").exists() for room in ROOMS)
    demand_works(install, here)
