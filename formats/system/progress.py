"""How work says how far it has come, and the listener that does nothing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, label)``."""
Tick = Callable[[int], None]
"""Called as ``tick(n)`` when ``n`` more bytes, or elements, are done."""


def quiet(*_: object) -> None:
    """The listener where nobody listens, for a callback of any arguments."""
