"""``assay parity --dump``: a dump in the candidate's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.commands import options
from assay.commands.asked import asked, text_and_ids
from assay.formats import InputError
from assay.formats.system.progress import Progress
from assay.judging.dumps import opened_dump
from assay.judging.engines_under_test import UnderTest
from assay.progress import bar


@contextmanager
def comparing_dump(folder: Path, prompt: str | None, prompt_file: Path | None, ids: str | None, messages: str | None,
                   chat: bool, path: str, model: str, engine: str, arith: str | None,
                   cache_type: str | None) -> Iterator[tuple[UnderTest, list[int], Progress]]:  # fmt: skip
    """As ``comparison.comparing``, which says more. A prompt is not needed; one that is given must be the dump's.

    Raises InputError for options that make no sense here, SampleError where the dump read something else.
    """
    if (engine, path, cache_type) != ("accel", "prefill", None):
        raise InputError("no engine is run where a dump is judged", where="--dump",
                         remedy="Leave out --engine, --path and --cache-type")  # fmt: skip
    text, forced = None, None
    if (prompt, prompt_file, ids, messages) != (None, None, None, None):
        text, forced = text_and_ids(asked(prompt, prompt_file, ids, messages, chat=chat))
    elif chat:
        raise InputError("--chat needs the text that was traced", where="--chat",
                         remedy="Give that text, or leave out --chat")
    file = options.open_file(model)
    judged = opened_dump(folder, file, text, forced, chat, arith)
    with bar() as progress:
        yield judged, list(judged.candidate.ids), progress
