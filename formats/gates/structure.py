"""Gates on the container itself: what the reader noticed, what lies between the tensors, the checksums."""

from __future__ import annotations

from collections.abc import Iterator

from formats.container import Container
from formats.gates.gate import Gate, judged, skipped
from formats.layout import PADDING, sections

READ_AT_ONCE = 1 << 22


def gates(container: Container) -> Iterator[Gate]:
    yield judged("structure.strict", len(container.warnings), "0 oddities",
                 "no current writer makes them; llama.cpp refuses some",
                 warn=container.warnings)  # fmt: skip
    dirty = [f"{count} of {stop - start} bytes at {start}" for start, stop, count in _dirty_padding(container)]
    yield judged("structure.padding", len(dirty), "all zero",
                 "writers fill gaps with zeros; anything else hides there", warn=dirty)  # fmt: skip
    yield _checksum(container)


def _dirty_padding(container: Container) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bytes that are not zero) of each gap that is not clean."""
    for section in sections(container):
        if section.name != PADDING:
            continue
        count = sum(
            len(piece) - piece.count(0)
            for at in range(section.start, section.stop, READ_AT_ONCE)
            if (piece := container.map[at : min(at + READ_AT_ONCE, section.stop)] if container.map else b"")
        )
        if count:
            yield section.start, section.stop, count


def _checksum(container: Container) -> Gate:
    limit = "stored = computed"
    if container.format == "gguf":
        return skipped("structure.checksum", limit, "GGUF stores no checksum; compare --sha256 with the publisher's")
    return skipped("structure.checksum", limit, f"the format {container.format} stores none that is known here")
