"""What is made of a checkout: a copy of its files, the distributions built from them, and an environment offline.

Nothing is asked of a package index: what a distribution depends on is linked from the Python that runs the tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_THE_TEMPLATES_CHILD = ("jinja2", "markupsafe")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"


def copy_of_checkout(folder: Path) -> Path:
    """A copy of the files that git knows or would add, links as links."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True)  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():  # or it was deleted and that is not committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def built(kind: str, tree: Path, into: Path) -> Path:
    """Build the ``wheel`` or ``sdist`` of a tree, by the backend itself."""
    into.mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD, kind, str(into)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return into / done.stdout.splitlines()[-1]


def tiny_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A wheel of a few text files, version 1.0."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "RECORD": "",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**files, **{f"{name}-1.0.dist-info/{k}": v for k, v in info.items()}}.items():
            archive.writestr(member, text)
    return path


def linked_dependencies(folder: Path) -> Path:
    """Links to all that is installed beside pytest, but Assay itself and what its templates' child imports."""
    folder.mkdir()
    without = ("__editable__", "assay", "__pycache__", *OF_THE_TEMPLATES_CHILD)
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(installed).iterdir():
            if not path.name.lower().startswith(without) and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)
    return folder
