"""An endpoint before the judge: any server that answers as OpenAI's completions do, and names log-probabilities.

    POST ADDRESS/completions {"model", "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": N}

``completions.py`` reads the answers. A text stands for a token if it is the text of exactly one in the file's
vocabulary. What stands for none keeps its probability: with all that was not named, it is part of the one outcome
"another token".
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from http.client import HTTPException
from itertools import product
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np

from assay import bearer
from assay.formats import InputError, ModelFile, SampleError
from assay.formats.system.printable import printable
from assay.peers.completions import entries_of, message_of, prompt_tokens
from assay.peers.judged import N_NAMED, ExternalEngine
from assay.peers.plain_logprobs import REMEDY, demand_logprobs, demand_plain

ARITHS = ("ggml", "f32")
"""What may be declared of an endpoint."""
SIZES = (200, 100, 50, 20, 10, 5)
"""How many tokens it is asked to name, until it does not refuse: vLLM allows 20, OpenAI 5."""
AS_IDS = {"return_tokens_as_token_ids": True}
REFUSED = (400, 422)
"""HTTP status of a request that could be accepted with less in it."""
TIMEOUT = 120
"""Seconds for one answer."""
LONGEST = 16 << 20
"""Bytes of an answer."""
SHOWN = 300
"""Characters of a server's message."""
KEY = "ASSAY_API_KEY"
"""Environment variable: what the server knows us by."""


def is_address(engine: str) -> bool:
    """Whether an engine's name is the address of an endpoint."""
    return engine.lower().startswith(("http://", "https://"))


class StaysHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: neither a key nor a prompt is for another server."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


