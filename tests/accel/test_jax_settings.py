"""JAX's settings are those of the process that uses the engine; none of them changes a bit of what it computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import assay.accel.programs
from assay import accel, engines
from assay.accel.jax_settings import DEFAULTS, default_device, own_settings
from assay.accel.model import Model
from assay.formats import InputError
from assay.formats.contract.engine import Sampling
from assay.goldens import BUILTIN

SETTINGS: list[tuple[str, Any]] = [
    ("jax_enable_x64", True), ("jax_transfer_guard", "disallow"), ("jax_numpy_dtype_promotion", "strict"),
    ("jax_numpy_rank_promotion", "raise"), ("jax_default_matmul_precision", "bfloat16"), ("jax_disable_jit", True),
    ("jax_debug_nans", True), ("jax_debug_infs", True), ("jax_check_tracer_leaks", True),
    ("jax_default_prng_impl", "rbg"), ("jax_enable_custom_prng", True), ("jax_threefry_partitionable", False),
    ("jax_log_compiles", True), ("jax_explain_cache_misses", True), ("jax_enable_checks", True),
    ("jax_no_tracing", True), ("jax_no_execution", True), ("jax_debug_key_reuse", True),
    ("jax_error_checking_behavior_nan", "raise"), ("jax_error_checking_behavior_oob", "raise"),
]  # fmt: skip
"""Process-wide; what JAX calls a setting's default is none of these."""
IDS = list(range(20))


@contextmanager
def everywhere(*settings: tuple[str, Any]) -> Iterator[None]:
    """Settings of the whole process, as its user makes them, for as long as the block lasts."""
    before = {name: jax.config.values[name] for name, _ in settings if name in jax.config.values}
    try:
        for name, value in (setting for setting in settings if setting[0] in before):  # JAX drops some, now and then
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def essentials(model: Model) -> list[Any]:
    """What an engine computes by a step, a chunk and a tapped program: numbers as they are, logits by their bytes."""
    drawn = Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, repeat_penalty=1.1, seed=7)
    said = accel.generate(model, IDS[:3], max_tokens=4, sampling=drawn, logprobs=2)
    return [
        said.ids, said.margins, said.logprobs, said.top_logprobs, model.prefill(IDS)[0].tobytes(),
        model.forward(IDS[:3], lambda stage, layer, x: x).tobytes(),
    ]  # fmt: skip


def results(model: Model) -> list[Any]:
    """In every way it has of computing."""
    greedy = accel.generate(model, IDS, max_tokens=4, logprobs=2)
    batch = accel.generate_batch(model, [IDS[:3], IDS[:5]], max_tokens=3)
    return [
        *essentials(model), greedy.ids, greedy.margins, greedy.logprobs, greedy.top_logprobs,
        [one.ids for one in batch], model.forward(IDS[:3]).tobytes(),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def essentials_by_default(one_layer_accel: Model) -> list[Any]:
    return essentials(one_layer_accel)


@pytest.fixture(scope="module")
def as_by_default(one_layer_accel: Model) -> list[Any]:
    return results(one_layer_accel)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=[f"{name}={value}" for name, value in SETTINGS])
def test_no_setting_changes_a_bit_of_what_is_computed(name: str, value: Any, one_layer_accel: Model,
                                                      as_by_default: list[Any]) -> None:  # fmt: skip
    with everywhere((name, value)):
        assert results(one_layer_accel) == as_by_default


