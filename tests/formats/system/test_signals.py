"""Being told to end; what the commands make of it is tested with processes, in ``tests/assay/test_cli_errors.py``."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from assay.formats.system.signals import Ended, ending_when_told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_heeded_once_and_no_longer_than_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with pytest.raises(Ended) as told, ending_when_told():
        try:
            signal.raise_signal(number)
        finally:  # tidying up: a second one does not disturb it
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
    assert told.value.signal == number
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP))


def test_another_thread_changes_nothing() -> None:
    """Python lets only the main thread handle signals, and refuses others with a ValueError."""
    def handlers() -> list[object]:
        with ending_when_told():
            return [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers).result() == [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)]
