"""A second reading that was kept: the ``gguf`` package takes ten seconds and half a gigabyte for a Qwen2.5's tokens.

Only the other reader's answer is kept, under the SHA-256 of the file. Ours is read from the file each time, and held
against it; what differs is read anew, so that nothing kept can accuse.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from assay.formats import InputError, ModelFile
from assay.formats.system.atomic_file import replacing
from assay.formats.system.cache_dir import cache_folder
from assay.formats.system.code_digest import digest
from assay.judging.independent.gguf_package import read
from assay.judging.independent.reading import Place, Reading

MOST = 64 << 20
"""Bytes of a reading; Qwen2.5's has 8 MB, 2.5 compressed."""


def kept_at(file: ModelFile) -> Path | None:
    """Where the reading of a file is kept; None where nothing is (``ASSAY_FLOORS=off``)."""
    made_by = digest(read)
    if os.environ.get("ASSAY_FLOORS") == "off" or made_by is None:
        return None
    facts = [file.sha256, [path.name for path in file.files], made_by, version("gguf")]
    return cache_folder("readings") / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json.gz"


def known(file: ModelFile) -> Reading | None:
    """The reading that was kept of a file, if there is one."""
    if (path := kept_at(file)) is None:
        return None
    with suppress(OSError, ValueError, EOFError, KeyError, TypeError), gzip.open(path) as stream:
        reader, facts, tensors = json.loads(stream.read(MOST))
        folder = {path.name: str(path) for path in file.files}
        places = {name: Place(kind, tuple(shape), folder[part], offset, nbytes)
                  for name, (kind, shape, part, offset, nbytes) in tensors.items()}  # fmt: skip
        return Reading(reader, facts, places)
    return None


def keep(file: ModelFile, reading: Reading) -> None:
    """Keep a reading; a folder that cannot be written to keeps none."""
    if (path := kept_at(file)) is None:
        return
    places = {name: place._replace(path=Path(place.path).name) for name, place in reading.tensors.items()}
    with suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as target:
            target.write(gzip.compress(json.dumps([reading.reader, reading.facts, places]).encode(), 1))

