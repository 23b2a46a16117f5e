"""Generation on the device: multi-step decode, batches, and what the cache holds afterwards."""

from __future__ import annotations

import math

import pytest

from assay import accel
from assay.accel.generate import MAX_SEQUENCES
from assay.accel.model import Model
from assay.formats import InputError
from assay.formats.contract.engine import Sampling

greedy_and_drawn = pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, seed=7, repeat_penalty=1.3)], ids=["greedy", "drawn"]
)
PROMPTS = ["def fib(n):", "x", "class A:\n    pass", "import os"]


@pytest.fixture(scope="module")
def fast(builtin_fast: Model) -> Model:
    return builtin_fast


@greedy_and_drawn
def test_how_a_text_is_cut_into_runs_changes_nothing(fast: Model, sampling: Sampling) -> None:
    def run(interval: float) -> list[tuple[int, float]]:
        steps = accel.stream_generate(fast, "class Stack:", max_tokens=40, sampling=sampling, interval=interval)
        return [(step.id, step.margin) for step in steps]

    whole = run(math.inf)
    assert len(whole) == 40 and run(0) == whole
    answer = accel.generate(fast, "class Stack:", max_tokens=40, sampling=sampling)
    assert list(zip(answer.ids, answer.margins, strict=True)) == whole
    assert (answer.timings.prefill_tokens, answer.timings.decode_tokens) == (len(answer.prompt_ids), 39)


def test_the_cache_holds_what_was_handed_out(fast: Model) -> None:
    """Multi-step decode runs ahead of a stop text, and of a reader who goes away."""
    text = accel.generate(fast, "def fib(n):", max_tokens=12).text
    cache = fast.new_cache()
    answer = accel.generate(fast, "def fib(n):", max_tokens=40, stop=[text[-3:]], cache=cache)
    assert answer.finish_reason == "stop"
    assert cache.ids == [*answer.prompt_ids, *answer.ids[:-1]]
    cache = fast.new_cache()
    stream = accel.stream_generate(fast, "def fib(n):", max_tokens=40, cache=cache, interval=math.inf)
    read = [next(stream).id for _ in range(5)]
    stream.close()
    assert cache.ids == [*answer.prompt_ids, *read[:-1]]
    again = accel.generate(fast, [*answer.prompt_ids, *read], max_tokens=7, cache=cache)
    assert again.timings.prefill_tokens == 1
    assert [*read, *again.ids] == accel.generate(fast, "def fib(n):", max_tokens=12).ids


@greedy_and_drawn
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow), 4])  # each size has programs of its own
def test_a_batch_answers_as_each_prompt_alone(fast: Model, n: int, sampling: Sampling) -> None:
    """The products are the same integers; the margins of the built-in model (0.01 and more) are far above the rest."""
    together = accel.generate_batch(fast, PROMPTS[:n], max_tokens=20, sampling=sampling)
    for prompt, answer in zip(PROMPTS, together, strict=False):
        alone = accel.generate(fast, prompt, max_tokens=20, sampling=sampling)
        assert (answer.prompt, answer.ids, answer.text) == (prompt, alone.ids, alone.text)
        assert answer.finish_reason == alone.finish_reason
    assert len({answer.timings.decode_s for answer in together}) == 1


def test_a_batch_goes_on_when_one_has_ended(fast: Model) -> None:
    whole = [accel.generate(fast, prompt, max_tokens=20) for prompt in PROMPTS]
    stop = whole[1].text[:2]
    together = accel.generate_batch(fast, PROMPTS, max_tokens=20, stop=[stop])
    alone = [accel.generate(fast, prompt, max_tokens=20, stop=[stop]) for prompt in PROMPTS]
    assert [(a.ids, a.stopped_by) for a in together] == [(a.ids, a.stopped_by) for a in alone]
    assert len({len(a.ids) for a in together}) > 1


def test_batches_of_no_or_too_many_prompts_are_refused(fast: Model) -> None:
    for n in (0, MAX_SEQUENCES + 1):
        with pytest.raises(InputError, match="batch"):
            accel.generate_batch(fast, ["x"] * n)
    with pytest.raises(InputError):
        accel.generate_batch(fast, ["x", ""])
