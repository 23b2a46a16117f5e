"""Code in memory as a number: what was kept of its results is found again only while it computes the same.

    digest(function, *data)        # SHA-256 in hex, or None where the code cannot be told

Source files will not do: a function that was replaced in a running process (to debug it, or to see a check fail) would
store what it made under the healthy code's name. So everything that a call can reach is walked as it is in memory:
bytecode, constants, defaults, closures, the globals that the code names, and so on through functions, classes,
containers and arrays. Comments and whatever is not reached count for nothing.

Python, JAX and NumPy are not walked: their functions count by name, and the caller adds their versions. An object
that none of the rules knows (a mock, an open file) could do anything: then there is no digest.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np

NUMERIC = frozenset({"jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum"})
BY_VERSION = NUMERIC | sys.stdlib_module_names
"""Packages whose functions and classes are known by name and version."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
OF_A_CLASS = frozenset({"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__",
                        "__annotations_cache__", "__dataclass_fields__", "__dataclass_params__", "__firstlineno__",
                        "__static_attributes__", "__orig_bases__", "__parameters__"})  # fmt: skip
"""What a class says of itself that changes nothing in what it computes, or that is walked as fields."""


class Untold(Exception):
    """There is an object that cannot be told from another."""


def digest(*values: Any) -> str | None:
    """SHA-256, in hex, of functions and data and of all that they reach; None if part of it cannot be told."""
    walk = Walk()
    try:
        for value in values:
            walk.visit(value)
    except Untold:
        return None
    return walk.hexdigest()


def is_by_version(module: str | None) -> bool:
    """Whether a module's code is known by its name and the version of its package."""
    return module is not None and module.partition(".")[0] in BY_VERSION


