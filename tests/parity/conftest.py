"""The built-in model's three under_test: truth, the oracle's floor, and something to judge."""

from __future__ import annotations

import pytest

from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.judging.engines_under_test import UnderTest, engines_under_test
from assay.parity import stages
from assay.parity.floor import NoiseFloor
from assay.parity.precision import Precision
from tests.planted import IDS


@pytest.fixture(scope="session")
def judged() -> UnderTest:
    """The oracle in f32 as the candidate: its floor is its own noise."""
    return engines_under_test(open_model(BUILTIN), "reference", "f32")


@pytest.fixture(scope="session")
def declared(judged: UnderTest) -> Precision:
    found = judged.declared(len(IDS))
    assert found is not None
    return found


@pytest.fixture(scope="session")
def truth(judged: UnderTest) -> stages.Activations:
    return stages.capture(judged.truth, IDS)


@pytest.fixture(scope="session")
def limits(judged: UnderTest, truth: stages.Activations, declared: Precision) -> NoiseFloor:
    return stages.noise_floor(judged.oracle, IDS, truth, declared)
