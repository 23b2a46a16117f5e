"""An outside witness: right oracles stand by it, and an oracle that is wrong in truth and floor alike does not.

The witness of the quick tests is a recording of healthy ggml arithmetic, named as llama.cpp names its tokens; the slow
ones ask llama.cpp itself.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from assay import reference
from assay.formats import InputError, open_model
from assay.formats.errors import DIFFERENT
from assay.formats.qwen2 import from_apr, from_gguf, from_hf
from assay.formats.system.progress import quiet
from assay.goldens import BUILTIN
from assay.judging import witness
from assay.judging.engines_under_test import engines_under_test
from assay.judging.judge import judge_flips, judge_stages
from assay.judging.witness import Evidence, hear
from assay.parity.flips import Account
from assay.parity.verdict import Verdict
from assay.peers import Peer
from assay.reference import attention as oracle_attention
from assay.reference import model as oracle
from tests.assay.command_line import assay

TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return"
BRIEF = "def fib"
"""For what a command says, which does not hang on how much it read."""
CANDIDATE = ("--engine", "reference", "--arith", "ggml", "--runs", "2")
Plant = Callable[[pytest.MonkeyPatch], None]


class Recorded(Peer):
    """llama.cpp as it would answer if its numbers were the healthy oracle's."""

    logprobs: np.ndarray

    def named_tokens(self, ids: Sequence[int], n: int) -> list[tuple[int, float]]:
        row = self.logprobs[len(ids) - 1]
        return [(int(i), float(row[i])) for i in np.argsort(-row)[:n]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A witness without a process, whose numbers were computed before anything is planted."""
    model = reference.load(BUILTIN, arith="ggml")
    peer = Recorded("llama.cpp", "", 0, 0.0)
    object.__setattr__(peer, "logprobs", log_softmax(model.forward(model.tokenizer.encode(TEXT)), axis=1))

    @contextmanager
    def running(*_: Any, **__: Any) -> Iterator[Peer]:
        yield peer

    monkeypatch.setattr(witness, "running", running)


def heard(arith: str, engine: str = "reference") -> Evidence:
    """The witness beside the truth, and a candidate."""
    judged = engines_under_test(open_model(BUILTIN), engine, arith)
    ids = judged.sample(TEXT, None, False)
    return hear(judged, "llama.cpp", ids, 2, quiet, judge_flips(judged, ids, "prefill", 2, quiet))


def wrong_halves(patch: pytest.MonkeyPatch) -> None:
    right = oracle.rotate
    patch.setattr(oracle, "rotate", lambda x, angles: right(x[..., ::-1], angles)[..., ::-1])


def unmasked(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention that sees what is to come."""
    shared, size = q.shape[1] // k.shape[1], np.sqrt(q.dtype.type(q.shape[2]))
    heads = [oracle_attention.softmax(q[:, h] @ k[:, h // shared].T / size) @ v[:, h // shared]
             for h in range(q.shape[1])]  # fmt: skip
    return np.stack(heads, axis=1)


def no_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(oracle, "attention", unmasked)


def no_mask_in_f32(patch: pytest.MonkeyPatch) -> None:
    right = oracle.attention
    patch.setattr(oracle, "attention", lambda q, k, v: (unmasked if q.dtype == np.float32 else right)(q, k, v))


def misread(field: str, factor: float) -> Plant:
    """A hyper-parameter that the reader of all engines gets wrong."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = from_gguf._floating
        patch.setattr(from_gguf, "_floating", lambda *given: right(*given) * (factor if given[-1] == field else 1))
        for module in (from_apr, from_hf):
            patch.setattr(module, "Config", lambda make=module.Config, **values: make(
                **{**values, field: factor * values[field]}))  # fmt: skip

    return plant


BEYOND: dict[str, tuple[Plant, str]] = {
    "rope, in truth and oracle": (wrong_halves, "logit gaps moved"),
    "no mask, in truth and oracle": (no_mask, "logit gaps moved"),
    "theta misread": (misread("rope_theta", 100), "logit gaps moved"),
    "no mask, in the f32 oracle alone": (no_mask_in_f32, "the floor is too wide"),
}


@pytest.mark.usefixtures("recorded")
def test_a_right_oracle_is_stood_by() -> None:
    found = heard("ggml")
    assert (found.faults, found.candidate) == ((), "") and "stands by the truth" in found.says


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("fault", BEYOND)
def test_an_oracle_that_is_wrong_is_accused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate has the same fault, so all else is green."""
    plant, words = BEYOND[fault]
    plant(monkeypatch)
    found = heard("ggml" if "alone" not in fault else "f32")
    assert any(words in one for one in found.faults), found.says
    assert ("what the oracle does" in found.candidate) == (words == "logit gaps moved")


@pytest.mark.usefixtures("recorded")
def test_a_candidate_that_agrees_with_the_witness_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is right, it is not the candidate that is called a BUG."""
    judged = engines_under_test(open_model(BUILTIN), "reference", "ggml")
    found = judged.candidate.forward(ids := judged.sample(TEXT, None, False))
    wrong_halves(monkeypatch)
    monkeypatch.setattr(judged.candidate, "forward", lambda ids: found)
    said = hear(judged, "llama.cpp", ids, 2, quiet, judge_flips(judged, ids, "prefill", 2, quiet))
    assert said.faults and said.candidate == "it computes what the witness does"
    monkeypatch.setattr(judged.candidate, "forward", lambda ids: found[:, ::-1])
    said = hear(judged, "llama.cpp", ids, 2, quiet, judge_flips(judged, ids, "prefill", 2, quiet))
    assert said.candidate == "it agrees with neither"


def test_a_floor_is_too_wide_only_where_enough_was_seen() -> None:
    def counted(positions: int, noise: float) -> Account:
        return Account(positions, 0.0, 0, 1.0, (), noise, 1.0, 0.0, 0.0)

    assert witness.too_wide(counted(17, 0.2)) and not witness.too_wide(counted(17, 0.3))
    assert not witness.too_wide(counted(3, 0.2)) and not witness.too_wide(counted(17, float("nan")))


def test_what_cannot_be_asked_of_a_witness() -> None:
    judged = engines_under_test(open_model(BUILTIN.with_suffix(".apr")), "reference", "f32")
    with pytest.raises(InputError, match="cannot read APR"):
        witness.demand(judged, "llama.cpp")
    with pytest.raises(InputError, match="there is no witness"):
        witness.demand(judged, "vllm")
    for command in ("parity", "flips"):
        assert assay(command, BRIEF, *CANDIDATE, "--witness", "nobody").is_refusal(2)


def test_what_one_reader_misreads_for_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine has the same wrong number, every stage and token agrees; the second reader does not."""
    junit, page = tmp_path / "cases.xml", tmp_path / "page.html"
    misread("rope_theta", 100)(monkeypatch)
    found = assay("parity", BRIEF, *CANDIDATE, "--junit", str(junit), "--report", str(page), "--json")
    said = json.loads(found.out)
    assert (found.code, said["verdict"], said["site"]) == (DIFFERENT, "REFERENCE-SUSPECT", None)
    assert said["second_reading"]["differences"] == [{"fact": "rope_theta", "ours": "1000000", "theirs": "10000"}]
    errors = [case.get("name") for case in ET.parse(junit).iter("testcase") if case.find("error") is not None]
    assert errors == ["read a second time"]
    assert "two readers of the file differ" in page.read_text()


def test_it_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("flips", BRIEF, *CANDIDATE, "-m", str(BUILTIN.with_suffix(".apr")))
    shown = assay(*asked)
    assert shown.code == 0 and "the file read a second time, by a second reader of APR: 20 facts" in shown.out
    misread("rms_norm_eps", 100)(monkeypatch)
    shown = assay(*asked)
    assert shown.code == DIFFERENT and "it is not known which is right" in shown.out
    assert "REFERENCE-SUSPECT: two readers of the file differ: rms_norm_eps is" in shown.out


@pytest.mark.usefixtures("recorded")
def test_a_witness_takes_the_place_of_any_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("flips", TEXT, *CANDIDATE, "--witness", "llama.cpp")
    said = assay(*asked, "--json").json
    assert said["verdict"] == "DRIFT" and said["witness"]["faults"] == [] and said["witness"]["name"] == "llama.cpp"
    wrong_halves(monkeypatch)
    found = assay(*asked)
    assert found.code == DIFFERENT and "REFERENCE-SUSPECT: llama.cpp does not stand by the truth" in found.out
    assert "it is not known who is right" in found.out


def test_the_oracles_own_noise_is_named_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The f32 oracle held against noisy runs of itself; no reader and no witness said anything."""
    for command in ("parity", "bisect"):
        monkeypatch.setattr(f"assay.commands.{command}.judge_stages", lambda *given: replace(
            found, verdict=Verdict.REFERENCE_SUSPECT) if (found := judge_stages(*given)) else None)  # fmt: skip
        found = assay(command, BRIEF, *CANDIDATE)
        assert found.code == DIFFERENT
        assert "REFERENCE-SUSPECT: the oracle in f32 is wrong by itself" in found.out


IN_F32: dict[str, Plant] = {
    "eps misread": misread("rms_norm_eps", 100), "theta misread": misread("rope_theta", 1.001),
    "rope": wrong_halves, "no mask": no_mask,
}  # fmt: skip


@pytest.mark.torch
def test_transformers_itself(tmp_path: Path) -> None:
    """In f32 a thousandth of theta is seen, of a GGUF file and of a folder that it reads by itself."""
    pytest.importorskip("torch")
    folder = tmp_path / "hf"
    assert assay("convert", "builtin", str(folder), "--as", "F32").code == 0
    for path in (BUILTIN, folder):
        for fault in (None, *IN_F32):
            with pytest.MonkeyPatch.context() as patch:
                if fault is not None:
                    IN_F32[fault](patch)
                judged = engines_under_test(open_model(path), "reference", "f32")
                found = hear(judged, "transformers", judged.sample(TEXT, None, False), 4, quiet)
            assert bool(found.faults) == (fault is not None), (path, fault, found.says)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *BEYOND])
def test_llama_cpp_itself(fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands in its wheel: it reads the file by itself, and has its own equations."""
    if fault is not None:
        BEYOND[fault][0](monkeypatch)
    found = heard("f32" if fault and "alone" in fault else "ggml")
    assert bool(found.faults) == (fault is not None), found.says
