"""Shared by all tests: the folder of test-only modules, and the real models for ``-m real``."""

import os
from pathlib import Path

import pytest

os.environ["ASSAY_XLA_CACHE"] = "off"  # what is tested is compiled here and now; nothing is left behind
os.environ["ASSAY_FLOORS"] = "off"  # a test that changes the oracle must not leave its floor to others


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
