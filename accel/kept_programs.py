"""Compiled programs kept between processes, beside the models: in ``~/.cache/assay/xla``.

JAX has a persistent cache, but saves XLA's work only: a program is looked up there by what tracing and lowering made of
it, and those take 0.7 s of Python for a step of the 1.5B, under the interpreter's lock that packing wants, too. Here a
program is looked up by what it would be traced *from*: the engine's source, the step's fixed arguments, the shapes of
the others, versions, settings, flags and processor. It is kept with the trees of what it takes and returns.

A file is the SHA-256 of the rest, then the pickled program, deflated. Like every such cache it is code: its folder is
the user's own. What is damaged, or cannot be read or written, is compiled as if it were not there.

Never both caches: a program that JAX has loaded from its cache can be written again, but what is read then lacks
functions and fails when it is run (jaxlib 0.10.2, CPU).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zlib
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from assay import accel, formats
from assay.accel.device import instructions
from assay.formats import InputError
from assay.formats.system.atomic_file import replacing
from assay.formats.system.cache_dir import cache_folder
from assay.formats.system.cpus import processors
from assay.formats.system.source_hash import source_digest

DIGEST_BYTES = 32
NOT_SERIALIZABLE = (ValueError, NotImplementedError, jax.errors.JaxRuntimeError)
"""What JAX says where a device's programs cannot be written or read."""


def folder() -> Path | None:
    """Where programs are kept; None if the user does not want it (``ASSAY_XLA_CACHE=off``) or has JAX keep them."""
    if os.environ.get("ASSAY_XLA_CACHE") == "off" or jax.config.values["jax_compilation_cache_dir"]:
        return None
    return cache_folder("xla")


def path_of(made_from: Any, arguments: Any) -> Path | None:
    """Where the program is kept that ``made_from`` makes for arguments like these; None if nothing is kept.

    ``made_from`` is plain data: its ``repr`` says all of it.
    """
    where = folder()
    if where is None:
        return None
    leaves, tree = jax.tree.flatten(arguments)
    facts = made_from, [(np.shape(leaf), str(leaf.dtype)) for leaf in leaves], str(tree), surroundings()
    return where / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.program"


def surroundings() -> tuple[Any, ...]:
    """Everything else that a compiled program depends on."""
    device = jax.devices()[0]
    settings = {key: value for key, value in jax.config.values.items()
                if isinstance(value, str | int | float | None) and "cache" not in key}  # fmt: skip
    flags = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "NPROC", "LIBTPU_"))}
    return (engine_source(), jax.__version__, version("jaxlib"), np.__version__, sorted(settings.items()),
            sorted(flags.items()), processors(), device.platform, device.device_kind, device.client.platform_version,
            sorted(instructions()))  # fmt: skip


@cache
def engine_source() -> str:
    """SHA-256 of the source that is traced."""
    return source_digest(accel, formats)


def load(path: Path | None) -> Any:
    """The program in a file, ready to be called; None if there is none that is whole."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
            return None
        return serialize_executable.deserialize_and_load(*pickle.loads(zlib.decompress(data[DIGEST_BYTES:])))
    except (OSError, *NOT_SERIALIZABLE):
        return None


def save(path: Path | None, program: Any) -> None:
    """Keep a compiled program, if it can be kept."""
    if path is None:
        return
    with suppress(OSError, InputError, *NOT_SERIALIZABLE):  # a cache that cannot be written to is none
        data = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as file:
            file.write(hashlib.sha256(data).digest() + data)
