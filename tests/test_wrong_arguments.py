# pyright: reportArgumentType=false, reportCallIssue=false
"""Every public function, every argument: a value of a wrong type is an InputError that names the argument."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import assay
from assay import accel, engines, reference
from assay.accel.chat import render as accel_render
from assay.formats import InputError, blocks, open_model
from assay.formats.containers.opening import open_container
from assay.formats.contract.engine import Prompt, Sampling
from assay.formats.conversion.convert import convert
from assay.formats.inspection import checks, diff, stats
from assay.formats.quantizers import quantize
from assay.formats.quantizers.quantization_mix import chosen_types
from assay.formats.quantizers.whole_tensors import quantized_arrays
from assay.goldens import BUILTIN
from assay.judging import engines_under_test, judge, test_matrix
from assay.parity import bisect, distance, divergence, dump, flips, free_run, prediction, stages
from assay.reference.chat import render as reference_render

NEVER = (None, 2.5, b"bytes", object(), {1}, Ellipsis)
"""No argument of the table below may be one of these, but for those that its kind allows."""
WRONG: dict[str, tuple[Any, ...]] = {
    "integer": (*NEVER, True, 3.0, "3", [1], np.float32(3), np.bool_(True), 10**5000, np.array([1]), (i for i in [1])),
    "integer or none": (2.5, True, 3.0, "3", [1], b"3", 10**5000),
    "number": (None, b"1", object(), True, "0.5", [0.5], float("nan"), np.float64("nan"), 1j, 10**5000),
    "flag": (*NEVER, 0, 1, "yes", [], np.array([True])),
    "flag or none": (2.5, 0, "yes", []),
    "text": (*NEVER, True, 3, ["a"], Path("a"), np.array(["a"])),
    "text or none": (2.5, True, 3, ["a"], b"a"),
    "text or prompt": (*NEVER, True, 3, ["a"], [1]),
    "texts": (*NEVER, True, 3, [1], ["a", None], [b"a"], {"a": 1}, (s for s in "ab")),
    "ids": (*NEVER, True, 3, "text", [1, 2.0], [True], ["1"], [[1]], [None], {1: 1}, np.array([1.0]), np.array(1),
            np.array([[1, 2]]), (i for i in [1]), [10**5000]),
    "prompt": (*NEVER, True, 3, [1, 2.0], [True], ["1"], [[1]], {1: 1}, np.array([1.0]), np.array([[1, 2]]),
               (i for i in [1]), range),
    "prompts": (*NEVER, True, 3, "hi", b"hi", [1, 2], [None], np.array([1, 2]), {"hi": 1}),
    "some ids": (*NEVER, True, 3, "text", [1, 2.0], [True], ["1"], {1: 1}, np.array([1.0])),
    "messages": (*NEVER, True, 3, "text", ["text"], [1], {"role": "user"}),
    "messages or none": (2.5, True, "text", ["text"], [1], {"role": "user"}),
    "path": (*NEVER, True, 3, ["a"], b"/tmp"),
    "array": (*NEVER, True, 3, "text", [1.0], [[1]]),
    "record": (*NEVER, True, 3, "builtin", [1], {"a": 1}),
    "record or none": (2.5, True, 3, "builtin", [1]),
    "function": (*NEVER[1:], 3, "text", [len]),
}  # fmt: skip

GENERATING = {"model": "record", "prompt": "prompt", "max_tokens": "integer or none", "sampling": "record or none",
              "stop": "texts", "logprobs": "integer", "cache": "record or none"}  # fmt: skip
JUDGING = {"model": "path", "path": "text", "declaration": "record or none", "chat": "flag", "runs": "integer",
           "arith": "text or none", "cache_type": "text or none", "progress": "function"}  # fmt: skip
STREAMING = {**GENERATING, "timings": "record or none"}
BATCHING = {key: kind for key, kind in GENERATING.items() if key not in ("prompt", "cache")} | {"prompts": "prompts"}
RENDERING = {"messages": "messages", "template": "text or none", "control_tokens": "texts", "tools": "messages or none",
             "add_generation_prompt": "flag or none", "continue_final_message": "flag", "special_in_content": "flag",
             "bos_token": "text", "eos_token": "text", "now": "record or none"}  # fmt: skip
LOADING = {"model": "path", "arith": "text", "nfc": "flag"}
OF_A_MODEL = {
    "chat_prompt": {"messages": "messages", "tools": "messages or none", "add_generation_prompt": "flag or none",
                    "continue_final_message": "flag"},
    "forward": {"ids": "ids", "tap": "function"}, "prefill": {"ids": "ids", "cache": "record or none"},
    "decode": {"token": "integer", "cache": "record"},
}  # fmt: skip
OF_A_TOKENIZER = {"encode": {"prompt": "text or prompt", "special": "flag", "bos": "flag or none"},
                  "decode": {"ids": "some ids", "special": "flag"}, "stream": {"special": "flag"},
                  "bytes_of": {"token_id": "integer"}}  # fmt: skip
OF_A_FILE = {"check_known": {"ids": "ids"}, "check_ids": {"ids": "ids", "n_past": "integer", "max_tokens": "integer"},
             "room_after": {"ids": "ids", "max_tokens": "integer or none"}}  # fmt: skip
PUBLIC: dict[Any, dict[str, str]] = {
    assay.load: {"model": "path", "engine": "text", "arith": "text or none", "cache_type": "text or none",
                 "nfc": "flag", "cache_weights": "flag"},
    assay.generate: {"prompt": "prompt"}, assay.stream_generate: {"prompt": "prompt"},
    assay.generate_batch: {"prompts": "prompts"}, engines.find: {"model": "path"},
    reference.load: {**LOADING, "cache_weights": "flag"}, accel.load: {**LOADING, "cache_type": "text or none"},
    reference.generate: GENERATING, accel.generate: GENERATING, accel.generate_batch: BATCHING,
    reference.stream_generate: STREAMING, accel.stream_generate: {**STREAMING, "interval": "number"},
    reference_render: RENDERING, accel_render: RENDERING,
    Sampling: {"temperature": "number", "top_k": "integer", "top_p": "number", "min_p": "number",
               "repeat_penalty": "number", "seed": "integer"},
    Prompt: {"text": "text", "literal": "prompts"},
    open_model: {"path": "path"}, open_container: {"path": "path"},
    convert: {"source": "path", "target": "path", "to": "text or none", "treatment": "text or none", "every": "flag",
              "force": "flag", "shard_bytes": "integer or none", "progress": "function"},
    quantize: {"type_name": "text", "values": "array", "where": "text", "first_row": "integer",
               "threads": "integer or none"},
    chosen_types: {"shapes": "record", "mix": "text", "pure": "flag", "by_name": "flag"},
    quantized_arrays: {"arrays": "record", "mix": "text", "pure": "flag"},
    **{function: {"type_name": "text", "raw": "array"} for function in (blocks.dequantize, blocks.unpack,
                                                                         blocks.finite)},
    blocks.encode: {"type_name": "text", "values": "array"}, blocks.pack: {"type_name": "text", "quants": "record"},
    checks.validate: {"container": "record", "progress": "function"},
    diff.compare: {"a": "record", "b": "record", "progress": "function"},
    stats.stats_of: {"container": "record", "name": "text"}, stats.all_stats: {"container": "record"},
    engines_under_test.engines_under_test: {"file": "record", "engine": "text", "arith": "text or none"},
    judge.judge_stages: {"under_test": "record", "ids": "ids", "path": "text", "runs": "integer",
                         "progress": "function"},
    judge.judge_flips: {"under_test": "record", "ids": "ids", "path": "text", "runs": "integer",
                        "progress": "function"},
    judge.judge_free_run: {"under_test": "record", "ids": "ids", "n": "integer", "runs": "integer"},
    assay.judge: {**JUDGING, "tier": "text", "independent": "flag"}, assay.bisect: JUDGING,
    assay.flips: {**JUDGING, "free": "integer", "endpoint_model": "text or none", "insecure_key": "flag"},
    test_matrix.run: {"file": "record", "names": "texts", "runs": "integer", "progress": "function"},
    distance.distance: {"found": "array", "truth": "array"},
    bisect.bisect: {"candidate": "record", "ids": "ids", "limits": "record", "tolerance": "number"},
    stages.capture: {"engine": "record", "ids": "ids"}, stages.local: {"engine": "record", "ids": "ids"},
    stages.accumulated: {"engine": "record", "ids": "ids"},
    stages.noise_floor: {"oracle": "record", "ids": "ids", "declared": "record", "runs": "integer"},
    flips.teacher_forced: {"truth": "record", "oracle": "record", "candidate": "record", "ids": "ids",
                           "declared": "record", "n_vocab": "integer", "runs": "integer", "seed": "integer"},
    flips.observe: {"predicted": "record", "found": "array", "following": "ids"},
    flips.account: {"positions": "record"}, free_run.free_run: {"prompt": "ids", "answer": "ids"},
    prediction.predict: {"exact": "array", "oracle": "record", "ids": "ids", "runs": "integer", "seed": "integer"},
    divergence.divergence: {"exact": "array", "found": "array", "rows": "integer"},
    divergence.statistics: {"found": "record"}, dump.read: {"folder": "path"},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return reference.load(BUILTIN)


def methods(model: Any) -> dict[Any, dict[str, str]]:
    """Bound, so that their first argument is there."""
    fast = accel.tokenizer.Tokenizer(model.file.vocabulary)  # type: ignore[attr-defined]
    of_accel = {getattr(accel.Model, name).__get__(object.__new__(accel.Model)): kinds
                for name, kinds in OF_A_MODEL.items()}  # fmt: skip
    return {
        **{getattr(model, name): kinds for name, kinds in OF_A_MODEL.items()}, **of_accel,
        **{getattr(one, name): kinds for one in (model.tokenizer, fast) for name, kinds in OF_A_TOKENIZER.items()},
        **{getattr(model.file, name): kinds for name, kinds in OF_A_FILE.items()},
        model.tokenizer.stream().push: {"token_id": "integer"}, fast.stream().push: {"token_id": "integer"},
        next(iter(model.file.tensors.values())).rows: {"start": "integer", "stop": "integer"},
    }  # fmt: skip


def refused(function: Any, name: str, value: Any) -> str | None:
    """None if ``value`` as the argument ``name`` is an InputError that names it; else what came instead.

    All other arguments are left as they are by default, or passed over by a value that stands for anything.
    """
    given = {key: ANYTHING for key, one in inspect.signature(function).parameters.items()
             if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}  # fmt: skip
    try:
        said = function(**{**given, name: value})
    except InputError as error:
        return None if error.where.startswith(name) else f"InputError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"the answer {said!r}"[:80]


class Anything:
    """Fits every annotation."""


ANYTHING = Anything()


@pytest.fixture(autouse=True)
def anything_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the argument that is tried is looked at."""
    from assay.formats.contract import arguments

    real = arguments.fit
    monkeypatch.setattr(arguments, "fit", lambda hint, value, *place: value if value is ANYTHING else
                        real(hint, value, *place))  # fmt: skip


