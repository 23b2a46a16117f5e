"""The judge on the real 0.5B, by tokens. By stages it is not calibrated there yet (docs/parity.md)."""

from __future__ import annotations

import pytest

from assay.arms import opened
from assay.engines import find
from assay.judging import judge_flips
from assay.progress import quiet
from formats import open_model
from parity.flips import account
from parity.verdict import Verdict, of_flips

TEXT = "def fib(n):\n    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n"


@pytest.mark.real
def test_llama_cpp_drifts_as_its_arithmetic_says() -> None:
    with opened(open_model(find("qwen2.5-coder-0.5b")), "llama.cpp", None, None, taps=False) as judged:
        ids = judged.sample(TEXT * 3, None, chat=False)
        positions = judge_flips(judged, ids, "decode", 4, quiet)
        assert positions is not None
        counted = account(positions)
        assert of_flips(counted, judged.declared(1)) == Verdict.DRIFT
        assert 1e-5 < counted.kl_mean < 1e-2
