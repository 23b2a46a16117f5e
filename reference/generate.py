"""Generation: read the prompt, choose a token, read it, choose the next, until something says stop.

The oracle's side of the one ``generate`` that command line, tests and judge call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Generation, Prompt, Sampling, Step, Timings, TopCount
from assay.reference.attention import KVCache
from assay.reference.model import Model
from assay.reference.sampler import sample


@checked
def stream_generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int | None = None,
                    sampling: Sampling | None = None, stop: str | Sequence[str] = (), logprobs: TopCount = 0,
                    cache: KVCache | None = None, timings: Timings | None = None) -> Iterator[Step]:  # fmt: skip
    """Generate up to ``max_tokens`` tokens after ``prompt`` (text, or ids), yielding each as it is chosen.

    Ends at any end token of the file, or when the text contains ``stop`` or one of them (which is cut off), or at
    ``max_tokens`` (None: 128, or what is left of the context if that is less). ``cache`` may hold an earlier
    conversation: the part of the prompt it already holds is not read again. Raises InputError for a prompt that does
    not fit the context together with ``max_tokens``, NumericError for a logit that is not a number.
    """
    sampling, timings = sampling or Sampling(), timings or Timings()
    ids = prompt_ids(model, prompt)
    max_tokens = model.file.room_after(ids, max_tokens)
    cache = model.new_cache() if cache is None else cache
    ends, n_vocab = model.file.vocabulary.end_ids, len(model.file.vocabulary)
    answer = Answer(model, stop)

    logits = read_prompt(model, ids, cache, timings)
    for t in range(max_tokens):
        started = time.perf_counter()
        logits = logits[:n_vocab]  # rows beyond the vocabulary are padding and mean nothing
        token = sample(logits, sampling, set(ids), t)
        ids.append(token)
        step = describe(logits, token, logprobs, *answer.add(token, token in ends, last=t == max_tokens - 1))
        timings.decode_s += time.perf_counter() - started
        yield step
        if step.finish_reason:
            return
        logits = read_token(model, token, cache, timings)


def read_prompt(model: Model, ids: Sequence[int], cache: KVCache, timings: Timings) -> np.ndarray:
    """Read of ``ids`` what ``cache`` does not hold yet: logits [n_vocab] after the last of them."""
    started = time.perf_counter()
    cache.truncate(shared_prefix(cache.ids, ids[:-1]))  # at least one token must be read to get logits
    timings.prefill_tokens = len(ids) - len(cache.ids)
    logits, _ = model.prefill(ids[len(cache.ids) :], cache)
    timings.prefill_s = time.perf_counter() - started
    return logits


def read_token(model: Model, token: int, cache: KVCache, timings: Timings) -> np.ndarray:
    """Read a token that was chosen: logits [n_vocab] after it."""
    started = time.perf_counter()
    logits, _ = model.decode(token, cache)
    timings.decode_tokens += 1
    timings.decode_s += time.perf_counter() - started
    return logits


@checked
def generate(model: Model, prompt: str | Prompt | Sequence[int], *, max_tokens: int | None = None,
             sampling: Sampling | None = None, stop: str | Sequence[str] = (), logprobs: TopCount = 0,
             cache: KVCache | None = None) -> Generation:  # fmt: skip
    """Generate and return everything at once; arguments and errors as in :func:`stream_generate`."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt if isinstance(prompt, str) else None
    ids = prompt_ids(model, prompt)
    result = Generation(text, ids, timings=Timings(open_s=model.open_s))
    for step in stream_generate(model, ids, max_tokens=max_tokens, sampling=sampling, stop=stop,
                                logprobs=logprobs, cache=cache, timings=result.timings):  # fmt: skip
        result.add(step)
    return result


def prompt_ids(model: Model, prompt: str | Prompt | Sequence[int]) -> list[int]:
    """Token ids of a prompt; ids are taken as they are."""
    if isinstance(prompt, str | Prompt):
        model.file.check_text(prompt)
        return model.tokenizer.encode(prompt)
    return list(prompt)


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids that ``a`` and ``b`` have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def describe(logits: np.ndarray, token: int, top: int, text: str, reason: str | None,
             stopped_by: str | None) -> Step:  # fmt: skip
    """The step that chose ``token`` from raw ``logits`` [n_vocab]: margin, log-probabilities, new text."""
    exact = logits.astype(np.float64)
    log_total = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    ranked = np.argsort(-exact, kind="stable")[: max(top, 2)]
    return Step(
        id=token,
        text=text,
        margin=float(exact[ranked[0]] - exact[ranked[1]]),
        logprob=float(exact[token] - log_total),
        top_logprobs=tuple((int(i), float(exact[i] - log_total)) for i in ranked[:top]),
        finish_reason=reason,
        stopped_by=stopped_by,
    )


class Answer:
    """The text of an answer as it grows, and whether it has come to its end.

    Some text must wait before it may be shown: an incomplete UTF-8 character, and an ending that may turn out
    to be the beginning of a stop text.
    """

    def __init__(self, model: Model, stop: str | Sequence[str]) -> None:
        self.vocabulary = model.file.vocabulary
        self.characters = model.tokenizer.stream()
        self.stop = [s for s in ([stop] if isinstance(stop, str) else stop) if s]
        self.text, self.shown = "", 0

    def add(self, token: int, is_end: bool, last: bool) -> tuple[str, str | None, str | None]:
        """Take one token; returns the text that became certain, the finish reason, and what stopped it."""
        if not is_end:
            self.text += self.characters.push(token)
        if is_end or last:
            self.text += self.characters.flush()
        stopped_by = self.vocabulary.tokens[token] if is_end else None
        if found := [(self.text.find(s), s) for s in self.stop if s in self.text]:
            at, stopped_by = min(found)
            self.text = self.text[:at]
        reason = "stop" if stopped_by is not None else "length" if last else None
        certain = len(self.text) - (0 if reason else self.undecided())
        new, self.shown = self.text[self.shown : certain], max(self.shown, certain)
        return new, reason, stopped_by

    def undecided(self) -> int:
        """Length of the longest ending of the text that is the beginning of some stop text."""
        return max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
