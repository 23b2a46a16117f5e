"""The measurement of drift and of greedy texts, on the built-in model and on logits small enough to check by hand."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from assay.goldens import BUILTIN
from tests.real import fast_agreement as measured


@pytest.fixture(scope="module")
def builtin_ggml() -> reference.Model:
    return reference.load(BUILTIN, arith="ggml")


def test_drift_of_two_tokens_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/4, 3/4): KL = 3/4 ln 3 - 1/4 ln 3, and the most likely token is the other one."""
    base = np.log([[3.0, 1.0], [3.0, 1.0]])
    other = np.log([[1.0, 3.0], [3.0, 1.0]])
    other[1] += 1000  # a shift of all logits changes no probability
    d = measured.drift(base, other)
    assert d.kl == pytest.approx([np.log(3) / 2, 0], abs=1e-12)  # 1000 + ln 3 is rounded to 1e-13
    assert d.flipped.tolist() == [True, False]
    assert d.margin == pytest.approx([np.log(3)] * 2)
    assert d.error == pytest.approx([2 * np.log(3) ** 2, 2 * 1000**2])
    assert d.norm == pytest.approx([np.log(3) ** 2] * 2)


def test_drift_is_the_same_in_slices_and_from_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = np.random.default_rng(0).standard_normal((2, 10, 7)).astype(np.float32)
    whole = measured.drift(base, other)
    monkeypatch.setattr(measured, "ROWS", 3)
    for a, b in zip(whole, measured.drift(base.astype(np.float64), other), strict=True):
        assert len(a) == 10
        assert np.array_equal(a, b)


def test_summary_speaks_of_flips_only_where_there_are_some() -> None:
    ones = np.ones(5)
    margins = np.array([99.0, 1, 2, 4, 8])
    d = measured.Drift(kl=np.array([99.0, 0, 0, 0, 4]), flipped=margins > 1, margin=margins, error=ones, norm=4 * ones)
    s = measured.summary([d])
    assert (s["top1_equal"], s["flips"], s["flip_margin_median"], s["flip_margin_max"]) == (0.25, 3, 4, 8)
    assert (s["kl_mean"], s["kl_standard_error"], s["kl_max"], s["relative_l2"]) == (1, 1, 4, 0.5)  # s = 2, n = 4
    assert (s["kl_first"], s["positions"]) == (99, 4)
    assert measured.summary([d._replace(flipped=margins > 8)])["flip_margin_max"] is None
    twice = measured.summary([d, d._replace(kl=d.kl / 3)])
    assert (twice["kl_first"], twice["positions"], twice["kl_max"]) == (66, 8, 4)


def test_sequences_are_full_different_and_half_of_them_chats(builtin_f32: Any) -> None:
    found = measured.sequences(builtin_f32, 4 * measured.LENGTH + 1)
    assert {len(ids) for ids in found.values()} == {measured.LENGTH}
    assert len({tuple(ids) for ids in found.values()}) == len(found) == 8
    start = builtin_f32.tokenizer.encode("<|im_start|>")[0]
    assert [ids[0] == start for ids in found.values()] == ["chat" in name for name in found]


