"""Compiling: booked apart, begun before the weights are there, kept on disk for the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import assay.accel.programs
import assay.accel.steps
from assay import accel
from assay.accel import kept_programs
from assay.accel.jax_settings import default_device, own_settings
from assay.accel.kept_programs import path_of
from assay.accel.pack import plan
from assay.accel.programs import Programs
from assay.formats import open_model
from assay.goldens import BUILTIN

NEXT_PROCESS = """
import sys, assay.accel.programs
from assay import accel
compiled = []
right = assay.accel.programs.compiled
assay.accel.programs.compiled = lambda function, *arguments: compiled.append(function) or right(function, *arguments)
model = accel.load(sys.argv[1], arith=sys.argv[2])
print(accel.generate(model, list(range(9)), max_tokens=4).ids, len(compiled))
"""


def double(x: jax.Array) -> jax.Array:
    return 2 * x


def test_what_was_prepared_is_not_compiled_again() -> None:
    programs = Programs(default_device())
    programs.prepare(("double", 3), double, jax.ShapeDtypeStruct((3,), jnp.float32))
    coming = programs._coming["double", 3]
    assert programs.run(("double", 3), double, jnp.ones(3)).tolist() == [2, 2, 2]
    assert programs._compiled["double", 3] is coming.result() and not programs._coming
    booked = programs.compile_s
    programs.run(("double", 3), double, jnp.ones(3))
    assert programs.compile_s == booked


def test_the_plan_is_what_is_packed() -> None:
    model = accel.load(BUILTIN)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), model.params)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), plan(model.file))


def in_next_process(cache: Path, switch: str = "on", arith: str = "fast", **more: str) -> tuple[str, int]:
    """The ids that a new process generates, and how many programs it compiled for that."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "ASSAY_XLA_CACHE": switch, **more}
    command = [sys.executable, "-c", NEXT_PROCESS, str(BUILTIN), arith]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    ids, compiled = done.stdout.strip().rsplit(" ", 1)
    return ids, int(compiled)


@pytest.mark.slow
def test_the_next_process_finds_the_programs(tmp_path: Path) -> None:
    """Whole, so that it traces none; others' it does not take, nor damaged ones."""
    ids, n_compiled = in_next_process(tmp_path)
    assert n_compiled == 2 and in_next_process(tmp_path) == (ids, 0)
    programs = list((tmp_path / "assay" / "xla").glob("*.program"))
    assert len(programs) == 2
    assert in_next_process(tmp_path, arith="f32")[1] == 2
    for program in programs:
        program.write_bytes(program.read_bytes()[:-1])
    assert in_next_process(tmp_path) == (ids, 2) and in_next_process(tmp_path) == (ids, 0)


