"""The words that engines, judge and command line have in common: a prompt, sampling settings, a generated step.

Records only. Everything that *computes* lives in an engine, so that no two engines share code that could be
wrong in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from assay.formats.contract.arguments import AtLeast, check_fields
from assay.formats.errors import InputError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
Tap = Callable[[str, int | None, Any], Any]
"""``tap(stage, layer, activation) -> activation``: shown each named activation, returns the one to go on with.

``stage`` is a name of :data:`assay.formats.contract.config.STAGES`, ``layer`` its layer or None for whole-model stages,
``activation`` an f32 or f64 array whose first axis is the token position. Returning it unchanged and keeping a
copy is *capture*; returning another engine's is *transplant*; a rounded one is *noise*; a spoiled one is a
*planted fault*."""
TopCount = Annotated[int, AtLeast(0)]
"""How many of the likeliest tokens of each step are wanted; more than there are is all of them."""


def identity(stage: str, layer: Any, activation: T) -> T:
    """The tap that changes nothing."""
    return activation


@dataclass(frozen=True)
class Prompt:
    """Text to be encoded, and which parts of it came from a user rather than from a template.

    ``literal`` holds ascending, disjoint character ranges ``(start, stop)`` of ``text`` in which the spelling
    of a control token (``<|im_end|>``) is plain text: content never becomes a control id.
    """

    text: str
    literal: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        ends = [0, *(end for pair in self.literal for end in pair)]
        if any(a > b for a, b in pairwise(ends)):
            raise InputError("the ranges are not ascending and disjoint", where="literal of Prompt",
                             remedy="Give (start, stop) in characters")  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits. ``temperature`` 0 is greedy and ignores the filters.

    Applied in this order: repeat penalty (every id seen so far, prompt included: positive logits are divided
    by it, negative ones multiplied), temperature, top-k, top-p (on the renormalised survivors), min-p
    (relative to the most likely survivor), then one draw. The draw for the t-th generated token is the
    inverse of the cumulative distribution, in id order, at the uniform number Threefry-2x32(seed, t).

    What a seed promises: the same uniform numbers on every engine; and the same ids from the same prompt, read in
    the same way (a chat's cache holds what was decoded), on one engine, arithmetic, machine and version. Elsewhere
    logits differ by rounding, and a uniform number next to an edge of the distribution can fall to its other side.
    """

    temperature: float = 0.0
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        rules = {  # within them no logit that a model computes overflows in f32
            "temperature": (self.temperature == 0 or 1e-6 <= self.temperature <= 1e6, "0, or 1e-6 to 1e6"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (1e-6 <= self.top_p <= 1, "1e-6 to 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repeat_penalty": (1e-6 <= self.repeat_penalty <= 1e6, "1e-6 to 1e6"),
            "seed": (0 <= self.seed < 1 << 64, "0 to 2^64 - 1"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise InputError(f"{name} = {getattr(self, name)} is out of range", where="sampling",
                                 remedy=f"Give {allowed}")  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One generated token, as a stream yields it."""

    id: int
    text: str
    """Text that became certain with this token: may be empty (half a UTF-8 character, a possible stop text)."""
    margin: float
    """Top-1 minus top-2 of the raw logits, before any sampling setting is applied."""
    logprob: float
    """Natural log of the raw probability of ``id`` (temperature 1, no filter)."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(id, logprob) of the K most likely tokens, best first, when asked for."""
    finish_reason: str | None = None
    """None while going on; ``"stop"`` (end token or stop text) or ``"length"`` on the last step."""
    stopped_by: str | None = None
    """The end token or the stop text that fired."""


@dataclass
class Timings:
    """Where the time went, in seconds; what ``generate`` fills in as it goes."""

    open_s: float = 0.0
    """Opening the file, building the tokenizer, and (accel) packing the weights onto the device."""
    compile_s: float = 0.0
    """Compiling, where an engine compiles: kept out of the two below."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    """Prompt tokens read, less those that a cache already held."""
    decode_tokens: int = 0
    """Tokens read one by one after the prompt: one fewer than generated, the first comes with the prompt."""

    def as_dict(self) -> dict[str, float | None]:
        """Seconds, and tokens a second (None where nothing was timed)."""
        return {
            "open_s": self.open_s,
            "compile_s": self.compile_s,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "prefill_tok_s": self.prefill_tokens / self.prefill_s if self.prefill_s else None,
            "decode_tok_s": self.decode_tokens / self.decode_s if self.decode_s else None,
        }


@dataclass
class Generation:
    """A whole generated answer. ``ids`` includes the end token if one fired; ``text`` never shows it."""

    prompt: str | None
    """The rendered prompt, None if ids were given."""
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"
    stopped_by: str | None = None
    margins: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)

    def add(self, step: Step) -> None:
        """Append one step of a stream."""
        self.ids.append(step.id)
        self.text += step.text
        self.margins.append(step.margin)
        self.logprobs.append(step.logprob)
        self.top_logprobs.append(step.top_logprobs)
        self.finish_reason = step.finish_reason or self.finish_reason
        self.stopped_by = step.stopped_by


class Tokenizer(Protocol):
    """Text to ids and back; one in each engine."""

    def encode(self, prompt: Prompt | str, *, special: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, special: bool = True) -> str: ...


class Engine(Protocol):
    """Anything that can be put before the judge."""

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits [n_tokens, n_vocab] of every position of one sequence that starts at position 0."""
        ...

    def prefill(self, ids: Sequence[int], cache: Any = None, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        """Append ``ids`` to the cache (a new one if None); logits [n_vocab] of the last, and the cache.

        A ``tap`` is shown what the program that generates computes, piece by piece where that reads in pieces: of each,
        the stages from ``embedding`` to ``logits`` with a row for each of its tokens, of ``logits`` one for the last.
        """
        ...

    def decode(self, token: int, cache: Any, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        """Append one id; logits [n_vocab], and the cache, which replaces the one given. ``tap`` as in ``prefill``."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Arithmetic, dtype, device and versions: everything that could make two runs differ. JSON.

        ``boundaries``, where there are any, are the lengths in tokens at which the engine takes another way:
        ``one_by_one`` and ``few`` (up to so many are read like single ones), ``chunk`` (a list: a prompt is read in
        pieces of so many), ``attention_block`` and ``cache`` (lists: positions looked at together, sizes that it grows
        to), ``steps`` (tokens decoded before the host looks).
        """
        ...
