"""What is said of the machine and of processes."""

import subprocess
import sys
import time

import pytest

from assay.benchmark.machine import machine, n_threads, peak_rss, process_age, versions

AGE = "import time; time.sleep(0.5); from assay.benchmark.machine import process_age; print(process_age())"
GROWING = """from assay.benchmark.machine import peak_rss
a = peak_rss(); b = b'x' * (200 << 20); del b; print(peak_rss() - a)"""


def printed(program: str) -> float:
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(process_age() is None, reason="the system does not tell when a process started")
def test_the_age_of_a_process_runs_from_its_creation() -> None:
    started = time.perf_counter()
    age = printed(AGE)
    assert 0.49 < age < time.perf_counter() - started + 0.02  # a clock tick on either side is 0.01 s


def test_peak_rss_keeps_what_was_given_back() -> None:
    assert printed(GROWING) > 199 << 20


def test_peak_rss_of_another_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        there = peak_rss(process.pid)
    mine = peak_rss()
    assert mine is not None and mine > 10 << 20
    assert there is None or 0 < there < mine
    assert peak_rss(2**22 + 1) is None  # beyond the largest process id that Linux gives


def test_the_machine_is_described() -> None:
    facts = machine()
    assert facts["threads"] == n_threads() >= 1
    assert versions(("numpy", "no-such-package")) == {"numpy": facts["numpy"]}
