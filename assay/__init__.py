"""Assay: does the fast engine compute what the model file says?

    import assay
    model = assay.load("qwen2.5-coder-0.5b")                    # or a path; engine="reference" for the oracle
    print(assay.generate(model, "def fib(n):", max_tokens=64).text)
    for step in assay.stream_generate(model, "def fib(n):"):
        print(step.text, end="")

``generate`` and ``stream_generate`` are the engine's own: the command line, the tests and the judge call the same.
"""

from assay.engines import generate, generate_batch, load, stream_generate
from formats.protocol import Generation, Prompt, Sampling, Step

__all__ = ["Generation", "Prompt", "Sampling", "Step", "generate", "generate_batch", "load", "stream_generate"]
