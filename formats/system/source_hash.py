"""The source of packages as a number: what was kept of their results is found again only while they are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType


def source_digest(*packages: ModuleType) -> str:
    """SHA-256 of all Python files of these packages, names included, in hex."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
