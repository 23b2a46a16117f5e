"""The three engines of a comparison: truth, oracle, candidate; and the sample they are shown.

The only place that knows which engines stand before the judge. Truth is the oracle in f64; the floor comes from the
oracle in f32, made noisy as the candidate's arithmetic declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from assay.engines import load
from assay.formats import InputError, ModelFile
from assay.formats.contract.arguments import checked
from assay.formats.contract.declaration import Declaration
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import Conversation
from assay.judging.baseline import Baseline
from assay.judging.declared import declaration_of
from assay.parity.precision import Precision, precision
from assay.parity.sample import Sample, check_same
from assay.peers import PEERS, endpoint, running
from assay.peers.judged import ExternalEngine
from assay.reference.tokenizer import Tokenizer

WINDOW = 256
"""Positions of a text that are judged together: 0.5B, 0.3 GB of true logits."""


@dataclass(frozen=True)
class UnderTest:
    """Three engines on one file: truth and oracle, and what they know, are the baseline; the third is judged."""

    baseline: Baseline
    candidate: Any
    declaration: Declaration | None = None
    """What is said of the candidate's arithmetic, in the place of what it says itself."""

    @property
    def truth(self) -> Any:
        """The oracle in f64."""
        return self.baseline.truth

    @property
    def oracle(self) -> Any:
        """The oracle in f32."""
        return self.baseline.oracle

    @property
    def file(self) -> ModelFile:
        """The file they all compute with."""
        return self.truth.file

    @checked
    def declared(self, n_at_once: int) -> Precision | None:
        """What the candidate declares to round when it reads so many tokens at once; None if it does not say."""
        declared = self.declaration or declaration_of(self.candidate.fingerprint(), self.file, n_at_once)
        return None if declared is None else precision(declared, self.file.config)

    @checked
    def sample(self, text: str | Conversation | None, ids: Sequence[int] | None, chat: bool,
               most: int | None = None) -> list[int]:  # fmt: skip
        """The ids of a prompt, if both sides come to the same; each renders and encodes for itself.

        A peer, or an engine without a tokenizer, is given ids: whether its own would have made them is not what is
        judged here. Raises
        SampleError where they differ, InputError for neither or both of text and ids, and for a text of more than
        ``most`` tokens (None: any number) before it is encoded, where that is sure.
        """
        if (text is None) == (ids is None):
            raise InputError("a comparison needs a prompt, or --ids", where="prompt", remedy="Give one of the two")
        prompt = None if text is None else rendered_by(self.truth, text, chat)
        if prompt is not None and most is not None:
            self.file.check_text(prompt, most)
        ours = read_by(self.truth, None, ids, chat) if prompt is None else encoded_by(self.truth, prompt)
        if getattr(self.candidate, "tokenizer", None) is not None:
            check_same(ours, read_by(self.candidate, text, ids, chat))
        self.file.check_known(ours.ids)  # whether they fit the context is for who reads them at once to ask
        return list(ours.ids)


def read_by(engine: Any, text: str | Conversation | None, ids: Sequence[int] | None, chat: bool) -> Sample:
    """What an engine reads: ``ids`` as they are, or ``text``, which it renders and encodes by itself."""
    if ids is not None:
        return Sample(None, tuple(ids), engine.file.sha256)
    return encoded_by(engine, rendered_by(engine, text or "", chat))


def rendered_by(engine: Any, text: str | Conversation, chat: bool) -> Prompt:
    """A conversation as an engine renders it, or a text: as a user's message, or as it is."""
    if isinstance(text, Conversation):
        return engine.chat_prompt(**vars(text))
    return engine.chat_prompt([{"role": "user", "content": text}]) if chat else Prompt(text)


def encoded_by(engine: Any, prompt: Prompt) -> Sample:
    """What an engine reads of a rendered prompt."""
    return Sample(prompt.text, tuple(engine.tokenizer.encode(prompt)), engine.file.sha256)


def is_served(engine: str) -> bool:
    """Whether an engine answers as a server does: it is a peer, or the address of an endpoint."""
    return engine in PEERS or endpoint.is_address(engine)


@contextmanager
def opened(file: ModelFile, engine: str, arith: str | None, cache_type: str | None, *, taps: bool,
           endpoint_model: str | None = None, insecure_key: bool = False) -> Iterator[UnderTest]:  # fmt: skip
    """The engines under test while the block lasts; ``engine`` may be an external one where no ``taps`` are wanted.

    Or it is the address of an endpoint, of which ``arith`` is declared; ``endpoint_model`` is the name asked for there,
    and with ``insecure_key`` its key may go over plain http.
    """
    for option, given in (("--endpoint-model", endpoint_model is not None), ("--insecure-key", insecure_key)):
        if given and not endpoint.is_address(engine):
            raise InputError("--engine is not the address of an endpoint", where=option, remedy="Leave it out")
    if not is_served(engine):
        yield engines_under_test(file, engine, arith, cache_type)
        return
    if taps:
        raise InputError(f"{engine} shows no stages", where="--engine", remedy="'assay flips' judges it by its tokens")
    if endpoint.is_address(engine):
        if cache_type is not None:
            raise InputError("an endpoint's cache is as it is", where="--cache-type", remedy="Leave it out")
        tokenizer = Tokenizer(file.vocabulary)
        candidate = endpoint.judged(engine, file, tokenizer.bytes_of, model=endpoint_model, arith=arith,
                                    insecure_key=insecure_key)  # fmt: skip
        yield UnderTest(baseline(file), candidate)
        return
    if (arith, cache_type) != (None, None):
        raise InputError(f"{engine} computes as it does", where="--arith", remedy="Leave out --arith and --cache-type")
    version_of = PEERS[engine].packages[0]
    with running(engine, file.path, context=WINDOW + 8) as peer:
        yield UnderTest(baseline(file), ExternalEngine(peer, file, f"{version_of} {version(version_of)}"))


@checked
def engines_under_test(
    file: ModelFile, engine: str = "accel", arith: str | None = None, cache_type: str | None = None
) -> UnderTest:
    """Load truth, oracle and a candidate of our own."""
    shared = baseline(file)
    candidate = load(file, engine=engine, arith=arith, cache_type=cache_type)
    if engine == "reference" and candidate.arith.name != "ggml":
        candidate.weights = shared.truth.weights
    return UnderTest(shared, candidate)


def baseline(file: ModelFile) -> Baseline:
    """Truth, in f64, and the oracle in f32; they share their decoded weights (4 bytes each, kept)."""
    truth = load(file, engine="reference", arith="f64", cache_weights=True)
    oracle = load(file, engine="reference", arith="f32")
    oracle.weights = truth.weights
    return Baseline(truth, oracle)
