"""Small Python functions to train the built-in model on, written from templates: ``function(rng)`` gives one.

A task is a block of ``functions.txt``:

    = what it does | names | parameters | kind of result
    one body
    --
    another

``$f`` stands for the function's name and the other ``$`` words for variables, each drawn from its pool, so that the
model must learn to copy names and not only to recite. The first name, body and variable of each list are drawn most
often: greedy decoding should end on the plainest version. The classes of ``classes.txt``, parted by ``==``, are taken
as they are.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

POOLS = {
    "n": ["n", "number", "num", "k", "count", "limit"],
    "a": ["a", "x", "first", "left", "p"],
    "b": ["b", "y", "second", "right", "q"],
    "c": ["c", "z", "third"],
    "s": ["text", "s", "string", "word", "line", "sentence"],
    "xs": ["values", "numbers", "items", "xs", "data", "elements"],
    "ys": ["others", "ys", "more", "weights"],
    "d": ["mapping", "d", "table", "counts"],
    "x": ["value", "item", "x", "element", "entry"],
    "t": ["target", "wanted", "key"],
    "i": ["i", "index", "j", "step"],
    "r": ["result", "total", "out", "answer"],
    "m": ["best", "current", "found"],
    "path": ["path", "filename", "name"],
    "ch": ["char", "letter", "ch"],
    "w": ["w", "part", "token"],
}
HINTS = {"n": "int", "a": "int", "b": "int", "c": "int", "s": "str", "xs": "list[int]", "ys": "list[int]",
         "d": "dict", "x": "int", "t": "int", "path": "str", "ch": "str"}  # fmt: skip
HERE = Path(__file__).parent


class Task:
    """A block of ``functions.txt``: ``what`` it does ("returns the sum of a list"), its names, parameters, bodies."""

    def __init__(self, block: str) -> None:
        head, body = block.split("\n", 1)
        self.what, names, parameters, self.result = (part.strip() for part in head.split("|"))
        self.names, self.parameters = names.split(), parameters.split()
        self.bodies = body.rstrip("\n").split("\n--\n")


def read(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text("utf-8").strip()


ALL_TASKS = [Task(block) for block in read("functions.txt").removeprefix("= ").split("\n= ")]
ALL_CLASSES = [block.strip("\n") for block in read("classes.txt").split("\n==\n")]


def plainest(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """The first choice half the time, else any."""
    return choices[0] if rng.random() < 0.5 else choices[int(rng.integers(len(choices)))]


def imperative(what: str) -> str:
    """"returns the sum" to "Return the sum": a docstring's first line."""
    verb, rest = what.split(" ", 1)
    plain = verb[:-3] + "y" if verb.endswith("ies") else verb[:-1]
    return f"{plain.capitalize()} {rest}"


def write(rng: np.random.Generator, task: Task, bare: bool = False, name: str = "") -> str:
    """One version of a task, under ``name`` if given; ``bare``: without type hints and docstring."""
    words = {"f": name or plainest(rng, task.names)}
    for word, pool in POOLS.items():  # no two variables share a name: $n and $x may both be "number"
        words[word] = plainest(rng, [name for name in pool if name not in words.values()])
    typed = not bare and rng.random() < 0.2
    parameters = [words[p] + (f": {HINTS.get(p, 'str')}" if typed else "") for p in task.parameters]
    head = f"def {words['f']}({', '.join(parameters)}){f' -> {task.result}' if typed else ''}:"
    lines = string.Template(plainest(rng, task.bodies)).substitute(words).split("\n")
    if not bare and rng.random() < 0.35:
        lines.insert(0, f'"""{imperative(task.what)}."""')
    return "\n".join([head, *("    " + line for line in lines)])


def function(rng: np.random.Generator) -> str:
    """A document: one function mostly, else two or three, or a class."""
    if rng.random() < 0.08:
        return ALL_CLASSES[rng.integers(len(ALL_CLASSES))] + "\n"
    n = 1 if rng.random() < 0.7 else int(rng.integers(2, 4))
    return "\n\n\n".join(write(rng, ALL_TASKS[rng.integers(len(ALL_TASKS))]) for _ in range(n)) + "\n"
