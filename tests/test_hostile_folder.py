"""Everything works in a folder that has packages called as ours are, and with that folder on PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from assay import peers
from assay.accel.chat import render
from assay.fetch import from_wheels
from assay.goldens import BUILTIN
from tests.hostile_folder import hostile_folder
from tests.packaging.distributions import tiny_wheel

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("assay")
WAYS = {
    "import": (sys.executable, "-c", "import assay; from assay.cli import main; main()"),
    "module": (sys.executable, "-m", "assay"),
    "script": (str(SCRIPT),),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that processes are started in, and that PYTHONPATH names first for them."""
    folder = hostile_folder(tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", str(ROOT)]))
    return folder


@pytest.fixture
def childs_own(here: Path) -> None:
    """The folder also has what a child imports. The ``assay`` script, say, was found elsewhere and never looks here."""
    for name in ("jinja2", "json", "markupsafe", "numpy", "pip", "xllamacpp"):
        (here / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder was imported')")


@pytest.mark.parametrize("way", WAYS)
def test_starting(way: str) -> None:
    if way == "script" and not SCRIPT.exists():
        pytest.skip("this environment has no script")
    command = (*WAYS[way], "tokenize", "def", "--engine", "reference")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "def" in done.stdout


@pytest.mark.usefixtures("childs_own")
def test_the_templates_child() -> None:
    assert render([{"role": "user", "content": "Hi"}], "{{ messages[0].content }}").text == "Hi"


@pytest.mark.usefixtures("childs_own")
def test_pips_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_wheel(tmp_path, "toy", {})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    from_wheels.run_pip("toy==1.0", fetched, threading.Event())
    assert [path.name for path in fetched.iterdir()] == ["toy-1.0-py3-none-any.whl"]


@pytest.mark.usefixtures("childs_own")
def test_a_peers_child() -> None:
    """llama.cpp itself: its module is the package's own, and it imports what the package imports."""
    pytest.importorskip("xllamacpp")
    with peers.running("llama.cpp", BUILTIN, context=64) as peer:
        assert len(peer.generate([[1, 2, 3]], 2)["ids"][0]) == 2