class Walk:
    """One walk through objects, each visited once; later mentions of it are numbers."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._met: dict[int, tuple[int, Any]] = {}  # with the object itself: its id must stay its own
        self.hexdigest = self._hash.hexdigest

    def _say(self, *parts: Any) -> None:
        self._hash.update(f"{parts!r}\n".encode())

    def visit(self, value: Any) -> None:
        """Tell a value, and what it reaches. Raises Untold."""
        if type(value) in PLAIN:
            self._say(type(value).__name__, value)
            return
        if id(value) in self._met:
            self._say("met", self._met[id(value)][0])
            return
        if not isinstance(value, tuple | frozenset):  # of these, equal ones may be one object, or not: by Python's whim
            self._met[id(value)] = len(self._met), value
        rule = next((rule for kinds, rule in RULES if isinstance(value, kinds)), Walk.instance)
        rule(self, value)

    def each(self, values: Iterable[Any]) -> None:
        """Tell some values in their order."""
        listed = list(values)
        self._say("each", len(listed))
        for value in listed:
            self.visit(value)

    def container(self, value: Any) -> None:
        """A list or dictionary; of a class of its own, with that class."""
        self.visit(type(value))
        self.mapping(value) if isinstance(value, Mapping) else self.each(value)

    def mapping(self, value: Mapping[Any, Any]) -> None:
        """Keys and values in the order of the mapping."""
        self.each(part for item in value.items() for part in item)

    def unordered(self, value: Iterable[Any]) -> None:
        """A set, whose order differs from process to process: by the digests of its members."""
        digests = [digest(member) for member in value]
        if None in digests:
            raise Untold
        self._say("set", sorted(map(str, digests)))

    def function(self, value: types.FunctionType) -> None:
        """A function of Python; by its globals' module, since ``functools.wraps`` lends it the name of another."""
        module, code = value.__globals__.get("__name__"), value.__code__
        if is_by_version(module):
            self._say("function", module, value.__qualname__, code.co_qualname)
            return
        self._say("code")
        self.code(code)
        self.each([value.__defaults__, value.__kwdefaults__])
        for cell in value.__closure__ or ():
            try:
                self.visit(cell.cell_contents)
            except ValueError:  # not filled yet
                self._say("empty cell")
        names = names_in(code)
        for name in sorted(names & value.__globals__.keys()):
            self._say("global", name)
            self.named(value.__globals__[name], names)

    def named(self, value: Any, names: set[str]) -> None:
        """A global; of a module, the attributes that code with these ``names`` can mean."""
        if not isinstance(value, types.ModuleType):
            self.visit(value)
            return
        modules, met = [value], set()
        while modules:
            module = modules.pop()
            if module in met:
                continue
            met.add(module)
            self._say("module", module.__name__)
            for name in sorted(names & vars(module).keys()):
                self._say("attribute", name)
                found = vars(module)[name]
                if isinstance(found, types.ModuleType):
                    modules.append(found)
                else:
                    self.visit(found)

    def module(self, value: types.ModuleType) -> None:
        """A module in a table: any of its attributes can be meant."""
        by_name = is_by_version(value.__name__)
        self.named(value, set() if by_name else {name for name in vars(value) if not name.startswith("__")})

    def code(self, code: types.CodeType) -> None:
        """Bytecode, and the code and constants in it; not its lines and files."""
        self._say(code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags,
                  code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
                  code.co_exceptiontable)  # fmt: skip
        self.each(code.co_consts)

    def builtin(self, value: Any) -> None:
        """A function or method of C, and what it is bound to."""
        self._say("builtin", value.__qualname__)
        bound = getattr(value, "__self__", None)
        self._say(bound.__name__) if isinstance(bound, types.ModuleType) else self.visit(bound)

    def method(self, value: types.MethodType) -> None:
        """A function and the object it is bound to."""
        self.each([value.__func__, value.__self__])

    def klass(self, value: type) -> None:
        """A class: its bases, and whatever it defines."""
        self._say("class", value.__module__, value.__qualname__)
        if is_by_version(value.__module__):
            return
        self.each(value.__bases__)
        if issubclass(value, enum.Enum):
            self.each(part for name, member in value.__members__.items() for part in (name, member.value))
            return
        self.mapping({name: member for name, member in vars(value).items()
                      if name not in OF_A_CLASS and not name.startswith("_abc_")})  # fmt: skip

    def partial(self, value: functools.partial[Any]) -> None:
        """A function and the arguments that are fixed."""
        self.each([value.func, value.args, value.keywords])

    def descriptor(self, value: Any) -> None:
        """What a class wraps its functions in."""
        self._say(type(value).__name__)
        self.each(getattr(value, name, None) for name in ("fget", "fset", "fdel", "func", "__func__"))

    def member(self, value: Any) -> None:
        """A slot, a field of a named tuple: its place is told by where it stands."""
        self._say(type(value).__name__)

    def array(self, value: Any) -> None:
        """An array or number of NumPy, by its bytes."""
        if value.dtype.hasobject:
            raise Untold
        self._say(str(value.dtype), value.shape, value.tobytes())

    def signature(self, value: inspect.Signature) -> None:
        """Parameters and their defaults. (As text, a default that is a function would have its address in it.)"""
        self._say("signature", str(value.return_annotation))
        for one in value.parameters.values():
            self._say(one.name, str(one.kind), str(one.annotation))
            self.visit(one.default)

    def pattern(self, value: re.Pattern[Any]) -> None:
        """A regular expression."""
        self._say(value.pattern, value.flags)

    def constant(self, value: enum.Enum) -> None:
        """A member of an enumeration."""
        self.each([type(value), value.name])

    def instance(self, value: Any) -> None:
        """Any other object: a record by its fields, a wrapped function by what it wraps, another by its name."""
        kind = type(value)
        self.visit(kind)
        if isinstance(value, tuple):
            self.each(value)
        elif is_dataclass(value):
            self.each(getattr(value, field.name) for field in fields(value))
        elif kind.__module__ in ("typing", "types", "dataclasses", "__future__"):  # annotations, sentinels
            self._say(repr(value) if kind.__module__ != "dataclasses" else "")
        elif hasattr(value, "__wrapped__") and is_by_version(kind.__module__):  # jax.jit, functools.cache
            self.visit(value.__wrapped__)
        elif callable(value) and kind.__module__.partition(".")[0] in NUMERIC:
            self._say(getattr(value, "__module__", None), getattr(value, "__name__", None))
            if not is_by_version(getattr(value, "__module__", None)):
                raise Untold
        else:
            raise Untold


def names_in(code: types.CodeType) -> set[str]:
    """The globals and attributes that code names, functions inside it included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))


TUPLE_FIELD = type(NamedTuple("Any", [("field", int)]).field)
RULES: tuple[tuple[Any, Callable[[Walk, Any], None]], ...] = (
    (types.FunctionType, Walk.function),
    ((types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType), Walk.builtin),
    (types.MethodType, Walk.method),
    (types.CodeType, Walk.code),
    (types.ModuleType, Walk.module),
    ((types.GenericAlias, types.UnionType), lambda walk, value: walk._say(repr(value))),
    (type, Walk.klass),
    (enum.Enum, Walk.constant),
    (functools.partial, Walk.partial),
    ((property, staticmethod, classmethod, functools.cached_property), Walk.descriptor),
    ((types.MemberDescriptorType, types.GetSetDescriptorType, TUPLE_FIELD), Walk.member),
    ((np.ndarray, np.generic), Walk.array),
    (np.dtype, lambda walk, value: walk._say(str(value))),
    (re.Pattern, Walk.pattern),
    (inspect.Signature, Walk.signature),
    ((set, frozenset), Walk.unordered),
    ((list, types.MappingProxyType, dict), lambda walk, value: walk.container(value)),
)
"""The first that fits is taken; what none fits is an ``instance``."""
