"""Mutants of GGUF files before our reader and the ``gguf`` package's: every kind of disagreement has a reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.formats.containers.gguf import read_gguf
from assay.formats.errors import FormatError
from tests import gguf_files as raw
from tests.fuzz.gguf_mutations import mutated
from tests.fuzz.gguf_package import ACCEPT, Package
from tests.fuzz.seeds import Mutant, mutant, seeds
from tests.fuzz.trial import written

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

WE_REFUSE = {
    "bad-name": "empty, or with a NUL where C would cut it; the package takes any bytes of UTF-8",
    "bad-length": "the package cuts a string off where the file ends, and takes a name of 64 bytes or more",
    "bad-shape": "no dims, more than four, or 2**63 elements: the package multiplies modulo 2**64",
    "bad-count": "more records than the file could hold",
    "bad-value-type": "an array of no items of a type that does not exist",
    "bad-alignment": "above 1 MiB",
    "nested-array": "the package takes arrays of arrays; llama.cpp and we do not",
    "overlap": "the package lets tensors share bytes",
    "misaligned": "the package does not ask for alignment",
    "out-of-file": "an offset near 2**64 wraps in the package, which reads before the data; an empty tensor anywhere",
    "truncated": "the package reads past the end as if there were nothing",
    "big-endian": "the package swaps the bytes; we do not read such files",
}
"""Codes with which we refuse what the package accepts, and why we are right."""
IT_REFUSES = {
    r"is not a valid GGMLQuantizationType": "types that are newer than the package",
    r"Duplicate GGUF\.(version|tensor_count|kv_count) ": "the package keeps its own fields among the file's keys",
}
"""What the package says of files that we accept, and why we are right."""


@pytest.fixture(scope="module")
def package() -> Iterator[Package]:
    package = Package()
    yield package
    package.close()


def ours(path: Path) -> str:
    """ACCEPT, or the code."""
    try:
        read_gguf(path)
    except FormatError as error:
        return error.code
    return ACCEPT


def unexplained(path: Path, package: Package) -> str | None:
    """The disagreement about a file, if it has no reason above."""
    we, it = ours(path), package.verdict(path)
    if we == ACCEPT and it != ACCEPT and not any(re.search(pattern, it) for pattern in IT_REFUSES):
        return f"we accept what the package refuses: {it}"
    if we != ACCEPT and it == ACCEPT and we not in WE_REFUSE:
        return f"we refuse with {we} what the package accepts"
    return None


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=SLOW)
@given(number=st.integers(0, 2**32))
def test_verdicts_on_the_cases_of_run(tmp_path, package, number):
    assert unexplained(written(tmp_path / "mutant", mutant("gguf", number)), package) is None


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(rng=st.randoms(use_true_random=False), pick=st.integers(0, 4))
def test_verdicts_on_mutants_that_can_be_shrunk(tmp_path, package, rng, pick):
    seed = seeds("gguf")[pick % len(seeds("gguf"))]
    content = Mutant(seed.name, mutated(seed.content, rng), seed.tail)
    assert unexplained(written(tmp_path / "mutant", content), package) is None


@pytest.mark.parametrize("seed", seeds("gguf"), ids=lambda seed: seed.name)
def test_both_accept_every_seed(tmp_path, package, seed):
    path = written(tmp_path / "seed", Mutant(*seed))
    assert ours(path) == package.verdict(path) == ACCEPT


DISAGREEMENTS = {
    "bad-name": raw.File([raw.pair("", raw.scalar(raw.U8, 1))]),
    "bad-length": raw.File(tensors=[raw.Tensor("x" * 64)]),
    "bad-shape": raw.File(tensors=[raw.Tensor(dims=[1] * 5)]),
    "bad-alignment": raw.File([raw.alignment_pair(2**21)]),
    "bad-value-type": raw.File([raw.pair("key", raw.array(13, b"", 0))]),
    "nested-array": raw.File([raw.pair("key", raw.array(raw.ARRAY, raw.u32(raw.U8) + raw.u64(1) + b"\1", 1))]),
    "overlap": raw.File(tensors=[raw.Tensor("a", offset=0), raw.Tensor("b", offset=0)]),
    "misaligned": raw.File(tensors=[raw.Tensor("a", (8,), offset=1)], data=bytes(64)),
    "out-of-file": raw.File(tensors=[raw.Tensor(dims=[0], offset=64)], data=b""),
}  # fmt: skip


@pytest.mark.parametrize("code", DISAGREEMENTS)
def test_we_do_refuse_what_the_package_accepts(tmp_path, package, code):
    """The reasons are real: files of which each is true."""
    path = tmp_path / "disputed.gguf"
    path.write_bytes(bytes(DISAGREEMENTS[code]))
    assert (ours(path), package.verdict(path)) == (code, ACCEPT)


def test_an_unlisted_disagreement_would_be_seen(tmp_path, package, monkeypatch):
    path = tmp_path / "disputed.gguf"
    path.write_bytes(bytes(DISAGREEMENTS["overlap"]))
    assert unexplained(path, package) is None
    monkeypatch.delitem(WE_REFUSE, "overlap")
    assert "overlap" in (unexplained(path, package) or "")
    path.write_bytes(bytes(raw.File([raw.pair("GGUF.version", raw.scalar(raw.U8, 1))])))
    assert unexplained(path, package) is None
    monkeypatch.setattr(f"{__name__}.IT_REFUSES", {})
    assert "Duplicate" in (unexplained(path, package) or "")


def test_a_file_on_which_the_package_hangs_is_survived(tmp_path, package):
    """An array of 2**63 numbers in a few bytes. The next file is judged as if nothing had been."""
    path = tmp_path / "hang.gguf"
    path.write_bytes(bytes(raw.File([raw.pair("key", raw.array(raw.U8, b"", 2**63))], alignment=1)))
    assert ours(path) == "bad-count" and package.verdict(path) != ACCEPT
    path.write_bytes(bytes(raw.File()))
    assert package.verdict(path) == ACCEPT