@pytest.fixture
def all_compiled_anew(nothing_prepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what other tests traced, or kept on disk, would answer."""
    monkeypatch.setenv("ASSAY_XLA_CACHE", "off")
    monkeypatch.setattr(assay.accel.programs, "_JITTED", {})


@pytest.mark.parametrize(("ways", "right"), [
    (essentials, "essentials_by_default"), pytest.param(results, "as_by_default", marks=pytest.mark.slow),
])  # fmt: skip
def test_all_settings_at_once_change_no_program(ways: Callable[[Model], list[Any]], right: str, one_layer: Path,
                                                request: pytest.FixtureRequest) -> None:  # fmt: skip
    """A model that is loaded, traced and compiled under all of them, as in a process that starts with them."""
    by_default = request.getfixturevalue(right)
    request.getfixturevalue("all_compiled_anew")
    with everywhere(*SETTINGS):
        assert ways(accel.load(one_layer, arith="f32")) == by_default


def test_nor_do_they_where_blocks_are_decoded(builtin_accel: Model, request: pytest.FixtureRequest) -> None:
    """The types of the built-in model, in one program."""
    right = builtin_accel.forward(IDS[:3])
    request.getfixturevalue("all_compiled_anew")
    with everywhere(*SETTINGS):
        assert np.array_equal(accel.load(BUILTIN, arith="f32").forward(IDS[:3]), right)


def test_settings_of_a_thread_are_no_other(one_layer_accel: Model, essentials_by_default: list[Any]) -> None:
    with jax.enable_x64(True), jax.transfer_guard("disallow_explicit"), jax.numpy_dtype_promotion("strict"):
        assert essentials(one_layer_accel) == essentials_by_default


def test_a_stream_leaves_the_settings_of_its_reader_alone(one_layer_accel: Model) -> None:
    """A generator's frame is left at every token: what is in force there must not leak into its reader."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        before = dict(jax.config.values)
        for _ in accel.stream_generate(one_layer_accel, IDS, max_tokens=3):
            assert dict(jax.config.values) == before
    assert not jax.config.values["jax_enable_x64"]


def test_a_guard_that_forbids_taps_is_named(builtin_accel: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether JAX's callback runs in a thread where the guard holds is XLA's choice: so it is played here."""

    def guarded(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Disallowed host-to-device transfer: aval=int32[]")

    right = builtin_accel.forward(IDS[:3])
    with everywhere(("jax_transfer_guard", "disallow_explicit")):
        assert np.array_equal(builtin_accel.forward(IDS[:3]), right)
        monkeypatch.setattr(builtin_accel.programs, "run", guarded)
        with pytest.raises(InputError, match="disallow_explicit"):
            builtin_accel.forward(IDS[:3], lambda stage, layer, x: x)


def test_the_settings_are_the_defaults_of_this_jax() -> None:
    """Where JAX changes a default, the engine should notice."""
    names = {f"jax_{name}" for name in DEFAULTS} & jax.config.values.keys()
    assert len(names) > 12
    before = {name: jax.config.values[name] for name in names}
    with own_settings(default_device()):
        now = {name: jax.config.values[name] for name in names}
    assert {name: (before[name], now[name]) for name in names if now[name] != before[name] is not None} == {}


TWO_DEVICES = """
import jax
from assay import accel
from assay.goldens import BUILTIN
first, second = jax.devices()
with jax.default_device(second):
    model = accel.load(BUILTIN, arith="f32")
said = accel.generate(model, [5, 6, 7], max_tokens=3).ids
assert model.params.final_gain.devices() == {second}
jax.config.update("jax_default_device", first)
assert accel.generate(model, [5, 6, 7], max_tokens=3).ids == said
print(*said)
"""


@pytest.mark.slow
def test_a_model_stays_on_the_device_that_was_the_default_when_it_was_loaded(builtin_accel: Model) -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True,
                          timeout=600)  # fmt: skip
    right = accel.generate(builtin_accel, [5, 6, 7], max_tokens=3).ids
    assert list(map(int, done.stdout.split())) == right, done.stderr


@pytest.mark.parametrize(("variable", "value"), [
    ("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "tpu"), ("JAX_PLATFORMS", "nonsense"), ("JAX_ENABLE_X64", "banana"),
])  # fmt: skip
def test_a_jax_that_cannot_start_is_a_bad_request(variable: str, value: str) -> None:
    if value in ("cuda", "tpu") and jax.default_backend() != "cpu":
        pytest.skip("this machine may have one")
    done = subprocess.run([sys.executable, "-m", "assay", "run", "x", "-n", "1"], capture_output=True, text=True,
                          env=os.environ | {variable: value}, timeout=600)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("assay: jax") or f"{variable}={value}" in last
    assert "pip install" in last


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("two\nlines"), ImportError("libcuda"), OSError("x")])
def test_whatever_jax_raises_for_want_of_a_device(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(jax, "devices", failing)
    monkeypatch.setenv("JAX_PLATFORMS", "somewhere")
    with pytest.raises(InputError, match="JAX_PLATFORMS=somewhere: JAX cannot start"):
        accel.load(BUILTIN)


def test_without_jax_the_oracle_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(InputError, match="JAX cannot be imported"):
        engines.load(BUILTIN)
    assert engines.load(BUILTIN, engine="reference").arith.name == "f32"
