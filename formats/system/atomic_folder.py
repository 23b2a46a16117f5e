"""A folder that survives a crash: it gets its name only when all its files are on the disk.

A folder cannot be renamed onto another that is not empty. So with ``--force`` the old one first steps aside, under a
name that ends in ``.unfinished`` as in ``atomic_file.py``: a process that is killed at that moment leaves no folder
by the final name, never a mixture of two. And a folder is only ever replaced if it holds nothing but files that such a
folder has: --force is not a licence to delete what somebody keeps beside a model.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from assay.formats.errors import InputError
from assay.formats.system.atomic_file import sync, unfinished

OF_A_MODEL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|chat_template\.jinja|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


def demand_replaceable(folder: Path, *, force: bool, parts: re.Pattern[str] = OF_A_MODEL, of: str = "a model") -> None:
    """Raise InputError unless there is nothing by the name ``folder``, or an empty folder, or one to be replaced.

    ``parts`` matches the names of what may be in it: files by their path from the folder, folders with a ``/`` behind.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError("there is something by this name that is not a folder", where=str(folder),
                         remedy="Give the name of a folder")  # fmt: skip
    if any(folder.iterdir()) and not force:
        raise InputError("the folder exists already and is not empty", where=str(folder),
                         remedy="Give another name, or --force to replace it")  # fmt: skip
    if foreign := next((name for name in _inside(folder) if not parts.fullmatch(name)), None):
        raise InputError(f"the folder holds {foreign!a}, which is not part of {of} and would be deleted",
                         where=str(folder), remedy="Give another name")  # fmt: skip


def _inside(folder: Path) -> Iterator[str]:
    """The path of everything in a folder: ``name`` of a regular file, ``name/`` of anything else."""
    for parent, folders, files in os.walk(folder):
        for name in sorted([*files, *folders]):
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix() + ("" if path.is_file() else "/")


def place_folder(temporary: Path, final: Path) -> None:
    """Give ``temporary``, whose files are on the disk, the name ``final``; an old folder of that name is deleted."""
    sync(temporary)
    old = None
    if final.exists():
        old = unfinished(final)
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        if old is not None:
            os.rename(old, final)
        raise
    sync(final.parent)
    if old is not None:
        with suppress(OSError):
            shutil.rmtree(old)
