"""How many examples hypothesis tries: all where ``-m`` asks for thorough tests, a fifth in every other run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ALL = "ASSAY_TEST_ALL_EXAMPLES"
"""Set in the environment by ``conftest.py``, so that the processes of pytest-xdist know it too."""

SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def examples(n: int) -> Callable[[Any], Any]:
    """The decorator of a test whose arguments hypothesis makes up ``n`` times; no example is too slow."""
    n = n if os.environ.get(ALL) else max(1, n // 5)
    chosen = settings(max_examples=n, deadline=None, suppress_health_check=SUPPRESSED)
    return lambda test: pytest.mark.thorough(chosen(test))
