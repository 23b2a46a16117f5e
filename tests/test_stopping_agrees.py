"""How an answer ends, on both engines: on a model that follows a script, so that every token is known beforehand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from tests.model_builder import KINDS, TOKENS, Shape, build, tensors_of

SCRIPT = ["S", "aENDb", "Ġret", "urn", "Ã", "©", "Ġx", "y", "<|im_end|>"]
"""Each token is followed by the next; the text is ``aENDb returné xy``."""
OTHER = ["T", "z", "<|endoftext|>"]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that add nothing, one-hot embeddings, and an output matrix that scores the successor of each token."""
    added = ["aENDb", "Ġret", "urn", "Ġx"]
    tokens, kinds = [*TOKENS, *added], [*KINDS, *[1] * len(added)]
    shape = Shape(hidden=len(tokens) + len(tokens) % 2, n_heads=1, head_dim=2, ffn=2, tied=False)
    embedding = np.eye(len(tokens), shape.hidden, dtype=np.float32)
    output = np.zeros((len(tokens), shape.hidden), np.float32)
    for chain in (SCRIPT, OTHER):
        for a, b in pairwise(chain):
            output[tokens.index(b), tokens.index(a)] = 1
    tensors = tensors_of(shape)
    silent = {name: (tensors[name][0] * 0, "F32") for name in ("blk.0.attn_output.weight", "blk.0.ffn_down.weight")}
    gain = np.ones(shape.hidden, np.float32)
    return build(tmp_path_factory.mktemp("script") / "script.gguf", shape,
                 metadata={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds},
                 tensors={"token_embd.weight": (embedding, "F32"), "output.weight": (output, "F32"),
                          "output_norm.weight": (gain, "F32"), **silent})  # fmt: skip


@pytest.fixture(scope="module", params=["reference", "accel"])
def speaker(request: pytest.FixtureRequest, script: Path) -> tuple[Any, Any]:
    """(engine package, model that follows the script)."""
    engine = {"reference": reference, "accel": accel}[request.param]
    return engine, engine.load(script, arith="f32")


@pytest.mark.parametrize(("stop", "text", "n_ids", "stopped_by"), [
    ((), "aENDb returné xy", 8, "<|im_end|>"),
    (("END",), "a", 1, "END"),  # inside one token
    (("aENDb",), "", 1, "aENDb"),
    (("b ret",), "aEND", 2, "b ret"),  # over the edge of two
    ((" return",), "aENDb", 3, " return"),
    (("b returné x",), "aEND", 6, "b returné x"),  # over six
    (("é",), "aENDb return", 5, "é"),  # a character of two tokens
    (("ret", "return"), "aENDb ", 2, "ret"),  # a prefix of another
    (("urn", "return"), "aENDb ", 3, "return"),  # the earlier place counts, not the shorter text
    (("retu", "return"), "aENDb ", 3, "retu"),  # at one place the smaller
    (("returned", "xyz"), "aENDb returné xy", 8, "<|im_end|>"),  # begun, held back, never completed
    (("", "xy"), "aENDb returné ", 7, "xy"),
    (("<|im_end|>",), "aENDb returné xy", 8, "<|im_end|>"),
], ids=repr)  # fmt: skip
def test_stop_texts(speaker: tuple[Any, Any], stop: tuple[str, ...], text: str, n_ids: int, stopped_by: str) -> None:
    engine, model = speaker
    answer = engine.generate(model, "S", max_tokens=20, stop=stop)
    assert (answer.text, answer.finish_reason, answer.stopped_by) == (text, "stop", stopped_by)
    assert [model.file.vocabulary.tokens[i] for i in answer.ids] == SCRIPT[1 : n_ids + 1]
    steps = list(engine.stream_generate(model, "S", max_tokens=20, stop=stop))
    assert "".join(step.text for step in steps) == text
    assert [step.id for step in steps] == answer.ids
    assert [step.finish_reason for step in steps] == [None] * (n_ids - 1) + ["stop"]


def test_nothing_is_shown_that_may_yet_be_taken_back(speaker: tuple[Any, Any]) -> None:
    engine, model = speaker
    pieces = [step.text for step in engine.stream_generate(model, "S", max_tokens=20, stop=["b return!", "é y"])]
    assert pieces == ["aEND", "", "", "", "b return", "é x", "y", ""]


def test_either_end_token_ends(speaker: tuple[Any, Any]) -> None:
    engine, model = speaker
    answer = engine.generate(model, "T", max_tokens=20)
    assert (answer.text, answer.finish_reason, answer.stopped_by) == ("z", "stop", "<|endoftext|>")
    assert answer.ids[-1] in model.file.vocabulary.end_ids


@pytest.mark.parametrize(("n", "text"), [(1, "aENDb"), (3, "aENDb return"), (4, "aENDb return�"),
                                         (6, "aENDb returné x")])  # fmt: skip
def test_max_tokens(speaker: tuple[Any, Any], n: int, text: str) -> None:
    engine, model = speaker
    answer = engine.generate(model, "S", max_tokens=n)
    assert (len(answer.ids), answer.text, answer.finish_reason, answer.stopped_by) == (n, text, "length", None)
    assert len(answer.margins) == len(answer.logprobs) == n


def test_an_end_token_on_the_last_step_is_a_stop(speaker: tuple[Any, Any]) -> None:
    engine, model = speaker
    assert engine.generate(model, "S", max_tokens=8).finish_reason == "stop"


def test_a_conversation_is_not_read_again(speaker: tuple[Any, Any]) -> None:
    engine, model = speaker
    cache = model.new_cache()
    first = engine.generate(model, "S", max_tokens=3, cache=cache)
    again = engine.generate(model, [*first.prompt_ids, *first.ids], max_tokens=2, cache=cache)
    assert again.text == "é" and again.timings.prefill_tokens == 1
    other = engine.generate(model, "T", max_tokens=2, cache=cache)  # nothing in common with what the cache holds
    assert other.text == "z"
    assert engine.generate(model, "S", max_tokens=1, cache=cache).text == "aENDb"