@pytest.mark.slow
def test_where_no_programs_may_be_kept_they_are_compiled(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    ids, n_compiled = in_next_process(nowhere)
    assert n_compiled == 2 and in_next_process(tmp_path / "other", "off") == (ids, 2)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_user_who_has_jax_keep_programs_has_only_jax_keep_them(tmp_path: Path) -> None:
    """Written again from JAX's cache, a program fails when it is run."""
    everything = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    ids, n_compiled = in_next_process(tmp_path, **everything)
    assert n_compiled == 2 and in_next_process(tmp_path, **everything) == (ids, 2)
    assert any((tmp_path / "jax").iterdir()) and not (tmp_path / "assay" / "xla").exists()


def test_a_program_is_another_for_other_shapes_types_and_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_XLA_CACHE", "on")
    struct, packed = jax.ShapeDtypeStruct, plan(open_model(BUILTIN))
    arguments = [(struct((3,), jnp.float32),), (struct((4,), jnp.float32),), (struct((3,), jnp.int32),),
                 {"a": struct((3,), jnp.float32)}, packed]  # fmt: skip
    names = {path_of(code, donated, one) for one in arguments for code in ("a", "b") for donated in ((), (0,))}
    assert len(names) == 20 and None not in names
    assert all(name in str(jax.tree.structure(packed)) for name in ("Q4_K", "Q6_K"))
    monkeypatch.setattr(kept_programs, "surroundings", lambda: "another processor")
    assert path_of("a", (), arguments[0]) not in names
    assert path_of(None, (), arguments[0]) is None
    monkeypatch.setenv("ASSAY_XLA_CACHE", "off")
    assert path_of("a", (), arguments[0]) is None


@pytest.mark.parametrize("refuses", ["serialize", "deserialize_and_load"])
def test_a_device_whose_programs_cannot_be_kept_compiles_them(refuses: str, monkeypatch: pytest.MonkeyPatch,
                                                              tmp_path: Path) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: serialization")

    program, path, device = jax.jit(double).lower(1.0).compile(), tmp_path / "x.program", default_device()
    kept_programs.save(path, program)
    assert kept_programs.load(path, device)(3.0) == 6.0
    monkeypatch.setattr(kept_programs.serialize_executable, refuses, refuse)
    if refuses == "serialize":
        path.unlink()
        kept_programs.save(path, program)
        assert not path.exists()
    assert kept_programs.load(path, device) is None


def test_settings_of_jax_make_no_other_program_but_those_of_the_compiler_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The former are not in force where programs are made."""
    with own_settings(default_device()):
        before = kept_programs.surroundings()
    with jax.default_matmul_precision("highest"), jax.enable_x64(True), own_settings(default_device()):
        assert kept_programs.surroundings() == before
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert kept_programs.surroundings() != before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs, of this test only, in this process."""
    monkeypatch.setenv("ASSAY_XLA_CACHE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept_programs.refuse.cache_clear()
    return tmp_path / "assay" / "xla"


@pytest.fixture
def n_compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one for each program that is compiled."""
    counted, right = [], assay.accel.programs.compiled

    def counting(function: Any, *arguments: Any) -> Any:
        counted.append(function)
        return right(function, *arguments)

    monkeypatch.setattr(assay.accel.programs, "compiled", counting)
    return counted


def test_code_that_was_replaced_in_memory_has_programs_of_its_own(
    one_layer: Path, cache: Path, n_compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were stored under the healthy code's name, and a healthy program answered for broken code."""

    def logits() -> np.ndarray:
        return accel.load(one_layer).prefill([5, 6, 7])[0]

    healthy, n_programs = logits(), len(n_compiled)
    assert n_programs == 1 and np.array_equal(logits(), healthy) and len(n_compiled) == 1
    with monkeypatch.context() as patch:
        patch.setattr(assay.accel.steps, "rotate", lambda x, turns: x)
        broken = logits()
        assert not np.allclose(broken, healthy) and len(n_compiled) == 2
        assert np.array_equal(logits(), broken) and len(n_compiled) == 2
    assert np.array_equal(logits(), healthy) and len(n_compiled) == 2 and len(list(cache.iterdir())) == 2


def test_what_is_replaced_while_it_is_traced_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(x: jax.Array) -> jax.Array:
        monkeypatch.setattr(sys.modules[__name__], "double", lambda x: 3 * x)
        return double(x)

    programs, shape = Programs(default_device()), np.ones(2, np.float32)
    assert programs.run(("hasty",), hasty, shape).tolist() == [3, 3]
    assert not cache.exists()
    monkeypatch.undo()
    assert Programs(default_device()).run(("double",), double, shape).tolist() == [2, 2]


def kept(cache: Path) -> Path:
    """The file of one program, ``double``, that was compiled and kept."""
    Programs(default_device()).run(("double",), double, np.ones(2, np.float32))
    (path,) = cache.iterdir()
    return path


def test_folder_and_files_are_the_user_s_own(cache: Path) -> None:
    os.umask(before := os.umask(0))
    os.umask(0)
    try:
        path = kept(cache)
    finally:
        os.umask(before)
    assert (cache.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system knows no owners")
@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("how", ["group", "others", "owner"])
def test_what_others_could_have_written_is_not_run(what: str, how: str, cache: Path, n_compiled: list[Any],
        caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = kept(cache)
    place = cache if what == "folder" else path
    if how == "owner":
        real = kept_programs.is_private
        its = place.stat().st_ino
        monkeypatch.setattr(kept_programs, "is_private", lambda s: real(s) and s.st_ino != its)
    else:
        place.chmod(place.stat().st_mode | (0o020 if how == "group" else 0o002))
    for _ in range(2):
        Programs(default_device()).run(("double",), double, np.ones(2, np.float32))
        if what == "file" and how != "owner":
            assert kept_programs.is_private(path.stat())  # written anew
            break
    said = [record.getMessage() for record in caplog.records if record.name == "assay"]
    assert len(said) == 1 and str(place) in said[0] and len(n_compiled) >= 2


def test_another_owner_is_not_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_programs.is_private(tmp_path.stat())
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert not kept_programs.is_private(tmp_path.stat())


@pytest.mark.parametrize("raised", [AttributeError, KeyError, MemoryError, TypeError, EOFError])
def test_whatever_reading_a_program_raises_it_is_compiled(raised: type[Exception], cache: Path, n_compiled: list[Any],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def failing(data: bytes) -> None:
        raise raised

    kept(cache)
    monkeypatch.setattr(kept_programs.pickle, "loads", failing)
    assert Programs(default_device()).run(("double",), double, np.ones(2, np.float32)).tolist() == [2, 2]
    assert len(n_compiled) == 2


def test_the_programs_used_last_stay(tmp_path: Path) -> None:
    for age, name in enumerate(("a.program", "b.program", "c.program.12345678.unfinished", "d.program")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "notes").write_bytes(bytes(100))
    kept_programs.trim(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.program", "b.program", "notes"]


def test_a_program_that_is_used_is_no_longer_old(cache: Path) -> None:
    path = kept(cache)
    os.utime(path, (1000, 1000))
    assert kept(cache) == path and path.stat().st_mtime > 1000
