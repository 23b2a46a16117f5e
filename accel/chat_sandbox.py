"""Renders one chat template, as a process of its own: a template is a program that came with a download.

Run by path through ``formats/system/python_child.py`` with an empty environment: beside the standard library it
imports jinja2 and markupsafe, neither the package around it nor anything that the user's environment or folder adds.
One JSON object comes in on stdin, one goes out on stdout:

    in    {"template", "messages", "tools", "add_generation_prompt", "bos_token", "eos_token",
           "now": ISO 8601}
    out   {"text": rendered}  or  {"error": one line}

Three fences: a check of the syntax tree before anything runs, Jinja's immutable sandbox (no way to Python
objects), and the kernel's limits on processor time and memory (Jinja's sandbox has none of its own).

Source of the rendering rules: Hugging Face transformers, ``apply_chat_template``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 512 << 20
MAX_OUTPUT_BYTES = 4 << 20
MAX_RANGE = 10_000
MAX_ERROR_CHARACTERS = 200


class Refused(Exception):
    """The template asks for something that no chat template needs."""


class GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` marks text for training; for rendering it is its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own protocol)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """The environment in which transformers renders, with the clock stopped at ``now``."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=["jinja2.ext.loopcontrols", GenerationTag])  # fmt: skip
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_at(now)
    return env


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:  # fmt: skip
    """Plain JSON; Jinja's own ``tojson`` would escape for HTML and sort the keys."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse a conversation."""
    raise jinja2.TemplateError(message)


def strftime_at(now: datetime) -> Callable[[str], str]:
    """``strftime_now`` for a fixed moment."""
    return lambda layout: now.strftime(layout)


def check_syntax(tree: nodes.Template) -> None:
    """Refuse what reads other templates, repeats text by a number, or reaches for Python's inside."""
    forbidden = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
    for node in tree.find_all(nodes.Node):
        if isinstance(node, forbidden):
            refuse(node, "it reads another template")
        if isinstance(node, nodes.Mul) and (is_sequence(node.left) or is_sequence(node.right)):
            refuse(node, "it multiplies a text or a list")
        if isinstance(node, nodes.Mod) and is_sequence(node.left):
            refuse(node, "it formats with %")
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "range":
            check_range(node)
        if attribute_of(node).startswith("__"):
            refuse(node, "it reaches for a private attribute")


def is_sequence(node: nodes.Expr) -> bool:
    """Whether ``node`` is a text or list written in the template itself."""
    return isinstance(node, (nodes.List, nodes.Tuple)) or (
        isinstance(node, nodes.Const) and isinstance(node.value, str)
    )


def check_range(call: nodes.Call) -> None:
    """Refuse ``range`` over a constant larger than any conversation needs."""
    for argument in call.find_all(nodes.Const):
        if isinstance(argument.value, int) and argument.value > MAX_RANGE:
            refuse(call, f"its range exceeds {MAX_RANGE}")


def attribute_of(node: nodes.Node) -> str:
    """The name in ``x.name`` or ``x["name"]``; empty for anything else."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return str(node.arg.value)
    return ""


def refuse(node: nodes.Node, reason: str) -> NoReturn:
    """Raise Refused, saying where in the template."""
    raise Refused(f"{reason} (line {node.lineno})")


def render(request: dict[str, Any]) -> str:
    """The rendered text of one request. Raises whatever the template runs into, Refused for its limits."""
    env = environment(datetime.fromisoformat(request["now"]))
    check_syntax(env.parse(request["template"]))
    template = env.from_string(request["template"])
    names = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
    parts, size = [], 0
    for part in template.generate(documents=None, **{name: request[name] for name in names}):
        size += len(part.encode())
        if size > MAX_OUTPUT_BYTES:
            raise Refused(f"its output exceeds {MAX_OUTPUT_BYTES} bytes")
        parts.append(part)
    return "".join(parts)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """What goes out: the text, or one line on why there is none. Whatever a template raises ends here."""
    try:
        return {"text": render(request)}
    except Refused as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it nests or recurses too deeply"}
    except UnicodeEncodeError:
        return {"error": "its output is not valid Unicode"}
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": line.encode(errors="replace").decode()[:MAX_ERROR_CHARACTERS]}


def limit_resources() -> None:
    """Let the kernel end this process when it takes too much; never raises a limit that is already lower."""
    import resource  # POSIX only: elsewhere there are no limits, and so no rendering

    limits = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # Processor time keeps its hard limit: the soft one's signal tells the parent the cause.
        resource.setrlimit(kind, (limit, hard if kind == resource.RLIMIT_CPU else limit))


def main() -> None:
    """One request from stdin, one answer to stdout."""
    limit_resources()
    request = json.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(json.dumps(answer(request), ensure_ascii=False).encode())


if __name__ == "__main__":
    main()
