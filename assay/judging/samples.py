"""What is read where nothing is given: a few lines of code, then as much more as it takes to cross the boundaries that
the candidate declares.

Many faults have no other place to show: a second block of attention, a cache that grows, the second chunk of a prompt.
"""

from __future__ import annotations

import textwrap
from inspect import getsource
from typing import Any

from assay.parity.ways import WIDTH, crossing

SHORT = "def fib(n):\n    if n < 2:\n        return n\n    return"
LONG = f"{SHORT} fib(n - 1) + fib(n - 2)\n\n\n{getsource(textwrap)}"
QUICK = {"prefill": 256, "decode": 512}
"""Tokens that are read at most, by path: a prompt as far as one size of the cache is enough (for each further one a
program with taps is compiled, 5 s), steps to where it grows once."""
FULL = 1_024 + WIDTH["prefill"]
"""Beyond two chunks, and two sizes that a cache grows to."""


def default_sample(judged: Any, chat: bool, path: str, *, full: bool = False) -> list[int]:
    """The ids that both sides make of the default text; SampleError where they differ.

    A chat is not cut, so that it ends as one does: its message has the first characters, three for each token wanted.
    """
    context = judged.file.config.context_length
    n = crossing(judged.candidate.fingerprint(), path, min(FULL if full else QUICK[path], context))
    if chat:
        return judged.sample(LONG[: 3 * n], None, True)[:context]
    return judged.sample(LONG, None, False)[:n]
