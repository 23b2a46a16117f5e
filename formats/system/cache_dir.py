"""Where things are kept between processes: models, compiled programs, noise floors.

    $ASSAY_HOME/NAME             if the user says so
    ~/.cache/assay/NAME          Linux; $XDG_CACHE_HOME in place of ~/.cache, where it is set
    ~/Library/Caches/assay/NAME  macOS
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_folder(name: str) -> Path:
    """The folder of what Assay keeps under ``name``; it need not exist."""
    return home() / name


def programs_folder() -> Path | None:
    """Where compiled programs are kept: of everything, or the absolute path in ``ASSAY_XLA_CACHE``; None if ``off``."""
    chosen = os.environ.get("ASSAY_XLA_CACHE", "")
    if chosen == "off":
        return None
    return Path(chosen) if os.path.isabs(chosen) else cache_folder("xla")


def home() -> Path:
    """The folder of everything that Assay keeps: ``ASSAY_HOME``, or else ``assay`` in the user's cache folder."""
    if chosen := os.environ.get("ASSAY_HOME"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    found = Path(user_cache_dir("assay", appauthor=False))
    # XDG_CACHE_HOME must be absolute, and is to be ignored otherwise (XDG Base Directory); older platformdirs obey it
    return found if found.is_absolute() else Path.home() / ".cache" / "assay"
