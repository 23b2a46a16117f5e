"""Checks on the container itself: what the reader noticed, what lies between the tensors, the checksums."""

from __future__ import annotations

from collections.abc import Iterator

from assay.formats.containers.base import Container
from assay.formats.errors import FormatError
from assay.formats.inspection.byte_map import PADDING, sections
from assay.formats.inspection.checks.check import Check, judged, skipped
from assay.formats.system.progress import Progress, quiet

READ_AT_ONCE = 1 << 22


def checks(container: Container, progress: Progress = quiet) -> Iterator[Check]:
    yield judged("structure.strict", len(container.warnings), "0 oddities",
                 "no current writer makes them; llama.cpp refuses some",
                 warn=container.warnings)  # fmt: skip
    dirty = [f"{count} of {stop - start} bytes at {start}{'' if one is container else f' of {one.path.name}'}"
             for one in container.members for start, stop, count in _dirty_padding(one)]  # fmt: skip
    yield judged("structure.padding", len(dirty), "all zero",
                 "writers fill gaps with zeros; anything else hides there", warn=dirty)  # fmt: skip
    yield _checksum(container, progress)


def _dirty_padding(container: Container) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bytes that are not zero) of each gap that is not clean."""
    for section in sections(container):
        if section.name == PADDING and container.map is not None:
            count = 0
            for at in range(section.start, section.stop, READ_AT_ONCE):
                piece = container.map[at : min(at + READ_AT_ONCE, section.stop)]
                count += len(piece) - piece.count(0)
            if count:
                yield section.start, section.stop, count


def _checksum(container: Container, progress: Progress) -> Check:
    name, limit = "structure.checksum", "computed = stored"
    try:
        checked = container.verify(progress)
    except FormatError as error:
        return judged(name, "wrong", limit, "some byte of the file is not the one written", fail=[error.what])
    if checked:
        return judged(name, "right", limit, "every byte is the one written")
    return skipped(name, limit, "the file stores no checksum of its data; compare its SHA-256 with the publisher's "
                   "(inspect --sha256)")  # fmt: skip
