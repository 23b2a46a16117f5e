"""Generation on the device (twin of ``reference/generate.py``).

A step stays on the device: logits are never fetched, only the chosen token and a few numbers about it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import takewhile

import jax.numpy as jnp
import numpy as np

from accel.attention import KVCache
from accel.model import Model, not_finite
from accel.sampler import Choice, settings_of
from formats.protocol import Generation, Prompt, Sampling, Step, Timings


def generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int = 128,
             sampling: Sampling | None = None, stop: Sequence[str] = (), logprobs: int = 0,
             cache: KVCache | None = None) -> Generation:  # fmt: skip
    """Generate and return everything at once; arguments and errors as in :func:`stream_generate`."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt if isinstance(prompt, str) else None
    result = Generation(text, encode(model, prompt), timings=Timings(open_s=model.open_s))
    steps = stream_generate(model, result.prompt_ids, max_tokens=max_tokens, sampling=sampling, stop=stop,
                            logprobs=logprobs, cache=cache, timings=result.timings)  # fmt: skip
    for step in steps:
        result.add(step)
    return result


def encode(model: Model, prompt: str | Prompt | Sequence[int]) -> list[int]:
    """Token ids of a prompt; ids are taken as they are."""
    if isinstance(prompt, str | Prompt):
        return model.tokenizer.encode(prompt)
    return [int(i) for i in prompt]


def stream_generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int = 128,
                    sampling: Sampling | None = None, stop: Sequence[str] = (), logprobs: int = 0,
                    cache: KVCache | None = None, timings: Timings | None = None) -> Iterator[Step]:  # fmt: skip
    """Generate up to ``max_tokens`` tokens after ``prompt`` (text, or ids), yielding each as it is chosen.

    Ends at any end token of the file, or when the text contains one of ``stop`` (which is cut off), or at
    ``max_tokens``. ``cache`` may hold an earlier conversation: the part of the prompt it already holds is not
    read again. Raises InputError for a prompt that does not fit the context together with ``max_tokens``,
    NumericError for a logit that is no number.
    """
    ids = encode(model, prompt)
    model.file.check_ids(ids, max_tokens=max_tokens)
    timings = timings or Timings()
    settings = settings_of(sampling or Sampling())
    cache = model.new_cache() if cache is None else cache
    vocabulary, writer = model.file.vocabulary, Writer(model, stop)
    seen = jnp.zeros(model.file.config.n_vocab, bool).at[jnp.asarray(ids)].set(True)

    cache.recover()
    known = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(cache.ids, ids[:-1], strict=False))))
    cache.truncate(known)
    unread, timings.prefill_tokens = ids[known:], len(ids) - known
    for counter in range(max_tokens):
        started, compiled = time.perf_counter(), model.compile_s
        choice = model.choose(model.read(unread, cache), seen, settings, counter, logprobs)
        token = int(choice.token)
        seen = choice.seen
        compiling = model.compile_s - compiled
        took = time.perf_counter() - started - compiling
        timings.compile_s += compiling
        if counter == 0:
            timings.prefill_s += took
        else:
            timings.decode_s, timings.decode_tokens = timings.decode_s + took, timings.decode_tokens + 1
        writer.write(token, token in vocabulary.end_ids, final=counter == max_tokens - 1)
        yield report(choice, writer)
        if writer.finish_reason:
            return
        unread = [token]


def report(choice: Choice, writer: Writer) -> Step:
    """The step in numbers on the host; NumericError if the logits were no numbers."""
    if not bool(choice.finite):
        raise not_finite()
    tops = zip(np.asarray(choice.top_ids).tolist(), np.asarray(choice.top_logprobs).tolist(), strict=True)
    return Step(
        id=int(choice.token),
        text=writer.take(),
        margin=float(choice.margin),
        logprob=float(choice.logprob),
        top_logprobs=tuple(tops),
        finish_reason=writer.finish_reason,
        stopped_by=writer.stopped_by,
    )


class Writer:
    """Turns tokens into text that may be shown, holding back what a stop text could still swallow.

    ``pending`` is text not handed out yet. At most ``longest stop text - 1`` characters stay behind, so a stop
    text is always found whole in ``pending``.
    """

    def __init__(self, model: Model, stop: Sequence[str]) -> None:
        self.vocabulary = model.file.vocabulary
        self.decoder = model.tokenizer.stream()
        self.stop = [s for s in stop if s]
        self.pending = ""
        self.finish_reason: str | None = None
        self.stopped_by: str | None = None

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
