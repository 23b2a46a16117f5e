"""A function with other meanings for some of its module's names: its module stays as it is for everybody else."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from assay.judging.proof.faults import NotApplied
from assay.parity.mutants.record import Source


def rebound(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The same code, in which some global names are these."""
    assert isinstance(function, FunctionType)
    made = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__,
                        function.__closure__)  # fmt: skip
    made.__kwdefaults__ = function.__kwdefaults__
    return made


@contextmanager
def rewritten(source: Source, package: str = "assay.accel") -> Iterator[None]:
    """A function's source with ``old`` replaced, wherever the package knows the function, while the block lasts.

    Raises NotApplied unless ``old`` occurs exactly once.
    """
    module_name, *path = source.function.split(".")
    module = sys.modules.get(f"{package}.{module_name}")
    owner: Any = module
    for name in path[:-1]:
        owner = getattr(owner, name, None)
    original = vars(owner).get(path[-1]) if owner is not None else None
    if module is None or original is None:
        raise NotApplied(f"{package} has no {source.function}")
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(original)))
    if (n := text.count(source.old)) != 1:
        raise NotApplied(f"{source.old!r} occurs {n} times in {source.function}")
    made: dict[str, Any] = {}
    text = "from __future__ import annotations\n" + text.replace(source.old, source.new)
    exec(compile(text, f"<{source.function}, rewritten>", "exec"), vars(module), made)
    new = made[path[-1]]
    homes = [owner] if len(path) > 1 else [one for name, one in sys.modules.items() if name.startswith(package)]
    places = [(home, name) for home in homes for name, value in list(vars(home).items()) if value is original]
    try:
        for home, name in places:
            setattr(home, name, new)
        yield
    finally:
        for home, name in places:
            setattr(home, name, original)
