"""Where things are kept between processes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``assay/NAME`` in the user's cache folder (XDG Base Directory); it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), "assay", name)
