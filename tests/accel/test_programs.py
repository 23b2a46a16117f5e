"""Compiling: booked apart, begun before the weights are there, kept on disk for the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from assay import accel
from assay.accel import kept_programs
from assay.accel.kept_programs import path_of
from assay.accel.pack import plan
from assay.accel.programs import Programs
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


def test_what_was_prepared_is_not_compiled_again() -> None:
    programs, double = Programs(), jax.jit(lambda x: 2 * x)
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


def test_where_no_programs_may_be_kept_they_are_compiled(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    ids, n_compiled = in_next_process(nowhere)
    assert n_compiled == 2 and in_next_process(tmp_path / "other", "off") == (ids, 2)
    assert not (tmp_path / "other").exists()


def test_a_user_who_has_jax_keep_programs_has_only_jax_keep_them(tmp_path: Path) -> None:
    """Written again from JAX's cache, a program fails when it is run."""
    everything = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    ids, n_compiled = in_next_process(tmp_path, **everything)
    assert n_compiled == 2 and in_next_process(tmp_path, **everything) == (ids, 2)
    assert any((tmp_path / "jax").iterdir()) and not (tmp_path / "assay" / "xla").exists()


def test_a_program_is_another_for_other_shapes_types_and_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_XLA_CACHE", "on")
    struct, packed = jax.ShapeDtypeStruct, accel.load(BUILTIN).params
    arguments = [(struct((3,), jnp.float32),), (struct((4,), jnp.float32),), (struct((3,), jnp.int32),),
                 {"a": struct((3,), jnp.float32)}, packed]  # fmt: skip
    names = {path_of(made_from, one) for one in arguments for made_from in ("a", "b")}
    assert len(names) == 10 and all(name in str(jax.tree.structure(packed)) for name in ("Q4_K", "Q6_K"))
    monkeypatch.setattr(kept_programs, "surroundings", lambda: "another processor")
    assert path_of("a", arguments[0]) not in names
    monkeypatch.setenv("ASSAY_XLA_CACHE", "off")
    assert path_of("a", arguments[0]) is None


@pytest.mark.parametrize("refuses", ["serialize", "deserialize_and_load"])
def test_a_device_whose_programs_cannot_be_kept_compiles_them(refuses: str, monkeypatch: pytest.MonkeyPatch,
                                                              tmp_path: Path) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: serialization")

    program, path = jax.jit(lambda x: 2 * x).lower(1.0).compile(), tmp_path / "x.program"
    kept_programs.save(path, program)
    assert kept_programs.load(path)(3.0) == 6.0
    monkeypatch.setattr(kept_programs.serialize_executable, refuses, refuse)
    if refuses == "serialize":
        path.unlink()
        kept_programs.save(path, program)
        assert not path.exists()
    assert kept_programs.load(path) is None


def test_a_setting_that_changes_makes_another_program() -> None:
    before = kept_programs.surroundings()
    with jax.default_matmul_precision("highest"):
        assert kept_programs.surroundings() != before
    assert kept_programs.surroundings() == before
