"""The two engines by name. An engine is a package that offers ``load``, ``generate``, ``stream_generate``.

Packages are imported when they are asked for: the oracle starts without waiting for JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from assay.fetch.pull import locate
from assay.formats import InputError, ModelFile
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Generation, Prompt, Step
from assay.goldens import BUILTIN

ENGINES = ("accel", "reference")
BUILTIN_NAME = "builtin"


@checked
def find(model: str | Path, **pull_options: Any) -> Path:
    """The path of a model: the built-in one, an existing file, or a catalogue entry, pulled on first use."""
    return BUILTIN if model == BUILTIN_NAME else locate(str(model), **pull_options)


@checked
def load(model: str | Path | ModelFile = BUILTIN_NAME, *, engine: str = "accel", arith: str | None = None,
         cache_type: str | None = None, nfc: bool = True, cache_weights: bool = False,
         progress: Callable[[int, int], None] | None = None) -> Any:  # fmt: skip
    """An engine for a model: a path, a catalogue name (pulled on first use), ``"builtin"``, or an open file.

    ``arith`` names the arithmetic (None: the engine's default), ``nfc`` = False leaves text unnormalised.
    ``cache_weights`` is for the oracle, ``progress(done, total)`` and ``cache_type`` (of keys and values: ``"f32"``,
    ``"bf16"``, ``"f16"``) for the accelerated engine. Raises InputError
    for an unknown engine or arithmetic and where JAX does not start, SourceError, FormatError or ModelError for the
    model.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", where="--engine",
                         remedy=f"Choose one of {', '.join(ENGINES)}")  # fmt: skip
    options: dict[str, Any] = {"nfc": nfc}
    if arith is not None:
        options["arith"] = arith
    if engine == "reference":
        if cache_type is not None:
            raise InputError(f"the oracle has no cache in {cache_type!r}: keys and values are as its arithmetic is",
                             where="--cache-type", remedy="Leave it out")  # fmt: skip
        options["cache_weights"] = cache_weights
    else:
        if cache_weights:
            raise InputError("it has no effect: the accelerated engine computes from the packed weights",
                             where="--cache-weights", remedy="Leave it out")  # fmt: skip
        if cache_type is not None:
            options["cache_type"] = cache_type
        options["progress"] = progress
    file = model if isinstance(model, ModelFile) else find(model)
    return engine_package(engine).load(file, **options)


def engine_package(engine: str) -> Any:
    """The package of an engine. Raises InputError if it needs JAX and that cannot be imported."""
    if engine == "accel":
        try:
            import_module("jax")
        except Exception as error:  # no jax, no jaxlib, or one that does not fit it; a variable that it cannot read
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"JAX cannot be imported: {reason[:300]}", where="jax",
                             remedy="'pip install --upgrade jax jaxlib' brings versions that fit each other and this "
                                    "machine; --engine reference needs none") from error  # fmt: skip
    return import_module(f"assay.{engine}")


@checked
def generate(model: Any, prompt: str | Prompt | Sequence[int], **options: Any) -> Generation:
    """The ``generate`` of the engine that ``model`` belongs to; see there for the options."""
    return package_of(model).generate(model, prompt, **options)


@checked
def stream_generate(model: Any, prompt: str | Prompt | Sequence[int], **options: Any) -> Iterator[Step]:
    """The ``stream_generate`` of the engine that ``model`` belongs to; see there for the options."""
    return package_of(model).stream_generate(model, prompt, **options)


@checked
def generate_batch(model: Any, prompts: Sequence[str | Prompt | Sequence[int]], **options: Any) -> list[Generation]:
    """An answer to each prompt, all decoded at once where the engine can (``decodes_together``), else one by one.

    Options as for ``generate``. Either way every answer carries the clock of the whole batch.
    """
    if decodes_together(model):
        return package_of(model).generate_batch(model, prompts, **options)
    answers = [generate(model, prompt, **options) for prompt in prompts]
    for clock in ("compile_s", "prefill_s", "decode_s"):
        whole = sum(getattr(answer.timings, clock) for answer in answers)
        for answer in answers:
            setattr(answer.timings, clock, whole)
    return answers


@checked
def decodes_together(model: Any) -> bool:
    """Whether the engine of ``model`` reads one token of many sequences in one step."""
    return hasattr(package_of(model), "generate_batch")


def package_of(model: Any) -> Any:
    """The engine package in which the model's class, or one that it derives from, is defined; InputError if in none."""
    homes = {kind.__module__.rpartition(".")[0] for kind in type(model).__mro__}
    for engine in ENGINES:
        if f"assay.{engine}" in homes:
            return import_module(f"assay.{engine}")
    raise InputError(f"an object of type {type(model).__name__} is not an engine", where="model",
                     remedy="Give what assay.load returned")  # fmt: skip
