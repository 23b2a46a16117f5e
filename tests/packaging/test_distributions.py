"""The wheel holds one package of real files; the source distribution builds the same wheel."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.distributions import built

pytestmark = pytest.mark.packaging


def test_the_wheel_has_one_import_name_and_real_files(wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
    names = {member.filename for member in members}
    assert {re.sub(r"-\d.*", "", name.split("/")[0]) for name in names} == {"assay"}
    assert {name.split("/")[0] for name in names if name.endswith(".py")} == {"assay"}
    assert all(stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG) for member in members)
    modules = {name.removeprefix("assay/") for name in names if name.endswith(".py")}
    rooms = {path.relative_to(tree).as_posix() for room in ("accel", "formats", "goldens", "parity", "reference")
             for path in (tree / room).rglob("*.py") if "training" not in path.parts}  # fmt: skip
    face = {path.relative_to(tree / "assay").as_posix() for path in (tree / "assay").rglob("*.py")}
    assert modules == rooms | {name for name in face if "training" not in name}
    assert {"assay/goldens/builtin.gguf", "assay/goldens/builtin.apr", "assay/goldens/builtin.json",
            "assay/goldens/qwen2.5.jinja", "assay/fetch/catalogue.toml"} <= names  # fmt: skip
    assert not any("tests" in name.split("/") or "training" in name for name in names)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_source_distribution_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert all(member.isfile() or member.isdir() for member in archive)
        assert not [name for name in archive.getnames() if "tests" in name.split("/")]
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert contents(built("wheel", unpacked, tmp_path / "dist")) == contents(wheel)


@pytest.mark.parametrize("gone", [False, True], ids=["text in place of links", "nothing in place of links"])
def test_a_checkout_without_links_says_what_to_do(gone: bool, tree: Path, tmp_path: Path) -> None:
    """Git without core.symlinks and some zip programs write links as text; a wheel built of that has no such file."""
    shutil.copytree(tree / "assay", tmp_path / "assay", symlinks=True)
    for link in [path for path in (tmp_path / "assay").iterdir() if path.is_symlink()]:
        target = os.readlink(link)
        link.unlink()
        if not gone:
            link.write_text(target)
    done = subprocess.run([sys.executable, "-m", "assay"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: ") and "core.symlinks=true" in last
