"""The real models through both engines, and through llama.cpp: ``pytest -m real``."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from assay import accel, reference
from assay.formats import ModelFile, open_model

pytestmark = pytest.mark.real
QUESTION = [{"role": "user", "content": "What is 2+2?"}]


class Engines(NamedTuple):
    """One real model, opened once, in every arithmetic; the oracle's decoded weights are shared."""

    file: ModelFile
    truth: Any
    oracle: Any
    fast: Any


both = pytest.mark.parametrize("engines", ["real_05b", "real_15b"], indirect=True, scope="module")
half_billion = pytest.mark.parametrize(
    "engines", ["real_05b", pytest.param("real_15b", marks=pytest.mark.real_slow)], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest) -> Engines:
    file = open_model(request.getfixturevalue(request.param))
    truth = reference.load(file, arith="f64", cache_weights=True)
    oracle = reference.load(file, arith="f32")
    oracle.weights = truth.weights
    return Engines(file, truth, oracle, accel.load(file, arith="f32"))


@half_billion
def test_both_engines_write_the_same_python(engines: Engines) -> None:
    ours = reference.generate(engines.oracle, "def fib(n):", max_tokens=64)
    theirs = accel.generate(engines.fast, "def fib(n):", max_tokens=64)
    assert_same_ids(engines, ours.prompt_ids, ours.ids, theirs.ids)
    assert parses("def fib(n):" + theirs.text)


def parses(source: str) -> bool:
    """Whether ``source`` is Python, up to a closing Markdown fence (Instruct models write one after their code)
    and leaving aside a last block that the token limit may have cut short."""
    blocks = source.split("```")[0].split("\n\n")
    for n in (len(blocks), len(blocks) - 1):
        try:
            tree = ast.parse("\n\n".join(blocks[:n]))
        except SyntaxError:
            continue
        return any(isinstance(node, ast.FunctionDef) and node.name == "fib" for node in tree.body)
    return False


@both
def test_both_engines_answer_a_question_and_stop(engines: Engines) -> None:
    prompts = [m.chat_prompt(QUESTION) for m in (engines.oracle, engines.fast)]
    assert prompts[0] == prompts[1]
    ours = reference.generate(engines.oracle, prompts[0], max_tokens=32)
    theirs = accel.generate(engines.fast, prompts[1], max_tokens=32)
    assert_same_ids(engines, ours.prompt_ids, ours.ids, theirs.ids)
    assert "4" in theirs.text
    assert (theirs.finish_reason, theirs.stopped_by) == ("stop", "<|im_end|>")


@both
@pytest.mark.parametrize("kind", ["raw", "chat"])
def test_logits_are_within_rounding_of_the_truth(engines: Engines, kind: str) -> None:
    """Probabilistic bound for f32: each layer adds a relative error of at most u·sqrt(K) to the residual stream
    (Higham and Mary, 2019), K the longest sum; the layers' errors add up at worst linearly."""
    config = engines.file.config
    bound = 2.0**-24 * math.sqrt(config.ffn_size) * config.n_layers
    prompt = "def fib(n):\n    if n < 2:" if kind == "raw" else engines.fast.chat_prompt(QUESTION)
    ids = engines.fast.tokenizer.encode(prompt)
    exact = engines.truth.forward(ids)
    for model in (engines.oracle, engines.fast):
        assert np.linalg.norm(model.forward(ids) - exact) < bound * np.linalg.norm(exact)


@half_billion
def test_reading_one_by_one_is_reading_at_once(engines: Engines) -> None:
    ids = engines.fast.tokenizer.encode("for i in range(10):\n    print(i)")
    for model in (engines.oracle, engines.fast):
        whole = model.forward(ids)
        logits, cache = model.prefill(ids[:5])
        for at in range(5, len(ids)):
            # Same sums in another order: the difference of two f32 results, each within the bound above.
            assert np.abs(logits - whole[at - 1]).max() < 1e-3 * np.abs(whole).max()
            logits, cache = model.decode(ids[at], cache)


@both
@pytest.mark.real_slow
def test_llama_cpp_agrees(engines: Engines) -> None:
    """llama.cpp rounds activations to 8 bits, so it is compared with the oracle's arithmetic of that name."""
    emulated = reference.load(engines.file, arith="ggml")
    ids = engines.fast.tokenizer.encode("def fib(n):")
    theirs = llama_cpp_greedy(engines.file.path, ids, 16)
    assert_same_ids(engines, ids, reference.generate(emulated, ids, max_tokens=16).ids, theirs)


def llama_cpp_greedy(path: Path, ids: list[int], n: int) -> list[int]:
    """Greedy ids of llama.cpp after ``ids``, in a process of its own."""
    program = Path(__file__).with_name("llama_cpp_greedy.py")
    command = [sys.executable, str(program), str(path), json.dumps(ids), str(n)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return json.loads(run.stdout.strip().splitlines()[-1])


def assert_same_ids(engines: Engines, prompt_ids: list[int], ours: list[int], theirs: list[int]) -> None:
    """Equal, or first different where the truth itself is nearly a tie.

    How near is measured, not chosen: the larger of what f32 and 8-bit activations shift the two logits' difference
    at that very position, doubled, because each side may shift it.
    """
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if same is None:
        assert len(ours) == len(theirs)
        return
    context = prompt_ids + ours[:same]
    pair = [ours[same], theirs[same]]
    exact = engines.truth.forward(context)[-1][pair]
    noise = max(
        abs(np.diff(exact)[0] - np.diff(model.forward(context)[-1][pair].astype(np.float64))[0])
        for model in (engines.oracle, reference.load(engines.file, arith="ggml"))
    )
    margin = abs(float(np.diff(exact)[0]))
    assert margin < 2 * noise, f"token {same}: {pair}, margin {margin:.4f} under f64, noise {noise:.2e}"


PEAK = """import atexit
from assay import cli
from assay.benchmark.machine import peak_rss
atexit.register(lambda: print(peak_rss()))
cli.main()
"""
"""The command line, and then the bytes that it took. (What a parent is told of its child's peak counts the parent's own
memory, which the child shares until it begins.)"""


def test_the_oracle_stays_small(real_05b: Path) -> None:
    command = [sys.executable, "-c", PEAK, "run", "def fib(n):", "-m", str(real_05b), "-e", "reference", "-n", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    assert 100_000_000 < int(done.stdout.split()[-1]) < 1_500_000_000
