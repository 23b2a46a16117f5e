"""Generation on the device (twin of ``reference/generate.py``).

Multi-step decode: the device chooses a token and reads it, again and again, and the host is handed the
tokens of several steps and a few numbers about each, never logits. How a text is cut into such runs changes
nothing in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from itertools import takewhile

import jax
import numpy as np

from assay.accel.attention import KVCache
from assay.accel.model import Model, not_finite
from assay.accel.sampler import SampledToken, Settings, settings_of
from assay.accel.steps import MOST_STEPS
from assay.formats import InputError
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Generation, Prompt, Sampling, Step, Timings, TopCount

STREAM_INTERVAL = 0.1
"""Seconds: about how often a stream hands out text."""
MAX_SEQUENCES = 16


@checked
def generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int | None = None,
             sampling: Sampling | None = None, stop: str | Sequence[str] = (), logprobs: TopCount = 0,
             cache: KVCache | None = None) -> Generation:  # fmt: skip
    """Generate and return everything at once; arguments and errors as in :func:`stream_generate`."""
    result = Generation(text_of(prompt), encode(model, prompt), timings=Timings(open_s=model.open_s))
    steps = stream_generate(model, result.prompt_ids, max_tokens=max_tokens, sampling=sampling, stop=stop,
                            logprobs=logprobs, cache=cache, timings=result.timings, interval=math.inf)  # fmt: skip
    for step in steps:
        result.add(step)
    return result


def text_of(prompt: str | Prompt | Sequence[int]) -> str | None:
    """The text of a prompt; None if it was given as ids."""
    return prompt.text if isinstance(prompt, Prompt) else prompt if isinstance(prompt, str) else None


def encode(model: Model, prompt: str | Prompt | Sequence[int]) -> list[int]:
    """Token ids of a prompt; ids are taken as they are."""
    if isinstance(prompt, str | Prompt):
        model.file.check_text(prompt)
        return model.tokenizer.encode(prompt)
    return list(prompt)


@checked
def stream_generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int | None = None,
                    sampling: Sampling | None = None, stop: str | Sequence[str] = (), logprobs: TopCount = 0,
                    cache: KVCache | None = None, timings: Timings | None = None,
                    interval: float = STREAM_INTERVAL) -> Generator[Step]:  # fmt: skip
    """Generate up to ``max_tokens`` tokens after ``prompt`` (text, or ids), yielding each as it is chosen.

    Ends at any end token of the file, or when the text contains ``stop`` or one of them (which is cut off), or at
    ``max_tokens`` (None: 128, or what is left of the context if that is less). ``cache`` may hold an earlier
    conversation: the part of the prompt it already holds is not read again. Tokens come in runs of about ``interval``
    seconds. Raises InputError for a prompt that does not fit the context together with ``max_tokens``, NumericError
    for a logit that is not a number.
    """
    ids = encode(model, prompt)
    max_tokens = model.file.room_after(ids, max_tokens)
    timings, settings = timings or Timings(), settings_of(sampling or Sampling())
    cache = model.new_cache() if cache is None else cache
    writer = Writer(model, stop, max_tokens)
    if max_tokens < 1:
        return
    clock = Clock(model, timings)
    first, seen = read_prompt(model, ids, cache, settings, logprobs, clock)
    yield writer.step(first)
    while not writer.finish_reason:
        n_steps = clock.steps_wanted(interval, max_tokens - writer.n_written)
        steps, _, seen = model.decode_steps([writer.last], cache, seen, settings, writer.n_written, n_steps,
                                            np.zeros(1, bool), logprobs)  # fmt: skip
        for step in steps:
            if writer.finish_reason:  # a stop text in the middle of a run: what was read after it is not kept
                break
            cache.ids.append(writer.last)
            clock.decoded()
            yield writer.step(jax.tree.map(lambda a: a[0], step))


@checked
def generate_batch(model: Model, prompts: Sequence[str | Prompt | Sequence[int]], *, max_tokens: int | None = None,
                   sampling: Sampling | None = None, stop: str | Sequence[str] = (),
                   logprobs: TopCount = 0) -> list[Generation]:  # fmt: skip
    """Generate for 1 to 16 prompts side by side; arguments and errors as in :func:`stream_generate`.

    Prompts are read one after the other, answers are decoded together: every step reads the weights once, and computes
    each answer by the same products as it would alone. All results carry the batch's clock: tokens a second in all are
    Σ decode_tokens / decode_s.
    """
    if not 1 <= len(prompts) <= MAX_SEQUENCES:
        raise InputError(f"{len(prompts)} prompts cannot be answered at once", where="batch",
                         remedy=f"Give 1 to {MAX_SEQUENCES}")
    settings, results, writers = settings_of(sampling or Sampling()), [], []
    for prompt in prompts:
        result = Generation(text_of(prompt), encode(model, prompt), timings=Timings(open_s=model.open_s))
        results.append(result)
        writers.append(Writer(model, stop, model.file.room_after(result.prompt_ids, max_tokens)))
    if max_tokens == 0:
        return results
    caches = [model.new_cache() for _ in prompts]
    clock, seens = Clock(model, Timings()), []
    for result, writer, cache in zip(results, writers, caches, strict=True):
        first, seen = read_prompt(model, result.prompt_ids, cache, settings, logprobs, clock)
        result.add(writer.step(first))
        seens.append(seen)
    cache, seen = model.join(caches, seens)
    while not all(writer.finish_reason for writer in writers):
        going_on = [writer for writer in writers if not writer.finish_reason]
        n_written = max(writer.n_written for writer in going_on)
        n_left = min(writer.max_tokens - writer.n_written for writer in going_on)
        ended = np.array([writer.finish_reason is not None for writer in writers])
        n_steps = clock.steps_wanted(math.inf, n_left)
        last = [writer.last for writer in writers]
        steps, _, seen = model.decode_steps(last, cache, seen, settings, n_written, n_steps, ended, logprobs)
        for step in steps:
            clock.decoded()
            for i, (result, writer) in enumerate(zip(results, writers, strict=True)):
                cache.sequences[i].append(writer.last)
                if not writer.finish_reason:
                    result.add(writer.step(jax.tree.map(lambda a, i=i: a[i], step)))
                    result.timings.decode_tokens += 1
    for result in results:
        total = clock.timings
        result.timings.prefill_tokens, result.timings.prefill_s = len(result.prompt_ids), total.prefill_s
        result.timings.compile_s, result.timings.decode_s = total.compile_s, total.decode_s
    return results


def read_prompt(model: Model, ids: list[int], cache: KVCache, settings: Settings, logprobs: int,
                clock: Clock) -> tuple[SampledToken, jax.Array]:  # fmt: skip
    """Read what the cache does not hold of a prompt; the first choice, on the host, and what was ``seen``."""
    model.recover(cache)
    known = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(cache.ids, ids[:-1], strict=False))))
    cache.truncate(known)
    choice, _, seen = model.read(ids[known:], cache, model.new_seen(ids), settings, logprobs)
    clock.prefilled(len(ids) - known)
    return choice, seen


class Clock:
    """Books the time since it was last asked, less that spent compiling; and knows how fast a token is."""

    def __init__(self, model: Model, timings: Timings) -> None:
        self.programs, self.timings = model.programs, timings
        self._at, self._compiled = time.perf_counter(), model.programs.compile_s

    def _lap(self) -> float:
        now, compiled = time.perf_counter(), self.programs.compile_s
        took, compiling = now - self._at, compiled - self._compiled
        self._at, self._compiled = now, compiled
        self.timings.compile_s += compiling
        return took - compiling

    def prefilled(self, n_tokens: int) -> None:
        """A prompt was read."""
        self.timings.prefill_s += self._lap()
        self.timings.prefill_tokens = n_tokens

    def decoded(self) -> None:
        """One more token was decoded (the first of a run takes the time of all)."""
        self.timings.decode_s += self._lap()
        self.timings.decode_tokens += 1

    def steps_wanted(self, interval: float, n_left: int) -> int:
        """How many tokens to decode before the host looks again, at most ``n_left``."""
        self._lap()  # the time between runs is the caller's
        speed = self.timings.decode_tokens / self.timings.decode_s if self.timings.decode_s else 0.0
        wanted = MOST_STEPS if interval == math.inf else int(min(MOST_STEPS, interval * speed))
        return max(1, min(wanted, n_left))


class Writer:
    """Turns tokens into text that may be shown, holding back what a stop text could still swallow.

    ``pending`` is text not handed out yet. At most ``longest stop text - 1`` characters stay behind, so a stop
    text is always found whole in ``pending``.
    """

    def __init__(self, model: Model, stop: str | Sequence[str], max_tokens: int) -> None:
        self.vocabulary = model.file.vocabulary
        self.max_tokens = max_tokens
        self.n_written = 0
        self.last = -1
        self.decoder = model.tokenizer.stream()
        self.stop = [s for s in ([stop] if isinstance(stop, str) else stop) if s]
        self.pending = ""
        self.finish_reason: str | None = None
        self.stopped_by: str | None = None

    def step(self, choice: SampledToken) -> Step:
        """Take one choice, in NumPy scalars; the step to hand out. NumericError if the logits were not numbers."""
        if not choice.finite:
            raise not_finite()
        self.last, self.n_written = int(choice.token), self.n_written + 1
        self.write(self.last, self.last in self.vocabulary.end_ids, final=self.n_written == self.max_tokens)
        return Step(
            id=self.last,
            text=self.take(),
            margin=float(choice.margin),
            logprob=float(choice.logprob),
            top_logprobs=tuple(zip(choice.top_ids.tolist(), choice.top_logprobs.tolist(), strict=True)),
            finish_reason=self.finish_reason,
            stopped_by=self.stopped_by,
        )

    def write(self, token: int, is_end: bool, *, final: bool) -> None:
        """Take one token; sets ``finish_reason`` when the answer is complete."""
        if not is_end:
            self.pending += self.decoder.push(token)
        if is_end or final:
            self.pending += self.decoder.flush()
        places = {self.pending.index(s): s for s in sorted(self.stop, reverse=True) if s in self.pending}
        if places:
            first = min(places)
            self.pending, self.stopped_by = self.pending[:first], places[first]
        elif is_end:
            self.stopped_by = self.vocabulary.tokens[token]
        if self.stopped_by is not None:
            self.finish_reason = "stop"
        elif final:
            self.finish_reason = "length"

    def take(self) -> str:
        """The text that is certain now."""
        keep = 0
        if self.finish_reason is None:
            keep = max((k for s in self.stop for k in range(1, len(s)) if self.pending.endswith(s[:k])), default=0)
        cut = len(self.pending) - keep
        ready, self.pending = self.pending[:cut], self.pending[cut:]
        return ready
