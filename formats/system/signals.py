"""Being told to end: SIGTERM and SIGHUP become an exception, so that what is unfinished is removed on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Ended(BaseException):
    """We were told to end. It is not an ``Exception``, as Ctrl-C is not one."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


@contextmanager
def ending_when_told() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``Ended`` in the block, once: ``timeout`` sends a second one while we tidy up.

    A signal that whoever started us chose to ignore (``nohup``) stays ignored. Outside the main thread, where Python
    handles no signals, nothing changes.
    """
    def end(number: int, _: object) -> None:
        for one in heeded:
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, end) for one in heeded}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
