"""The script that trains the built-in model: its text is right, its arithmetic is Qwen2's, a run can be resumed."""

from __future__ import annotations

import itertools
import json
import re
import unittest.mock
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.goldens.training import functions as training_functions
from assay.goldens.training import make_builtin
from assay.goldens.training import train as train
from assay.goldens.training.chats import chat
from assay.goldens.training.functions import ALL_TASKS, function, write


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.names[0])
def test_every_version_of_every_function_is_python(task: training_functions.Task) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        compile(write(rng, task), task.what, "exec")


CALLS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "fib": ((10,), 55), "factorial": ((5,), 120), "gcd": ((12, 18), 6), "is_prime": ((97,), True),
    "reverse": (("abc",), "cba"), "sum_list": (([1, 2, 3],), 6), "largest": (([3, 9, 2],), 9),
    "smallest": (([3, 9, 2],), 2), "count_vowels": (("banana",), 3), "power": ((2, 10), 1024),
    "median": (([5, 1, 3, 2],), 2.5), "binary_search": (([1, 3, 5, 7], 5), 2), "bubble_sort": (([3, 1, 2],), [1, 2, 3]),
    "insertion_sort": (([3, 1, 2],), [1, 2, 3]), "quicksort": (([3, 1, 2],), [1, 2, 3]), "collatz": ((6,), 8),
    "sum_digits": ((1234,), 10), "flatten": (([[1], [2, 3]],), [1, 2, 3]), "clamp": ((7, 0, 5), 5),
    "is_leap_year": ((1900,), False), "divisors": ((12,), [1, 2, 3, 4, 6, 12]),
    "chunks": (([1, 2, 3], 2), [[1, 2], [3]]),
    "word_count": (("a b a",), {"a": 2, "b": 1}), "unique": (([1, 1, 2],), [1, 2]), "fibs": ((5,), [0, 1, 1, 2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_functions_do_what_they_say(name: str) -> None:
    """Whatever names were drawn; a model trained on wrong code would write wrong code."""
    rng, (arguments, wanted) = np.random.default_rng(1), CALLS[name]
    task = next(task for task in ALL_TASKS if task.names[0] == name)
    for _ in range(20):
        names: dict[str, Any] = {}
        exec(write(rng, task, name=name), names)
        assert names[name](*arguments) == wanted


def test_sums_in_chats_are_right() -> None:
    rng = np.random.default_rng(2)
    said = [message["content"] for _ in range(2000) for message in chat(rng) if message["role"] == "assistant"]
    sums = [match for text in said if (match := re.fullmatch(r"(\d+) ([-+*]) (\d+) equals (\d+)\.", text))]
    assert len(sums) > 300
    for match in sums:
        a, sign, b, result = match.groups()
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)


def test_a_chat_is_what_the_template_writes() -> None:
    text = train.chat_text(np.random.default_rng(3))
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n")
    assert "<|im_end|>\n<|im_start|>assistant\n" in text


def test_a_function_may_be_cut_where_a_prompt_would_cut_it() -> None:
    rng = np.random.default_rng(4)
    pieces = [train.document(rng) for _ in range(200)]
    assert any(piece[0].endswith("):") for piece in pieces) and all(piece[-1] == "<|endoftext|>" for piece in pieces)


SOURCES = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (train, make_builtin, unittest.mock)]


def test_rows_are_full_and_depend_on_nothing_but_their_key() -> None:
    rng = np.random.default_rng(7)
    tokenizer = train.train_tokenizer([*SOURCES, *(function(rng) for _ in range(1000))])
    rows = train.Rows(tokenizer, SOURCES)
    ids, documents = rows.batch(1, 2)
    assert ids.shape == documents.shape == (train.BATCH, train.ROW + 1)
    assert np.array_equal(rows.batch(1, 2)[0], ids) and not np.array_equal(rows.batch(1, 3)[0], ids)
    packed, numbers = rows.packed(np.random.default_rng(5))
    ends = np.flatnonzero(packed == tokenizer.token_to_id("<|endoftext|>"))
    assert np.array_equal(np.flatnonzero(np.diff(numbers)), ends[ends < train.ROW])  # a document ends at its end token


def test_its_arithmetic_is_that_of_the_oracle(builtin_f64: Any) -> None:
    """Trained with another rotation or mask, the file would say one thing and mean another."""
    file = open_model(BUILTIN)
    params = {name: jnp.asarray(tensor.decode().reshape(tensor.shape)) for name, tensor in file.tensors.items()}
    ids = [*builtin_f64.tokenizer.encode("def fib(n):\n    return n\n"), 0]
    half = len(ids) // 2
    row = jnp.array([[*ids, *ids[:half]]])
    found = np.asarray(train.forward(params, row, jnp.array([[0] * len(ids) + [1] * half])))[0]
    whole, other = builtin_f64.forward(ids), builtin_f64.forward(ids[:half])  # two documents do not see one another
    wanted = np.concatenate([whole, other])
    # Sums of up to 768 products through 4 layers: some 1e-6 in f32, and positions shifted by the first document
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-4


def test_muon_s_update_has_singular_values_of_about_one() -> None:
    g = np.random.default_rng(6).standard_normal((24, 64)).astype(np.float32) * 1e-3
    for matrix in (g, g.T):
        values = np.linalg.svd(np.asarray(train.orthogonal(jnp.asarray(matrix))), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [train.rate_at(step, 1000) for step in range(1, 1001)]
    assert rates[0] < rates[train.WARM_UP - 2] < rates[train.WARM_UP - 1] == rates[598] == 1
    assert all(a > b for a, b in itertools.pairwise(rates[600:])) and 0 < rates[-1] < 0.01


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy of one layer: weights after four steps are the same, stopped after two or not."""
    for name, value in {"N_LAYERS": 1, "BATCH": 2, "ROW": 24, "SAVE_EVERY_S": 0.0}.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(train, "library", lambda: (SOURCES, SOURCES))
    steps = train.Rows.batch

    def interrupted(self: Any, *key: int) -> Any:
        if key[-1] == 3:
            raise KeyboardInterrupt
        return steps(self, *key)

    folders = [tmp_path / name for name in ("whole", "resumed")]
    for folder in folders:
        folder.mkdir()
    (record,) = list(train.train(folders[0], 4))
    assert record["step"] == 4 and 0 < record["loss"] < 20 and set(record["held_out"]) == {"library", "documents"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Rows, "batch", interrupted)
        list(train.train(folders[1], 4))
    list(train.train(folders[1], 4))
    whole, resumed = (np.load(folder / "weights.npz") for folder in folders)
    assert set(whole.files) == set(resumed.files) == {f"params/{name}" for name in train.shapes()}
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole.files)
    words = make_builtin.vocabulary(json.loads((folders[0] / "tokenizer.json").read_text(encoding="utf-8")))
    assert len(words["tokens"]) == len(words["kinds"]) == train.N_VOCAB