def test_the_oracle_is_asked_once_and_half_an_answer_is_none(builtin_f64: Any, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(measured, "SLICE", 4)
    ids = list(range(10, 20))
    asked: list[list[int]] = []

    def interrupted(*arguments: Any) -> np.ndarray:
        asked.append(arguments[2])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measured.extend(*arguments)

    with pytest.raises(KeyboardInterrupt):
        measured.oracle_logits(builtin_f64, ids, tmp_path, extend=interrupted)
    first = measured.oracle_logits(builtin_f64, ids, tmp_path, extend=interrupted)
    again = measured.oracle_logits(builtin_f64, ids, tmp_path, extend=interrupted)
    assert asked[2:] == [ids[:4], ids[4:8], ids[8:]]
    assert np.array_equal(first, again)
    assert first.dtype == np.float64
    # Sums of f64 in another order: 1e-16 times some thousand operations
    assert np.allclose(first, builtin_f64.forward(ids), rtol=0, atol=1e-9)
    other = measured.oracle_logits(builtin_f64, ids[::-1], tmp_path)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("draft", ["right", "wrong", "ends"])
def test_no_draft_changes_the_oracle_s_text(builtin_f32: Any, draft: str) -> None:
    prompt = builtin_f32.tokenizer.encode("def fib(n):")
    written = reference.generate(builtin_f32, prompt, max_tokens=24)
    rng = np.random.default_rng(0)

    def propose(ids: Sequence[int], n: int) -> list[int]:
        right = reference.generate(builtin_f32, ids, max_tokens=n).ids
        if draft == "wrong":
            return [i if rng.random() < 0.7 else (i + 1) % builtin_f32.file.config.n_vocab for i in right]
        return [*right[:3], *builtin_f32.file.vocabulary.end_ids][:n] if draft == "ends" else right

    text = measured.oracle_text(builtin_f32, propose, prompt, 24)
    assert text.ids == written.ids
    assert np.allclose(text.margins, written.margins, rtol=0, atol=1e-4)  # logits of size 1 in f32, sums reordered


@pytest.mark.parametrize("draft", ["goes on", "differs"])
def test_the_text_ends_with_the_oracle_s_end_token(builtin_f32: Any, draft: str) -> None:
    prompt = builtin_f32.tokenizer.encode("def fib(n):")
    written = reference.generate(builtin_f32, prompt, max_tokens=24).ids
    at = next(i for i, token in enumerate(written) if i > 3 and token not in written[:i])
    file = builtin_f32.file
    vocabulary = dataclasses.replace(file.vocabulary, end_ids=frozenset({written[at]}))
    oracle = reference.load(dataclasses.replace(file, vocabulary=vocabulary))
    proposed = written if draft == "goes on" else [*written[:at], *(i + 1 for i in written[at:])]
    text = measured.oracle_text(oracle, lambda ids, n: proposed[len(ids) - len(prompt) :], prompt, 24)
    assert text.ids == written[: at + 1]
    assert len(text.margins) == at + 1


def test_where_two_texts_part(builtin_f64: Any, builtin_f32: Any, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The oracle stands in for the fast engine: once as it is, once writing another token at place 5."""
    monkeypatch.setattr(measured, "RAW", ["def fib(n):"])
    monkeypatch.setattr(measured, "CHAT", ["Write a function that returns the sum of a list."])  # no short answer
    monkeypatch.setattr(measured, "N_GREEDY", 12)
    n_vocab = builtin_f32.file.config.n_vocab
    monkeypatch.setattr(accel, "generate", reference.generate)
    oracles = {"ggml": builtin_f32, "f64": builtin_f64}
    records = measured.show_greedy(measured.greedy(oracles, builtin_f32, tmp_path, None))
    assert [(r["kind"], r["equal"], r["same"]) for r in records] == [("raw", True, 12), ("chat", True, 12)]

    def slips(*arguments: Any, **options: Any) -> Any:
        answer = reference.generate(*arguments, **options)
        answer.ids[5] = (answer.ids[5] + 1) % n_vocab
        return answer

    monkeypatch.setattr(accel, "generate", slips)
    for record in measured.greedy(oracles, builtin_f32, tmp_path, None):
        assert (record["equal"], record["same"]) == (False, 5)
        assert record["ids"][1] == (record["ids"][0] + 1) % n_vocab
        prompt = record["prompt"]
        if record["kind"] == "chat":
            prompt = builtin_f64.chat_prompt([{"role": "user", "content": prompt}])
        read = [*builtin_f64.tokenizer.encode(prompt), *reference.generate(builtin_f32, prompt, max_tokens=5).ids]
        ours, theirs = builtin_f64.forward(read)[-1][record["ids"]]
        assert record["f64_margin"] == pytest.approx(ours - theirs, abs=1e-9)
        assert 0 < record["oracle_margin"] <= record["f64_margin"] + 1e-4  # the best over any other, to rounding


@pytest.mark.slow
def test_the_table_of_drifts(builtin_f64: Any, builtin_f32: Any, builtin_ggml: reference.Model, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Oracles stand in for the fast engine, so that its lines must say what theirs say."""
    monkeypatch.setattr(measured, "LENGTH", 32)
    monkeypatch.setattr(measured, "SLICE", 16)
    oracles = {"f64": builtin_f64, "f32": builtin_f32, "ggml": builtin_ggml}
    fast = {"f32": builtin_f32, "fast": builtin_ggml}
    lines = measured.show_drifts(measured.drifts(oracles, fast, 128, tmp_path, None))
    found = {(line["engine"], line["against"].split()[1]): line for line in lines}
    assert [line["positions"] for line in lines] == [124, 124, 28, 124, 124, 124, 124, 124]
    assert capsys.readouterr().out.count("\n|") == 2 + len(lines)
    assert found["reference f32", "f64"]["relative_l2"] < 1e-5 < found["reference ggml", "f64"]["relative_l2"]
    assert found["accel f32", "f64"]["relative_l2"] < 1e-5
    for way in ("all at once", "one by one"):
        line = found[f"accel fast, {way}", "ggml"]
        assert line["kl_mean"] < found["reference ggml", "f64"]["kl_mean"]
        assert found[f"accel fast, {way}", "f64"]["kl_mean"] > 1e-6
    # The same predictions nearly: those of two unrelated positions differ by more than half their size
    assert 0 < found["reference ggml, last bits moved", "ggml"]["relative_l2"] < 0.5


def test_last_bits_are_moved_and_nothing_more() -> None:
    x = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    moved = measured.last_bit("embedding", None, x)
    assert moved.dtype == np.float32
    assert 0.2 < (moved != x).mean() < 0.8
    # five deviations of 2^-24, and half a unit (at most 2^-24) for rounding to f32
    assert np.abs(moved / x.astype(np.float64) - 1).max() < 6 * 2.0**-24


def test_turns_hold_the_lock_and_give_it_back(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    def is_held() -> bool:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def fail() -> None:
        assert is_held()
        raise RuntimeError

    assert measured.turns(is_held, lock)()
    with pytest.raises(RuntimeError):
        measured.turns(fail, lock)()
    assert not is_held()
