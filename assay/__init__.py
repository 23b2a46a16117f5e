"""Assay: does the fast engine compute what the model file says?

    import assay
    model = assay.load("qwen2.5-coder-0.5b")                    # or a path; engine="reference" for the oracle
    print(assay.generate(model, "def fib(n):", max_tokens=64).text)
    for step in assay.stream_generate(model, "def fib(n):"):
        print(step.text, end="")

    print(assay.judge(model, "qwen2.5-coder-0.5b"))             # or your own engine: docs/adapters.md

``generate`` and ``stream_generate`` are the engine's own: the command line, the tests and the judge call the same.

The names below are imported when they are asked for: a room of this package (``assay.formats``, ``assay.reference``
...) must not bring in the floor above it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.engines import generate, generate_batch, load, stream_generate
    from assay.formats.contract.declaration import Declaration
    from assay.formats.contract.engine import Generation, Prompt, Sampling, Step
    from assay.judging.public import bisect, flips, judge
    from assay.judging.report import Report

__all__ = ["Declaration", "Generation", "Prompt", "Report", "Sampling", "Step", "bisect", "flips", "generate",
           "generate_batch", "judge", "load", "stream_generate"]  # fmt: skip

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "formats")):
    raise ImportError(  # a system without links has text files in their place, and a wheel built there has nothing
        "assay/formats is not a folder: in the repository it is a symbolic link to ../formats, and this copy has lost "
        "its links; clone with 'git clone -c core.symlinks=true', or install a wheel that was built where links work")

_HOMES = {
    **dict.fromkeys(("Generation", "Prompt", "Sampling", "Step"), "assay.formats.contract.engine"),
    **dict.fromkeys(("bisect", "flips", "judge"), "assay.judging.public"),
    "Declaration": "assay.formats.contract.declaration", "Report": "assay.judging.report",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "assay.engines")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
