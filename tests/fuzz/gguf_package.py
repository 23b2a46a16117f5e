"""The ``gguf`` package's verdict on a file, from a process of its own: on some files it hangs, and grows and grows."""

from __future__ import annotations

import resource
import select
import subprocess
import sys
import warnings
from pathlib import Path

ACCEPT = "accepted"
PATIENCE = 2.0
"""Seconds after which the package counts as hanging."""
MOST_MEMORY = 2 << 30


class Package:
    """Asks the process, and starts another if it had to be killed."""

    def __init__(self) -> None:
        self.process = self.started()

    def started(self) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   bufsize=1)  # fmt: skip
        assert process.stdout and process.stdout.readline() == "ready\n"  # importing takes its time
        return process

    def verdict(self, path: Path) -> str:
        """ACCEPT, or what it raises, which may be anything; ``"hangs"``."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{path}\n")
        if select.select([self.process.stdout], [], [], PATIENCE)[0] and (line := self.process.stdout.readline()):
            return line.rstrip("\n")
        self.close()
        self.process = self.started()
        return "hangs"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def answer() -> None:
    """Read paths, print verdicts, a line each."""
    from gguf import GGUFReader

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        verdict = ACCEPT
        try:
            GGUFReader(line.rstrip("\n"))
        except Exception as error:
            verdict = ascii(f"{type(error).__name__}: {str(error)[:500]}")
        print(verdict, flush=True)


if __name__ == "__main__":
    answer()
