"""Files that once made a reader fail in a way it must not, kept as they were found; and the mutants themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.examples import examples
from tests.fuzz.seeds import FORMATS, MUTATED, Mutant, mutant, seeds
from tests.fuzz.trial import peak_of, verdict_of, written

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.gz"))
MAX_BYTES = 64 << 20


@pytest.mark.parametrize("file", REGRESSIONS, ids=lambda file: file.stem)
@pytest.mark.parametrize("strict", [False, True])
def test_what_failed_once_is_refused_in_one_line(tmp_path, file, strict):
    path = tmp_path / file.stem
    path.write_bytes(gzip.decompress(file.read_bytes()))
    verdict_of(path, strict=strict)


def test_there_are_regressions():
    assert len(REGRESSIONS) >= 6


@pytest.mark.parametrize("format", FORMATS)
def test_every_seed_is_read_unmutated(tmp_path, format):
    """A mutant of what no reader takes would prove nothing."""
    verdicts = {seed.name: verdict_of(written(tmp_path / "seed", Mutant(*seed))) for seed in seeds(format)}
    assert all(verdict == "model" or verdict.startswith("container: ") for verdict in verdicts.values()), verdicts
    whole = {"gguf": ("model", "built-in"), "apr": ("model", "built-in"), "safetensors": (), "hf": tuple(verdicts)}
    assert all(verdicts[name] == "model" for name in whole[format]), verdicts


@pytest.mark.parametrize("format", FORMATS)
def test_a_case_is_always_the_same_file_and_cases_differ(format):
    first = [mutant(format, number) for number in range(100)]
    assert first == [mutant(format, number) for number in range(100)]
    assert len({case.content for case in first}) > 90


@pytest.mark.parametrize("format", FORMATS)
def test_mutants_reach_every_depth_of_the_reader(tmp_path, format):
    """Many kinds of refusal, none of them nearly all; some mutants open, some as models."""
    verdicts = [verdict_of(written(tmp_path / "mutant", mutant(format, number))) for number in range(300)]
    kinds = {verdict: verdicts.count(verdict) for verdict in set(verdicts)}
    assert len(kinds) >= (5 if format == "hf" else 10) and max(kinds.values()) < 200, kinds
    assert any(kind.startswith("container: ") for kind in kinds)
    assert format == "safetensors" or "model" in kinds


@pytest.mark.parametrize("format", FORMATS)
@examples(300)
@given(rng=st.randoms(use_true_random=False), pick=st.integers(0, 8), strict=st.booleans())
def test_any_mutant_is_read_or_refused_in_one_line(tmp_path, format, rng, pick, strict):
    """As ``run.py``, but hypothesis throws the dice: what fails is shrunk, and remembered."""
    seed = seeds(format)[pick % len(seeds(format))]
    content = Mutant(seed.name, MUTATED[format](seed.content, rng), seed.tail, seed.beside)
    verdict_of(written(tmp_path / "mutant", content), strict=strict)


@pytest.mark.parametrize("format", FORMATS)
@examples(60)
@given(number=st.integers(0, 2**32))
@example(number=0)
def test_a_mutant_takes_no_more_memory_than_a_small_file_can(tmp_path, format, number):
    assert peak_of(written(tmp_path / "mutant", mutant(format, number))) < MAX_BYTES
