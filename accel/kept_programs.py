"""Compiled programs kept between processes, beside the models: in ``~/.cache/assay/xla``.

JAX has a persistent cache, but saves XLA's work only: a program is looked up there by what tracing and lowering made of
it, and those take 0.7 s of Python for a step of the 1.5B, under the interpreter's lock that packing wants, too. Here a
program is looked up by what it would be traced *from*: the code as it is in memory with its fixed arguments
(``formats/system/code_digest.py``), the shapes of the others, versions, settings, flags and processor. It is kept with
the trees of what it takes and returns.

A file is the SHA-256 of the rest, then the pickled program, deflated. Like every such cache it is code, so folder and
file must be the user's own, and writable by nobody else. What is not, is damaged, or cannot be read or written, is
compiled as if it were not there. The files used last stay, up to ``MOST_BYTES``.

Never both caches: a program that JAX has loaded from its cache can be written again, but what is read then lacks
functions and fails when it is run (jaxlib 0.10.2, CPU).
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import zlib
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from assay.accel.device import instructions
from assay.formats.system.atomic_file import replacing
from assay.formats.system.cache_dir import programs_folder
from assay.formats.system.code_digest import digest
from assay.formats.system.cpus import processors

DIGEST_BYTES = 32
MOST_BYTES = 256 << 20
"""A model's programs take some 2 MB for each size of cache."""


def folder() -> Path | None:
    """Where programs are kept; None if the user does not want it (``ASSAY_XLA_CACHE=off``) or has JAX keep them, or if
    others could have put something there. ``ASSAY_XLA_CACHE`` may also be the absolute path of another folder."""
    where = programs_folder()
    if where is None or jax.config.values["jax_compilation_cache_dir"]:
        return None
    with suppress(OSError):
        if not is_private(os.stat(where)):
            refuse(where)
            return None
    return where


def is_private(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else can write to it."""
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


@cache
def refuse(path: Path) -> None:
    """Say, once, that what is stored there is not run."""
    logging.getLogger("assay").warning(
        "assay: %s: other users can write here, so no compiled program is taken from it. "
        "Make it your own (chown, chmod go-w) or delete it", path)  # fmt: skip


def path_of(code: str | None, donate: tuple[int, ...], arguments: Any) -> Path | None:
    """Where the program is kept that a function with this ``code`` makes for arguments like these, some donated.

    None if nothing is kept, or the code cannot be told.
    """
    where = None if code is None else folder()
    like = jax.tree.map(lambda leaf: (np.shape(leaf), str(leaf.dtype)), arguments)
    if where is None or (shapes := digest(like)) is None:
        return None
    facts = code, donate, shapes, surroundings()
    return where / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.program"


def surroundings() -> tuple[Any, ...]:
    """Everything else that a compiled program depends on."""
    device: Any = jax.config.values["jax_default_device"] or jax.devices()[0]
    settings = {key: value for key, value in jax.config.values.items()
                if isinstance(value, str | int | float | None) and "cache" not in key}  # fmt: skip
    flags = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "NPROC", "LIBTPU_"))}
    return (platform.python_implementation(), platform.python_version(), jax.__version__, version("jaxlib"),
            np.__version__, sorted(settings.items()), sorted(flags.items()), processors(), device.platform,
            device.device_kind, device.id, device.client.platform_version, sorted(instructions()))  # fmt: skip


def load(path: Path | None, device: jax.Device) -> Any:
    """The program in a file, ready to be called on ``device``; None if there is none that is whole and private."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            if not is_private(os.fstat(file.fileno())):
                refuse(path)
                return None
            data = file.read()
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
            return None
        parts = pickle.loads(zlib.decompress(data[DIGEST_BYTES:]))
        program = serialize_executable.deserialize_and_load(*parts, backend=device.client, execution_devices=[device])
        os.utime(path)  # used now: the last to go
    except Exception:  # whatever it is (another JAX's file, a device that cannot read programs): compiling works
        return None
    return program


def save(path: Path | None, program: Any) -> None:
    """Keep a compiled program, if it can be kept."""
    if path is None:
        return
    with suppress(Exception):  # a cache that cannot be written to, or a device whose programs cannot: there is none
        data = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, force=True) as file:
            os.chmod(file.fileno(), 0o600)
            file.write(hashlib.sha256(data).digest() + data)
        trim(path.parent)


def trim(where: Path, most_bytes: int = MOST_BYTES) -> None:
    """Delete the files that were not used for longest until the others have ``most_bytes`` at most together."""
    files = sorted(((status.st_mtime, status.st_size, path) for path in where.glob("*.program*")
                    if (status := path.stat())), reverse=True)  # fmt: skip
    total = 0
    for _, size, path in files:
        total += size
        if total > most_bytes:
            path.unlink(missing_ok=True)
