"""External engines to be measured beside ours, each in a process of its own.

Each is a module, ``assay.peers.NAME``, run as a process with the arguments MODEL CONTEXT SLOTS: with room for SLOTS
sequences of CONTEXT tokens at once. It prints ``ready ADDRESS`` when the model is loaded, and answers ``POST
ADDRESS/completion`` as the server of llama.cpp does, until its standard input closes:

    {"prompt": ids or [ids, ..], "n_predict": n, "cache_prompt": bool, ..}
        -> {"tokens": ids, "timings": {"prompt_n", "prompt_ms", "predicted_n", "predicted_ms"}}, or a list of these

``predicted_ms`` runs from the first token, which comes with the prompt, to the last: ``predicted_n`` - 1 steps.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError

from assay.formats import InputError
from assay.formats.system.python_child import python_child

LOAD_TIMEOUT = ANSWER_TIMEOUT = 900
"""Seconds. A prompt of 4096 tokens in f32 takes minutes on two processors; an engine that hangs must end some day."""


@dataclass(frozen=True)
class Recipe:
    """How to run an external engine: its module, its arithmetic, the packages it needs, the extra they come with."""

    module: str
    arith: str
    packages: tuple[str, ...]
    extra: str
    reserves: bool = False
    """Whether it takes memory for SLOTS x CONTEXT tokens from the start."""


PEERS = {
    "llama.cpp": Recipe("assay.peers.llama_cpp", "ggml", ("xllamacpp",), "peers", reserves=True),
    "transformers": Recipe(
        "assay.peers.transformers", "f32", ("transformers", "torch", "gguf", "accelerate"), "transformers"
    ),
}


def require(name: str) -> Recipe:
    """The recipe of the external engine ``name``. Raises InputError for an unknown one, and if a package is missing."""
    if name not in PEERS:
        raise InputError(f"there is no external engine {name!r}", where="--vs",
                         remedy=f"Choose one of {', '.join(PEERS)}")
    recipe = PEERS[name]
    if missing := [package for package in recipe.packages if find_spec(package) is None]:
        raise InputError(f"{name} is not installed ({', '.join(missing)} missing)", where="--vs",
                         remedy=f"Install it: pip install 'assay[{recipe.extra}]'")  # fmt: skip
    return recipe


@dataclass(frozen=True)
class Peer:
    """A running external engine. ``load_s``: seconds from the start of its process until it was ready."""

    name: str
    address: str
    process_id: int
    load_s: float

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, keep: bool = False,
                 ends: bool = False) -> dict[str, Any]:  # fmt: skip
        """Greedy answers of exactly ``max_tokens`` ids to all prompts at once; with ``ends``, up to an end token.

        Returns ``{"ids": one list a prompt, "prefill_tok_s", "decode_tok_s"}``, each the sum over the prompts divided
        by the longest time of any; ``decode_tok_s`` is None for one token, which comes with the prompt. ``keep``
        lets a prompt that was read in the last request stay read. Raises InputError if the engine fails.
        """
        body = {"prompt": [list(p) for p in prompts] if len(prompts) > 1 else list(prompts[0]),
                "n_predict": max_tokens, "temperature": 0.0, "top_k": 1, "ignore_eos": not ends, "cache_prompt": keep,
                "return_tokens": True}  # fmt: skip
        answer = self._ask(body)
        results = answer if isinstance(answer, list) else [answer]
        try:
            timings = [result["timings"] for result in results]
            prefill_ms, decode_ms = (max(t[key] for t in timings) for key in ("prompt_ms", "predicted_ms"))
            n_steps = sum(t["predicted_n"] - 1 for t in timings)
            return {"ids": [result["tokens"] for result in results],
                    "prefill_tok_s": 1e3 * sum(t["prompt_n"] for t in timings) / prefill_ms,
                    "decode_tok_s": 1e3 * n_steps / decode_ms if n_steps else None}  # fmt: skip
        except (KeyError, TypeError, ZeroDivisionError):
            raise self._failed("its answer is not understood") from None

    def named_tokens(self, ids: Sequence[int], n: int) -> list[tuple[int, float]]:
        """The ``n`` likeliest tokens after ``ids`` and their log-probabilities.

        What was read in the last request stays read. Raises InputError if the engine fails, or gives none.
        """
        body = {"prompt": list(ids), "n_predict": 1, "temperature": 0.0, "n_probs": n, "cache_prompt": True,
                "post_sampling_probs": False}  # fmt: skip
        try:
            top = self._ask(body)["completion_probabilities"][0]["top_logprobs"]
            named = [(int(one["id"]), float(one["logprob"])) for one in top]
        except (KeyError, IndexError, TypeError, ValueError):
            named = []
        if not named:
            raise self._failed("it names no probabilities")
        return named

    def _ask(self, body: dict[str, Any]) -> Any:
        """POST ``body`` to ``/completion``; what the answer says, as JSON."""
        request = urllib.request.Request(f"{self.address}/completion", json.dumps(body).encode())
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
        try:
            with direct.open(request, timeout=ANSWER_TIMEOUT) as answer:
                return json.load(answer)
        except HTTPError as error:
            with error:
                raise self._failed(error.read(500).decode(errors="replace")) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(str(error) or type(error).__name__) from None

    def _failed(self, why: str) -> InputError:
        """The error for an engine that did not answer as it should."""
        return InputError(f"{self.name} failed: {' '.join(why.split())}", where="--vs",
                          remedy="Leave out what it cannot do, or run it on the file by itself")  # fmt: skip


@contextmanager
def running(name: str, model: Path, *, context: int, slots: int = 1) -> Iterator[Peer]:
    """Start the external engine ``name`` on ``model``, with room for ``slots`` sequences of ``context`` tokens; it ends
    with the block.

    Raises InputError as :func:`require`, or if it does not start.
    """
    recipe = require(name)
    needs = (recipe.module.partition(".")[0], "assay", "numpy", *recipe.packages)
    command = python_child(recipe.module, str(model.resolve()), str(context), str(slots), needs=needs)
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        watchdog = threading.Timer(LOAD_TIMEOUT, process.kill)
        watchdog.start()
        try:
            address = address_of(process)
            watchdog.cancel()
            if address is None:
                raise InputError(f"{name} could not load the model: {last_line(log)}", where="--vs",
                                 remedy="Run it on the file by itself")  # fmt: skip
            yield Peer(name, address, process.pid, time.perf_counter() - started)
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def address_of(process: subprocess.Popen[str]) -> str | None:
    """The address that the engine says it is ready at; None if it ends before."""
    assert process.stdout is not None
    lines = (line.strip() for line in process.stdout)
    return next((line.removeprefix("ready ") for line in lines if line.startswith("ready ")), None)


def last_line(log: IO[str]) -> str:
    """What a process said last, at most 200 characters of it."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1][:200] if lines else "it ended without a message"