class Endpoint:
    """A server at ``address`` (up to and with ``/v1``) that serves the weights of a file, it says.

    ``bytes_of`` gives the bytes of each of the file's tokens; ``model`` is the name that is asked for (None: the only
    one there is). Raises InputError for an address or a key (environment variable ``ASSAY_API_KEY``) that is none.
    """

    def __init__(self, address: str, file: ModelFile, bytes_of: Callable[[int], bytes], *, model: str | None = None,
                 timeout: float = TIMEOUT, insecure_key: bool = False) -> None:  # fmt: skip
        self.name = checked(address)
        self.file, self.bytes_of, self.timeout = file, bytes_of, timeout
        self._key = bearer.key_of_environment(KEY)
        if self._key:
            bearer.demand_private(KEY, self.name, asked=insecure_key)
        self._open = bearer.opener(self.name, StaysHere()).open
        self._way: tuple[int, dict[str, Any]] | None = None
        self.model = model or self._only_model()

    @property
    def n_named(self) -> int | None:
        """How many tokens it names at once; None before it was asked."""
        return self._way and self._way[0]

    def named_tokens(self, ids: Sequence[int], n: int) -> list[tuple[int, float]]:
        """The likeliest tokens after ``ids``, at most ``n``, and their log-probabilities.

        Raises SampleError if it read another number of tokens; InputError if it fails, names none, or numbers that are
        not plain log-probabilities, or tokens that the file does not have, or a likeliest one that nobody can tell.
        """
        entries = self.entries(ids, n)
        identified = [(self.identify(name), logprob) for name, logprob in entries]
        named = [(token, logprob) for token, logprob in identified if token is not None]
        n_rows = self.file.config.n_vocab
        if wrong := [token for token, _ in named if not 0 <= token < n_rows]:
            raise self._failed(f"it names token {wrong[0]}, but the file has {n_rows:,}", "It serves another model")
        named = [(token, logprob) for token, logprob in named if token < len(self.file.vocabulary)]  # or it is padding
        best = max(logprob for _, logprob in entries)
        if not any(logprob == best for _, logprob in named):
            unknown = max(entries, key=lambda entry: entry[1])[0]
            raise self._failed(f"its likeliest token, {unknown!r}, could be none or several of the file's",
                               "It must name ids: vLLM does with --return-tokens-as-token-ids")  # fmt: skip
        return named

    def entries(self, ids: Sequence[int], n: int = N_NAMED) -> list[tuple[int | bytes, float]]:
        """What it names after ``ids``, an id or bytes, and the log-probability of each. Raises as ``named_tokens``.

        On the first call it is asked for less and less, with and without ids, until it accepts; later calls ask so.
        """
        fixed: dict[str, Any] = {"prompt": list(ids), "max_tokens": 1, "temperature": 0}
        if self.model is not None:
            fixed["model"] = self.model
        ways = [self._way] if self._way else [*product([size for size in SIZES if size <= n] or [n], (AS_IDS, {}))]
        while True:
            way, *ways = ways
            status, answer = self._exchange("completions", fixed | {"logprobs": way[0]} | way[1])
            if status not in REFUSED or not ways:
                break
        if status != 200:
            raise self._failed(f"HTTP {status}, {answer}", *([f"Set {KEY}"] if status in (401, 403) else []))
        found = entries_of(answer)
        if not found:
            raise self._failed("it names no probabilities")
        n_read = prompt_tokens(answer)
        if n_read not in (None, len(ids)):
            raise SampleError(f"it read {n_read} tokens where {len(ids)} were sent", where=self.name,
                              remedy="The server must take ids, and add none of its own")  # fmt: skip
        self._way = way
        return demand_logprobs(found, len(ids), self.not_plain)

    def identify(self, name: int | bytes) -> int | None:
        """The token that a name stands for; None if it could be none or several."""
        if isinstance(name, int):
            return name
        if said := re.fullmatch(rb"token_id:(\d{1,9})", name):
            return int(said[1])
        try:
            return self._known.get(name.decode())
        except UnicodeDecodeError:
            return self._known.get(name)

    @cached_property
    def _known(self) -> dict[bytes | str, int | None]:
        """The id of each token by its text, and by its bytes, which differ where they are not UTF-8; None: several."""
        known: dict[bytes | str, int | None] = {}
        for token in range(len(self.file.vocabulary)):
            spelt = self.bytes_of(token)
            for name in (spelt, spelt.decode(errors="replace")):
                known[name] = None if name in known else token
        return known

    def _only_model(self) -> str | None:
        """The one model that is served; None if the server does not say. Raises InputError if there are several."""
        status, answer = self._exchange("models")
        try:
            names = [str(one["id"]) for one in answer["data"]] if status == 200 else []
        except (KeyError, TypeError):
            names = []
        if len(names) > 1:
            some = self.shown(", ".join(names[:5]))
            raise InputError(f"{self.name} serves {len(names)} models: {some}", where="--endpoint-model",
                             remedy="Name one of them")  # fmt: skip
        return names[0] if names else None

    def _exchange(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """POST ``body``, or GET: 200 and what the answer says as JSON, or another status and the server's message."""
        request = urllib.request.Request(f"{self.name}/{path}", None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        request.add_header("User-Agent", "assay")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        end = time.monotonic() + self.timeout
        try:
            with self._open(request, timeout=self.timeout) as answer:
                return 200, json.loads(received(answer, end))
        except HTTPError as error:
            said = b""
            with error, suppress(OSError, HTTPException):
                said = error.read(1 << 16)
            return error.code, message_of(said) or error.reason
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise self._failed(str(why) or type(why).__name__) from None
        except (ValueError, RecursionError):
            raise self._failed("its answer is not JSON") from None

    def shown(self, said: str) -> str:
        """A server's words in one line, without the key; what a terminal would obey is escaped."""
        return printable(" ".join(bearer.without(self._key, said).split()))[:SHOWN]

    def not_plain(self, evidence: str) -> InputError:
        """The error for numbers that are processed."""
        return self._failed(f"these are not plain log-probabilities: {evidence}", REMEDY)

    def _failed(self, why: str, remedy: str = "Try it with curl; the address ends with /v1, as a rule") -> InputError:
        """The error for an endpoint that did not answer as it should."""
        return InputError(self.shown(why), where=self.name, remedy=remedy)


class EndpointEngine(ExternalEngine):
    """An endpoint as an engine; ``arith`` is what its user declares of it."""

    def __init__(self, endpoint: Endpoint, arith: str | None) -> None:
        served = endpoint.shown(endpoint.model or "unknown")
        super().__init__(endpoint, endpoint.file, served)  # pyright: ignore[reportArgumentType]
        self.endpoint, self.arith = endpoint, arith

    def demand_plain(self, exact: np.ndarray, found: np.ndarray) -> None:
        """Raise InputError if what it named, ``found``, is the true logits ``exact``, processed."""

        def show(token: int) -> str:
            return repr(self.endpoint.bytes_of(token).decode(errors="replace"))

        demand_plain(exact, found, show, self.endpoint.not_plain)

    def generate(self, ids: Sequence[int], n: int) -> tuple[list[int], list[float]]:
        """At most ``n`` greedy tokens after ``ids``, up to the first end token, and the margin of each.

        Each is a request of its own, so this is not the server's own loop.
        """
        answer: list[int] = []
        margins: list[float] = []
        while len(answer) < n and (not answer or answer[-1] not in self.file.vocabulary.end_ids):
            row = self.prefill([*ids, *answer])[0]
            answer.append(int(np.nanargmax(row)))
            *_, second, first = [np.nan, *np.sort(row[~np.isnan(row)])]
            margins.append(float(first - second))
        return answer, margins

    def fingerprint(self) -> dict[str, Any]:
        """What could make two runs differ, as far as it is known: whose weights are served, nobody can see."""
        return {"engine": self.peer.name, "arith": self.arith, "version": self.version, "weights": "unknown",
                "named": self.endpoint.n_named}  # fmt: skip


def judged(address: str, file: ModelFile, bytes_of: Callable[[int], bytes], *, model: str | None,
           arith: str | None, insecure_key: bool = False) -> EndpointEngine:  # fmt: skip
    """An endpoint that has answered once, so that what cannot be judged is refused before the truth is computed."""
    if arith not in (None, *ARITHS):
        raise InputError(f"{arith!r} cannot be declared of an endpoint", where="--arith",
                         remedy=f"Choose one of {', '.join(ARITHS)}")  # fmt: skip
    endpoint = Endpoint(address, file, bytes_of, model=model, insecure_key=insecure_key)
    endpoint.entries([0])
    return EndpointEngine(endpoint, arith)


def checked(address: str) -> str:
    """An address without a slash at its end. Raises InputError, which does not repeat a password."""
    try:
        parts = urlsplit(address)
        plain = parts.hostname and (parts.port or True) and not (parts.username or parts.password)
        plain = plain and not (parts.query or parts.fragment)
        plain = plain and address.isascii() and address.isprintable() and " " not in address
    except ValueError:
        plain = False
    if not plain:
        raise InputError("that is not the address of an endpoint", where="--engine",
                         remedy="Give http://HOST:PORT/v1; a key goes into ASSAY_API_KEY")  # fmt: skip
    return address.rstrip("/")


def received(answer: Any, end: float) -> bytes:
    """The body of an answer. Raises OSError if it is too long, or not there in time."""
    data = bytearray()
    while chunk := answer.read1(1 << 16):
        data += chunk
        if len(data) > LONGEST:
            raise OSError(f"its answer is longer than {LONGEST >> 20} MB")
        if time.monotonic() > end:
            raise TimeoutError("timed out")
    return bytes(data)
