"""The ways in which people install Assay, each made without an index, and how a program is then run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from pathlib import Path

from tests.packaging.distributions import OF_THE_TEMPLATES_CHILD

BASE = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
"""The Python outside every virtual environment: it alone has a user's site-packages."""


@dataclass
class Install:
    """A Python that has Assay, in one of the ways."""

    python: Path
    assay: Path
    """The folder that holds the package."""
    packages: Path
    """The folder in which jinja2 was installed with it."""
    script: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    """Where it must be started, if that is how it is found."""

    def run(self, *command: str, here: Path) -> subprocess.CompletedProcess[str]:
        """Run a Python program, or with ``script`` in place of its first argument the script, in the folder ``here``.

        PYTHONPATH names the current folder before all others. Raises AssertionError if it fails.
        """
        path = os.pathsep.join([".", *filter(None, [self.variables.get("PYTHONPATH")])])
        environment = {"PATH": os.environ["PATH"], "HOME": str(here), **self.variables, "PYTHONPATH": path}
        first = [str(self.script)] if command[0] == "script" else [str(self.python), command[0]]
        done = subprocess.run([*first, *command[1:]], cwd=self.folder or here, env=environment, capture_output=True,
                              text=True, timeout=120)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done


class Installer:
    """Makes installs in folders of ``where``: of ``wheel``, or of the checkout ``tree``."""

    def __init__(self, where: Path, tree: Path, wheel: Path, dependencies: Path) -> None:
        self.where, self.tree, self.wheel, self.dependencies = where, tree, wheel, dependencies

    def pip(self, python: Path, *arguments: str, **variables: str) -> None:
        """Have pip install into ``python``, with nothing from an index or a cache."""
        settings = {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.devnull}  # fmt: skip
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.where), "PYTHONPATH": str(self.dependencies)}
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *arguments],
                              env={**environment, **settings, **variables}, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr

    def provide(self, packages: Path) -> Path:
        """Put what an index would have delivered into ``packages``: jinja2 as files, the rest as one line."""
        packages.mkdir(parents=True, exist_ok=True)
        installed = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))
        for name in OF_THE_TEMPLATES_CHILD:
            source = next(folder / name for folder in installed if (folder / name).exists())
            shutil.copytree(source, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
        (packages / "dependencies.pth").write_text(f"{self.dependencies}\n")
        return packages

    def environment(self, name: str) -> tuple[Path, Path]:
        """A virtual environment without pip: its Python and its packages."""
        folder = self.where / name
        venv.create(folder, symlinks=True)
        variables = {"base": str(folder), "platbase": str(folder)}
        return folder / "bin" / "python", self.provide(Path(sysconfig.get_path("purelib", "venv", variables)))

    def isolated(self) -> Install:
        """As pipx and uv do it: an environment of its own elsewhere, and a link to its script in a bin folder."""
        python, packages = self.environment("isolated")
        self.pip(python, str(self.wheel))
        link = self.where / "bin" / "assay"
        link.parent.mkdir()
        link.symlink_to(python.with_name("assay"))
        return Install(python, packages, packages, link)

    def editable(self) -> Install:
        """``pip install -e`` of a checkout."""
        python, packages = self.environment("editable")
        self.pip(python, "--no-build-isolation", "-e", str(self.tree))
        return Install(python, self.tree, packages, python.with_name("assay"))

    def user(self) -> Install:
        """``pip install --user``, with a home of its own."""
        home = self.where / "user"
        self.pip(BASE, "--user", str(self.wheel), HOME=str(home))
        base = home / ".local"
        packages = self.provide(Path(sysconfig.get_path("purelib", "posix_user", {"userbase": str(base)})))
        return Install(BASE, packages, packages, base / "bin" / "assay", {"HOME": str(home)})

    def target(self) -> Install:
        """``pip install --target FOLDER``, and PYTHONPATH."""
        packages = self.provide(self.where / "target")
        self.pip(BASE, "--target", str(packages), str(self.wheel))
        path = os.pathsep.join(map(str, (packages, self.dependencies)))
        return Install(BASE, packages, packages, packages / "bin" / "assay", {"PYTHONPATH": path})

    def pythonpath(self) -> Install:
        """Nothing installed: a checkout and its dependencies, all on PYTHONPATH."""
        packages = self.provide(self.where / "pythonpath")
        path = os.pathsep.join(map(str, (self.tree, packages, self.dependencies)))
        return Install(BASE, self.tree, packages, variables={"PYTHONPATH": path})

    def checkout(self) -> Install:
        """Nothing installed but the dependencies: started in the root of a checkout."""
        python, packages = self.environment("checkout")
        return Install(python, self.tree, packages, folder=self.tree)
