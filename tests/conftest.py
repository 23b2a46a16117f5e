"""Shared by all tests: compiled programs of this session, the engines of the built-in model, the real models."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["ASSAY_FLOORS"] = "off"  # what is tested is measured here and now


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are kept for this session, in a folder that all its processes share; nothing is left behind."""
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist has its parent's folder
        folder = tempfile.mkdtemp(prefix="assay-tests-programs-")
        os.environ["ASSAY_XLA_CACHE"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def real_05b() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct Q4_K_M, pulled on first use."""
    from assay.engines import find

    return find("qwen2.5-coder-0.5b")


@pytest.fixture(scope="session")
def real_15b() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct Q4_K_M, pulled on first use."""
    from assay.engines import find

    return find("qwen2.5-coder-1.5b")


@pytest.fixture(scope="session")
def builtin_f64():
    """The oracle of the built-in model in f64: truth."""
    from assay import reference
    from assay.goldens import BUILTIN

    return reference.load(BUILTIN, arith="f64", cache_weights=True)


@pytest.fixture(scope="session")
def builtin_f32():
    """The oracle of the built-in model in f32."""
    from assay import reference
    from assay.goldens import BUILTIN

    return reference.load(BUILTIN, arith="f32", cache_weights=True)


@pytest.fixture(scope="session")
def builtin_accel():
    """The accelerated engine of the built-in model in f32, one for all tests: a program takes seconds to compile."""
    from assay import accel
    from assay.goldens import BUILTIN

    return accel.load(BUILTIN, arith="f32")
