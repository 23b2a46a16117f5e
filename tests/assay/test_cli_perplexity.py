"""``assay perplexity``: bases written and read, and what must be the same before they are compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from assay.goldens import BUILTIN
from assay.judging.perplexity import chunks_of, logits_of
from assay.parity import kld
from tests.assay.command_line import assay

TEXT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n" * 4
REFERENCE = ("--engine", "reference")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kld") / "base.kld"
    wanted = ("-c", "16", "--chunks", "3", "--kl-divergence-base", str(path))
    said = assay("perplexity", TEXT, *wanted, *REFERENCE, "--json")
    assert said.json["chunks"] == 3 and said.json["positions"] == 21
    assert said.json["ppl"] > 1
    return path


def compare(base: Path, *more: str) -> Any:
    return assay("perplexity", "--kl-divergence", "--kl-divergence-base", str(base), *REFERENCE, *more)


def test_an_engine_beside_its_own_base(base: Path) -> None:
    said = compare(base, "--json").json
    assert abs(said["mean_kld"]) < 1e-4 and said["same_top"] == 1 and said["n_ctx"] == 16
    assert said["ppl_candidate"] == pytest.approx(said["ppl_truth"], rel=1e-3)
    other = compare(base, "--arith", "ggml", "--path", "decode", "--chunks", "2", "--json").json
    assert other["mean_kld"] > said["mean_kld"] and other["chunks"] == 2


def test_the_table_has_llama_perplexitys_names(base: Path) -> None:
    said = compare(base, "--chunks", "1")
    assert said.code == 0
    for name in ("Mean PPL(Q)", "Mean KLD", "Same top p", "7 positions of 1 chunk of 16 tokens"):
        assert name in said.out


def test_the_text_must_be_the_bases(base: Path) -> None:
    assert compare(base, TEXT, "--chunks", "1").code == 0, "of a text that goes on, what the base has"
    wrong = compare(base, TEXT.replace("sub", "mul"))
    assert wrong.is_refusal(9) and "token ids" in wrong.err


def test_a_base_of_another_vocabulary(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.kld"
    with kld.writing(other, np.ones((1, 4)), 5) as add:
        add(np.zeros((1, 5)))
    assert compare(other).is_refusal(9)


def test_requests_that_make_no_sense(base: Path, tmp_path: Path) -> None:
    assert assay("perplexity", TEXT, "-c", "16", "--kl-divergence-base", str(base)).is_refusal(2), "it exists"
    assert compare(base, "-c", "32").is_refusal(2)
    assert assay("perplexity", TEXT, "--kl-divergence").is_refusal(2)
    assert assay("perplexity", "short", *REFERENCE).is_refusal(2)
    assert assay("perplexity", TEXT, "-c", "100000", *REFERENCE).is_refusal(2)
    assert assay("perplexity", TEXT, "--path", "sideways").is_refusal(2)
    assert assay("perplexity", TEXT, "--force").is_refusal(2)
    assert compare(tmp_path / "missing").is_refusal(3)
    assert compare(BUILTIN).is_refusal(3)
    assert assay("perplexity", TEXT, "-m", str(BUILTIN), "-c", "16", "--kl-divergence-base", str(BUILTIN), "--force",
                 *REFERENCE).is_refusal(2)  # fmt: skip


class Counting:
    """An engine whose logits are what it read."""

    def __init__(self, *, add_bos: bool) -> None:
        self.file = SimpleNamespace(vocabulary=FiveTokens(add_bos))
        self.read: list[list[int]] = []

    def forward(self, ids: list[int]) -> np.ndarray:
        self.read.append(ids)
        return np.arange(len(ids) * 8.0).reshape(len(ids), 8)


class FiveTokens:
    bos_id = 4

    def __init__(self, add_bos: bool) -> None:
        self.add_bos = add_bos

    def __len__(self) -> int:
        return 5


def test_chunks_start_anew_and_the_second_half_is_scored() -> None:
    chunks = chunks_of(list(range(1, 12)), 5)
    assert chunks.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    plain, with_bos = Counting(add_bos=False), Counting(add_bos=True)
    logits = list(logits_of(plain, chunks, "prefill"))
    assert logits[0].tolist() == np.arange(40.0).reshape(5, 8)[2:4, :5].tolist(), "padding rows are no tokens"
    assert plain.read == chunks.tolist()
    list(logits_of(with_bos, chunks, "prefill"))
    assert with_bos.read == [[4, 2, 3, 4, 5], [4, 7, 8, 9, 10]], "as llama.cpp: it takes the first one's place"
