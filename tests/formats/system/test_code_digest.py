"""A digest is the same for the same code, in any process, and another for code that computes something else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.accel import steps
from assay.formats import open_model
from assay.formats.contract.config import Config
from assay.formats.system.code_digest import digest
from assay.goldens import BUILTIN

DECODE = "from functools import partial; from assay.accel import steps; from assay.formats import open_model; " \
         "from assay.formats.system.code_digest import digest; from assay.goldens import BUILTIN; " \
         "from assay.judging.baseline import code; " \
         "print(digest(partial(steps.decode, open_model(BUILTIN).config, 'fast', 0, 1024)), code())"  # fmt: skip
FACTOR = 2


def scaled(x: float) -> float:
    return inner(x) * FACTOR


def inner(x: float) -> float:
    return x + 1


def decode() -> partial[Any]:
    return partial(steps.decode, open_model(BUILTIN).config, "fast", 0, 1024)


def test_it_is_the_same_in_every_process() -> None:
    """Compiled from source, read from ``__pycache__``, and whatever the order of sets."""
    here, said = digest(decode()), set()
    for flags, seed in (((), "1"), (("-B", "-X", "pycache_prefix=/nonexistent"), "2")):
        done = subprocess.run([sys.executable, *flags, "-c", DECODE], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)})  # fmt: skip
        program, floors = done.stdout.split()
        assert program == here
        said.add(floors)
    assert len(said) == 1 and said != {"None"}, "floors that were kept are not found again"


def broken(*arguments: Any, **named: Any) -> Any:
    return arguments[0]


@pytest.mark.parametrize("name", [
    "steps.rotate", "steps.rms_norm", "steps.attention", "steps.read", "steps.MOST_STEPS", "steps.jax.nn.silu",
    "attention.widened", "attention.WIDEST_BLOCK", "attention.lax.fori_loop", "matmul.integer_product",
    "matmul.FEW_TOKENS", "matmul.LAYOUTS", "matmul.dense_type", "quantize.largest", "quantize.jnp.round",
    "sampler.first_largest", "sampler.jax.nn.logsumexp", "blocks.DECODERS",
])  # fmt: skip
@pytest.mark.parametrize("by", ["function", "lambda", "jit", "cache"])
def test_whatever_is_replaced_in_memory_is_noticed(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of these is reached from ``steps.decode``."""
    before = digest(decode())
    *modules, last = f"assay.accel.{name}".split(".")
    owner: Any = sys.modules[".".join(modules[:3])]
    for attribute in modules[3:]:
        owner = getattr(owner, attribute)
    others: dict[str, Any] = {"function": broken, "lambda": lambda *a: a[-1], "jit": jax.jit(broken),
                              "cache": cache(broken)}  # fmt: skip
    is_data = not callable(getattr(owner, last))
    monkeypatch.setattr(owner, last, {"Q4_K": 1} if is_data else others[by])
    after = digest(decode())
    assert after != before and after is not None
    monkeypatch.undo()
    assert digest(decode()) == before


def test_a_method_or_property_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(decode())
    monkeypatch.setattr(Config, "n_groups", property(lambda self: 64), raising=False)
    one = digest(decode())
    monkeypatch.setattr(Config, "n_groups", property(lambda self: 65))
    assert None not in (one, two := digest(decode())) and len({before, one, two}) == 3


@pytest.mark.parametrize("change", ["constant", "inner", "default", "closure", "argument", "wraps"])
def test_what_a_function_reaches_counts(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def adder(n: int, by: Any = None) -> Callable[[float], float]:
        def add(x: float, most: Any = by) -> float:
            return x + n
        return add

    before = digest(partial(scaled, 1.0), adder(1))
    add, first = adder(1), 1.0
    if change == "constant":
        monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3)
    elif change == "inner":
        monkeypatch.setattr(sys.modules[__name__], "inner", lambda x: x + 2)
    elif change == "default":
        add = adder(1, by=2)
    elif change == "closure":
        add = adder(2)
    elif change == "argument":
        first = 2.0
    else:  # another function under the name of one that counts by its version
        monkeypatch.setattr(sys.modules[__name__], "inner", partial(jnp.add, 1))
    assert digest(partial(scaled, first), add) not in (None, before)


def test_data_counts_by_its_value() -> None:
    class Pair(NamedTuple):
        a: Any
        b: Any

    values = [1, 1.0, True, "1", b"1", None, (1,), [1], {1}, frozenset({2}), {"a": 1}, {"a": 2}, Pair(1, 2), Pair(2, 1),
              np.float32(1), np.ones(1), np.zeros(1), np.ones(1, np.int8), np.dtype("f4"), range(1),
              slice(1)]  # fmt: skip
    digests = [digest(value) for value in values]
    assert None not in digests and len(set(digests)) == len(values)
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"})
    looped: list[Any] = []
    looped.append(looped)
    assert digest(looped) is not None


@pytest.mark.parametrize("value", [Mock(), object(), iter([1]), np.array([object()]), partial(Mock()), {1: Mock()},
                                   sys.stderr.write],
                         ids=["mock", "object", "iterator", "array", "partial", "dictionary", "method"])  # fmt: skip
def test_what_could_do_anything_has_no_digest(value: Any) -> None:
    assert digest(value) is None


def test_a_comment_or_another_file_is_no_other_code() -> None:
    one: dict[str, Any] = {"__name__": "m"}
    other = dict(one)
    exec(compile("def f(x):\n    return x + 1\n", "a.py", "exec"), one)
    exec(compile("# longer\n\n\ndef f(x):\n    # adds\n    return x + 1\n", "b.py", "exec"), other)
    assert digest(one["f"]) == digest(other["f"])