def test_a_wrong_type_is_an_input_error_that_names_the_argument(model: Any) -> None:
    found = [
        f"{function.__qualname__}({name}={value!r:.40}): {said}"
        for function, kinds in {**PUBLIC, **methods(model)}.items()
        for name, kind in kinds.items()
        for value in WRONG[kind]
        if (said := refused(function, name, value))
    ]
    assert not found, "\n".join(found)


def test_what_is_not_an_engine() -> None:
    for function, asked in ((assay.generate, "Hi"), (assay.stream_generate, [1]), (assay.generate_batch, ["Hi"])):
        for wrong in (None, "builtin", BUILTIN, 3, object(), Sampling, reference):
            with pytest.raises(InputError, match="is not an engine"):
                function(wrong, asked)


def test_every_public_function_is_in_the_table() -> None:
    for room in (assay, reference, accel):
        for name in room.__all__:
            if inspect.isfunction(one := getattr(room, name)):
                assert one in PUBLIC, name


@pytest.mark.parametrize("engine", ["builtin_f32", "builtin_accel"])
def test_a_text_is_one_stop(engine: str, request: pytest.FixtureRequest) -> None:
    loaded = request.getfixturevalue(engine)
    whole = assay.generate(loaded, "def fib(n):", max_tokens=8).text
    stop = whole[3:6]
    for given in (stop, [stop], (stop,), np.array([stop])):
        answer = assay.generate(loaded, "def fib(n):", max_tokens=8, stop=given)
        assert (answer.text, answer.stopped_by) == (whole[: whole.index(stop)], stop)
    assert assay.generate(loaded, "def fib(n):", max_tokens=8, stop=whole[5::-1]).text == whole, "its letters are not"


