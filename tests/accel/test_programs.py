"""Compiling: booked apart, begun before the weights are there, kept on disk for the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import accel
from accel.pack import plan
from accel.programs import Programs
from goldens import BUILTIN

NEXT_PROCESS = """
import sys, jax, accel
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
model = accel.load(sys.argv[1])
print(accel.generate(model, list(range(9)), max_tokens=4).ids, sum("cache_hits" in event for event in hits))
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


def test_the_next_process_finds_the_programs(tmp_path: Path) -> None:
    """And works as well where it may not keep any."""
    def run(cache: Path, switch: str) -> str:
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "ASSAY_XLA_CACHE": switch}
        command = [sys.executable, "-c", NEXT_PROCESS, str(BUILTIN)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout.strip()

    first, second = run(tmp_path, "on"), run(tmp_path, "on")
    ids, hits = first.rsplit(" ", 1)
    assert hits == "0" and second.rsplit(" ", 1)[0] == ids and int(second.rsplit(" ", 1)[1]) >= 2
    assert any((tmp_path / "assay" / "xla").iterdir())
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert run(nowhere, "on") == first
    assert run(tmp_path / "other", "off") == first and not (tmp_path / "other").exists()
