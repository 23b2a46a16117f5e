"""A candidate's own generation: each difference is found, judged by what was predicted there, and gone past."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from assay.formats.system.progress import quiet
from assay.judging.engines_under_test import UnderTest
from assay.judging.judge import judge_free_run
from assay.parity.free_run import Written, free_run
from assay.parity.precision import Precision
from assay.parity.prediction import Prediction
from assay.parity.verdict import Verdict, of_flips

ANSWER = [5, 6, 7, 8, 9, 2]
ANSWER_MARGINS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def predicted(*probabilities: float) -> Prediction:
    n, p = len(ANSWER), np.array(probabilities or [0.0] * len(ANSWER))
    return Prediction(np.zeros((n, 1)), np.zeros((n, 9), int), np.arange(1.0, n + 1)[:, None], np.ones((n, 1)), p)


class Writer:
    """Writes the answer, but other tokens after some lengths of text; remembers what it was asked."""

    def __init__(self, others: dict[int, int | None], off: float = 0.0) -> None:
        self.others, self.off, self.asked = others, off, []

    def __call__(self, ids: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        self.asked.append((list(ids), n))
        written: list[int] = []
        while len(written) < n:
            at = len(ids) + len(written) - 2  # the prompt has two tokens
            token = self.others.get(at, ANSWER[at])
            if token is None:
                break
            written.append(token)
        first = len(ids) - 2
        return written, [(99.0 if at in self.others else ANSWER_MARGINS[at] + self.off)
                         for at in range(first, first + len(written))]  # fmt: skip


def test_a_right_writer_is_asked_once() -> None:
    writer = Writer({})
    found = free_run(writer, [1, 3], ANSWER, predicted())
    assert found.observed == 0 and found.expected == 0 and writer.asked == [([1, 3], 6)]
    assert of_flips(found, Precision("f32", {})) == Verdict.NOISE


def test_after_a_difference_it_goes_on_from_the_truths_text() -> None:
    writer = Writer({1: 40, 4: 41})
    found = free_run(writer, [1, 3], ANSWER, predicted(0, 0.5, 0.5, 0, 1e-7, 0))
    assert [(s.at, s.true, s.found, s.margin) for s in found.splits] == [(1, 6, 40, 2.0), (4, 9, 41, 5.0)]
    assert writer.asked == [([1, 3], 6), ([1, 3, 5, 6], 4), ([1, 3, 5, 6, 7, 8, 9], 1)]
    assert 4 in [s.at for s in found.unexplained] and of_flips(found, Precision("f32", {})) == Verdict.BUG


def test_an_answer_that_ends_too_early_or_at_the_last_token_is_a_difference() -> None:
    assert [(s.at, s.found) for s in free_run(Writer({3: None}), [1, 3], ANSWER, predicted()).splits] == [(3, None)]
    assert [(s.at, s.found) for s in free_run(Writer({5: 77}), [1, 3], ANSWER, predicted()).splits] == [(5, 77)]


@pytest.mark.parametrize("count", [0, 3])
def test_as_many_as_predicted(count: int) -> None:
    found = free_run(Writer(dict.fromkeys(range(count), 99)), [1, 3], ANSWER, predicted(*[0.5] * 6))
    assert found.observed == count and found.expected == 3 and found.p_value == pytest.approx({0: 1 / 32, 3: 1}[count])


def test_margins_that_moved_too_far_are_a_bug_though_every_token_is_right() -> None:
    """Of a token that was another one there is no margin to compare."""
    near, far = (free_run(Writer({2: 40}, off), [1, 3], ANSWER, predicted(0, 0, 0.5, 0, 0, 0)) for off in (0.5, 45.0))
    assert near.noise == 0.5 and of_flips(near, Precision("f32", {})) == Verdict.NOISE
    assert far.noise == 45.0 and of_flips(far, Precision("f32", {})) == Verdict.BUG
    silent = free_run(lambda ids, n: (ANSWER[-n:], []), [1, 3], ANSWER, predicted())
    assert np.isnan(silent.noise) and of_flips(silent, Precision("f32", {})) == Verdict.NOISE


def test_going_on_after_an_end_token_is_a_bug() -> None:
    """The budget is one token more than the truth wrote, or nobody would see it."""
    asked = []

    def write(ids: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        asked.append(n)
        return [*ANSWER, 40][:n], []

    found = free_run(write, [1, 3], ANSWER, predicted(), ends={2}, past=1)
    assert asked == [7] and found.observed == 0 and found.wrong == ("writes on after an end token",)
    assert of_flips(found, Precision("f32", {})) == Verdict.BUG
    stops = free_run(lambda ids, n: (ANSWER, []), [1, 3], ANSWER, predicted(), ends={2}, past=1)
    assert stops.wrong == () and of_flips(stops, Precision("f32", {})) == Verdict.NOISE


@pytest.mark.parametrize(("text", "wrong"), [
    ("abc", ()), ("ab c", ("shows 'ab c', its tokens say 'abc'",)), (None, ()),
])  # fmt: skip
def test_the_text_is_that_of_its_tokens(text: str | None, wrong: tuple[str, ...]) -> None:
    letters = {5: "a", 6: "b", 7: "c", 8: "", 9: ""}
    found = free_run(lambda ids, n: Written(ANSWER, [], text), [1, 3], ANSWER, predicted(), ends={2},
                     decode=lambda ids: "".join(letters[token] for token in ids))  # fmt: skip
    assert found.wrong == wrong and (of_flips(found, Precision("f32", {})) == Verdict.BUG) == bool(wrong)


def test_the_judge_gives_a_candidate_room_to_go_on(judged: UnderTest) -> None:
    """A text after which the truth ends at once."""
    text = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n"
    ids = judged.sample(text, None, False)
    (end,) = judged.baseline.answer(ids, 8)
    assert end in judged.file.vocabulary.end_ids
    found = judge_free_run(judged, ids, 8, 2, quiet, lambda ids, n: ([end, 198, 198][:n], []))
    assert found is not None and found.observed == 0 and found.wrong == ("writes on after an end token",)
    shown = judge_free_run(judged, ids, 8, 2, quiet, lambda ids, n: ([end], [], "<|endoftext|>"))
    assert shown is not None and len(shown.wrong) == 1 and "its tokens say ''" in shown.wrong[0]