@pytest.mark.parametrize("engine", ["builtin_f32", "builtin_accel"])
def test_what_fits_is_read_as_plain_python(engine: str, request: pytest.FixtureRequest) -> None:
    loaded = request.getfixturevalue(engine)
    ids = loaded.tokenizer.encode("def fib(n):")
    expected = assay.generate(loaded, ids, max_tokens=4, logprobs=1)
    for given in (tuple(ids), np.array(ids), np.array(ids, np.uint16), list(np.array(ids)), Prompt("def fib(n):")):
        answer = assay.generate(loaded, given, max_tokens=np.int32(4), logprobs=np.uint8(1))
        assert (answer.ids, answer.prompt_ids) == (expected.ids, ids)
        assert all(type(i) is int for i in answer.prompt_ids)
    logits = loaded.forward(ids)
    assert np.array_equal(loaded.forward(np.array(ids)), logits)
    assert loaded.tokenizer.decode(np.array(ids)) == loaded.tokenizer.decode(iter(ids)) == "def fib(n):"


def test_settings_of_numpy_are_the_same_settings() -> None:
    ours = Sampling(0.5, 3, 0.25, 0.5, 2.0, 7)
    theirs = Sampling(np.float32(0.5), np.int8(3), np.float64(0.25), np.float16(0.5), 2, np.uint64(7))
    assert theirs == ours
    assert [type(value) for value in vars(theirs).values()] == [float, int, float, float, float, int]


@pytest.mark.parametrize("literal", [((2, 1),), ((0, 2), (1, 3)), ((-1, 1),), ((1,),), (1, 2)])
def test_ranges_of_a_prompt(literal: Any) -> None:
    with pytest.raises(InputError, match="literal"):
        Prompt("text", literal)


@pytest.mark.parametrize(("value", "said"), [
    (2.5, "max_tokens of generate: 2.5 is a float. Give an integer or None"),
    (True, "max_tokens of generate: True is a bool. Give an integer or None"),
    ("7", "max_tokens of generate: '7' is a str. Give an integer or None"),
    ([7], "max_tokens of generate: it is a list. Give an integer or None"),
])  # fmt: skip
def test_the_line(model: Any, value: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        reference.generate(model, "Hi", max_tokens=value)
    assert str(caught.value) == said
    with pytest.raises(InputError, match=r"prompt\[1\] of generate: 2.5 is a float"):
        reference.generate(model, [1, 2.5])
