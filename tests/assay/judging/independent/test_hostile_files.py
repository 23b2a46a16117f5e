"""A second reader is shown what ours has accepted, and nothing of it may end a command: not even a mutant."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from assay.formats import AssayError, open_model
from assay.judging import independent
from assay.judging.independent import check
from tests.fuzz.seeds import mutant
from tests.fuzz.trial import written

MOST_SECONDS = 30
"""Of processor time for one file of a few thousand bytes; the slowest of 1,700 took 0.35. A guard against hanging."""


@pytest.mark.slow
@pytest.mark.parametrize(("container", "cases", "accepted"), [("gguf", 2000, 50), ("apr", 2000, 50), ("hf", 1000, 100)])
def test_mutants_that_ours_accepts(container: str, cases: int, accepted: int, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(independent.hf_by_transformers, "installed", lambda: False)
    seen = 0
    for number in range(cases):
        try:
            file = open_model(written(tmp_path / f"m.{container}", mutant(container, number)))
            begin = time.process_time()
            found = check(file, values=True)
        except AssayError:
            continue
        assert not found.differences, (number, found.says)
        assert time.process_time() - begin < MOST_SECONDS
        seen += 1
    assert seen > accepted
