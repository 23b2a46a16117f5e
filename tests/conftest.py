"""Shared by all tests: compiled programs of this session, the engines of the built-in model, the real models."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples import ALL

os.environ["ASSAY_FLOORS"] = "off"  # what is tested is measured here and now


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are kept for this session, in a folder that all its processes share; nothing is left behind.

    ``ASSAY_TEST_PROGRAMS`` names a folder that outlives the session, as ``.ci/run`` has it for its parts.
    """
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist has its parent's environment
        return
    folder = os.environ.get("ASSAY_TEST_PROGRAMS")
    if not folder:
        folder = tempfile.mkdtemp(prefix="assay-tests-programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["ASSAY_XLA_CACHE"] = folder
    if "thorough" in config.option.markexpr:
        os.environ[ALL] = "1"
    if getattr(config.option, "numprocesses", None):
        # Threads of OpenBLAS wait for one another by spinning. With more of them than cores, three tests of the oracle
        # took 24 s of processor time instead of 1.4.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer with one quantized matrix: each kind of quantized product takes seconds to compile."""
    from tests.model_builder import Shape, build

    shape = Shape(hidden=64, head_dim=32, ffn=64, context=1024, types={"ffn_down": ["Q8_0"]})
    return build(tmp_path_factory.mktemp("one-layer") / "one-layer.gguf", shape)


@pytest.fixture(scope="session")
def one_layer_accel(one_layer: Path):
    """The accelerated engine of that model in f32."""
    from assay import accel

    return accel.load(one_layer, arith="f32")


@pytest.fixture(scope="module")
def nothing_prepared() -> Iterator[None]:
    """Engines compile what they are asked for: not, as they are loaded, the program that decodes."""
    from assay.accel.model import Model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "_prepare", lambda self: None)
        yield


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


@pytest.fixture(scope="session")
def builtin_fast():
    """The same in its default arithmetic."""
    from assay import accel
    from assay.goldens import BUILTIN

    return accel.load(BUILTIN)
