"""One copy of the checkout, and what is built from it, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.distributions import built, copy_of_checkout, linked_dependencies
from tests.packaging.installs import Installer


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", tree, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="session")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", tree, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="session")
def installer(tree: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installer:
    where = tmp_path_factory.mktemp("installs")
    return Installer(where, tree, wheel, linked_dependencies(where / "dependencies"))
