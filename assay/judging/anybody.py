"""Somebody's engine, as the judge can use it: what it lacks is named, what it does wrong is an error with a site.

An engine is an object with some of ``contract.engine.Engine``'s functions: ``forward`` or ``prefill`` at least. What it
returns is held against what was asked for, what it raises comes out as an InputError that says where, and what it does
not have is a part of the judgement that is skipped by name, never a crash.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from assay.formats import AssayError, InputError, ModelFile, NumericError, SampleError
from assay.formats.contract.config import STAGES, WHOLE_MODEL_STAGES
from assay.formats.contract.engine import Prompt, Tap, identity
from assay.parity.precision import Key
from assay.parity.sample import check_shapes, place

REMEDY = "See docs/adapters.md for what an engine offers"


class Anybody:
    """An engine that may be anybody's, in front of the judge (``contract.engine.Engine``)."""

    def __init__(self, engine: Any, file: ModelFile) -> None:
        """Raises InputError for an object that cannot read ids at all."""
        self.engine = engine
        self.file = engine.file if hasattr(getattr(engine, "file", None), "sha256") else file
        self.name = type(engine).__name__
        self.has = {name for name in ("forward", "prefill", "decode") if callable(getattr(engine, name, None))}
        self.taps = "forward" in self.has and takes(engine.forward, "tap")
        encodes = callable(getattr(getattr(engine, "tokenizer", None), "encode", None))
        self.tokenizer = Encoder(self) if encodes else None
        self.last: Key | None = None
        if not self.has & {"forward", "prefill"}:
            raise InputError(f"a {self.name} has neither forward nor prefill", where="engine", remedy=REMEDY)

    @property
    def decodes(self) -> bool:
        """Whether it can go on from a cache."""
        return "prefill" in self.has and ("decode" in self.has or takes(self.engine.prefill, "cache"))

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        """Logits [n_tokens, n_vocab] of every position; by ``prefill`` of every beginning where there is no forward.

        Raises InputError for what the engine raises, SampleError for another shape, NumericError for no numbers.
        """
        if tap is not None and not self.taps:
            raise InputError(f"forward of {self.name} takes no tap", where="engine", remedy=REMEDY)
        if "forward" not in self.has:
            return np.stack([self.prefill(ids[: n + 1])[0] for n in range(len(ids))])
        if tap is None:
            options = {"tap": identity} if self.taps and demands(self.engine.forward, "tap") else {}
            return self._logits(self._call("forward", list(ids), **options), len(ids))
        self.last, shown = None, set[Key]()

        def guarded(stage: Any, layer: Any, activation: Any) -> Any:
            key = self._key(stage, layer)
            found = self._numbers(activation, place(*key))
            shown.add(key)
            self.last = key
            return np.asarray(tap(*key, found)).reshape(found.shape)

        logits = self._logits(self._call("forward", list(ids), tap=guarded), len(ids), finite=False)
        if ("logits", None) not in shown:  # they are its result, whether or not it shows them
            logits = np.asarray(tap("logits", None, logits))
        return demand_finite(logits, self.name)

    def prefill(self, ids: Sequence[int], cache: Any = None) -> tuple[np.ndarray, Any]:
        """Logits [n_vocab] after ``ids``, and the cache; a single token after a cache is decoded. Raises as forward.

        Where there is no prefill all is read anew, and the cache is what was read (``decodes`` says so).
        """
        if "prefill" not in self.has:
            read = [*(cache or []), *ids]
            return self.forward(read)[-1], read
        if cache is not None and len(ids) == 1 and "decode" in self.has:
            return self.decode(ids[0], cache)
        options = {} if cache is None else {"cache": cache}
        return self._step(self._call("prefill", list(ids), **options), "prefill")

    def decode(self, token: int, cache: Any) -> tuple[np.ndarray, Any]:
        """As ``prefill`` of one token."""
        if not {"prefill", "decode"} <= self.has:
            return self.prefill([token], cache)
        return self._step(self._call("decode", int(token), cache), "decode")

    def generate(self, ids: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        """At most ``n`` greedy tokens after ``ids``, up to the first end token, and their margins: prefill, decode."""
        answer: list[int] = []
        margins: list[float] = []
        logits, cache = self.prefill(ids)
        while True:
            known = np.asarray(logits[: len(self.file.vocabulary)], np.float64)
            second, first = np.partition(known, -2)[-2:]
            answer.append(int(known.argmax()))
            margins.append(float(first - second))
            if len(answer) == n or answer[-1] in self.file.vocabulary.end_ids:
                return answer, margins
            logits, cache = self.decode(answer[-1], cache)

    def chat_prompt(self, messages: Any, **options: Any) -> Prompt:
        """The conversation as the engine renders it. Raises InputError where it does not."""
        if not callable(getattr(self.engine, "chat_prompt", None)):
            raise InputError(f"a {self.name} renders no conversations", where="engine",
                             remedy="Give it a chat_prompt, or judge it on ids")  # fmt: skip
        prompt = self._call("chat_prompt", messages, **options)
        return prompt if isinstance(prompt, Prompt) else Prompt(prompt)

    def fingerprint(self) -> dict[str, Any]:
        """What the engine says of itself; its class where it says nothing."""
        said = self._call("fingerprint") if callable(getattr(self.engine, "fingerprint", None)) else {}
        if not isinstance(said, dict):
            raise InputError(f"it is a {type(said).__name__}", where=f"fingerprint of {self.name}",
                             remedy="Return a dictionary")  # fmt: skip
        return {"engine": self.name, **said}

    def shows(self, ids: Sequence[int], truth: Mapping[Key, np.ndarray]) -> list[Key]:
        """The stages that it shows of these ids, in order. Raises SampleError for one that is not as large as truth's.

        Before any stage is fed with the truth: what the engine would make of an array of another size, is its own.
        """
        keys: list[Key] = []

        def tap(stage: str, layer: int | None, activation: Any) -> Any:
            check_shapes(stage, layer, activation, truth[stage, layer])
            keys.append((stage, layer))
            return activation

        with suppress(NumericError):  # all stages have been shown by then
            self.forward(ids, tap)
        return keys

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What a function of the engine returns; what it raises as an InputError that says where it was."""
        try:
            return getattr(self.engine, name)(*arguments, **options)
        except AssayError:
            raise
        except Exception as error:
            at = f", after {place(*self.last)} was shown" if "tap" in options and self.last else ""
            raise InputError(raised(error), where=f"{name} of {self.name}{at}",
                             remedy="Run it by itself to see why") from error  # fmt: skip

    def _key(self, stage: Any, layer: Any) -> Key:
        """A stage that this model has."""
        known = isinstance(stage, str) and stage in STAGES
        whole = known and stage in WHOLE_MODEL_STAGES
        if known and whole and layer is None:
            return stage, None
        if known and not whole and isinstance(layer, int | np.integer) and 0 <= layer < self.file.config.n_layers:
            return stage, int(layer)
        raise SampleError(f"{self.name} shows {stage!r:.60} of layer {layer!r:.20}, which the model does not have",
                          where="same-sample check: stages", remedy=f"Stages are {', '.join(STAGES)}")  # fmt: skip

    def _numbers(self, found: Any, where: str) -> np.ndarray:
        """An array of floats; InputError for anything else."""
        try:
            array = np.asarray(found)
        except Exception as error:  # an array of somebody else's that does not become one of NumPy's
            raise InputError(f"a {type(found).__name__} is not an array: {raised(error)}",
                             where=f"{where} of {self.name}", remedy="Give NumPy arrays of f32") from error  # fmt: skip
        if array.dtype.kind != "f" or not array.ndim:
            raise InputError(f"an array of {array.dtype} and {array.ndim} dimensions", where=f"{where} of {self.name}",
                             remedy="Give an array of f32 whose first axis is the position")  # fmt: skip
        return array

    def _logits(self, found: Any, n_tokens: int, *, finite: bool = True) -> np.ndarray:
        logits, n_vocab = self._numbers(found, "logits"), len(self.file.vocabulary)
        if logits.ndim != 2 or len(logits) != n_tokens or logits.shape[1] < n_vocab:
            raise SampleError(f"logits {list(logits.shape)}, not [{n_tokens}, {n_vocab} or more]",
                              where=f"same-sample check: forward of {self.name}",
                              remedy="Return the logits of every position of one sequence")  # fmt: skip
        return demand_finite(logits, self.name) if finite else logits

    def _step(self, found: Any, name: str) -> tuple[np.ndarray, Any]:
        if not isinstance(found, tuple) or len(found) != 2:
            raise InputError(f"it returned a {type(found).__name__}", where=f"{name} of {self.name}",
                             remedy="Return logits [n_vocab] and the cache")  # fmt: skip
        logits, n_vocab = self._numbers(found[0], f"logits of {name}"), len(self.file.vocabulary)
        if logits.ndim != 1 or len(logits) < n_vocab:
            raise SampleError(f"logits {list(logits.shape)}, not [{n_vocab} or more]",
                              where=f"same-sample check: {name} of {self.name}",
                              remedy="Return the logits of the last position")  # fmt: skip
        return demand_finite(logits, self.name), found[1]


class Encoder:
    """The tokenizer of somebody's engine."""

    def __init__(self, of: Anybody) -> None:
        self.of = of

    def encode(self, prompt: Prompt | str) -> list[int]:
        """Ids of a rendered prompt; a plain text is given as such. Raises InputError for what are no ids."""
        text = prompt.text if isinstance(prompt, Prompt) and not prompt.literal else prompt
        where = f"tokenizer of {self.of.name}"
        try:
            ids = self.of.engine.tokenizer.encode(text)
            found = [int(token) for token in ids]
        except AssayError:
            raise
        except Exception as error:
            raise InputError(raised(error), where=where, remedy="Return a list of ids") from error
        return found


def raised(error: Exception) -> str:
    """An exception of somebody else's in one line."""
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def demand_finite(logits: np.ndarray, name: str) -> np.ndarray:
    """``logits``; NumericError where one is not a number."""
    if not np.isfinite(logits).all():
        position = int(np.argwhere(~np.isfinite(logits))[0][0]) if logits.ndim == 2 else -1
        at = f" at position {position}" if position >= 0 else ""
        raise NumericError(f"a logit is NaN or infinite{at}", where=f"logits of {name}",
                           remedy="Its stages say where it first appears")  # fmt: skip
    return logits


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function can be given an argument of this name; what nobody can tell is tried."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def demands(function: Callable[..., Any], name: str) -> bool:
    """Whether a function cannot be called without an argument of this name."""
    try:
        one = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return one is not None and one.default is one.empty
