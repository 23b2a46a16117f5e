"""The command line. Text goes to standard output, everything else to standard error; exit codes are those of
``formats/errors.py`` and stand in ``assay --help``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import TyperException

from assay.commands import options
from assay.formats import AssayError
from assay.formats.system.signals import Ended, ending_when_told
from assay.output import prepare_streams, say

EPILOG = (
    "Exit codes: 0 success; 1 a bug in Assay; 2 bad request; 3 damaged file; 4 not a model Assay can run; "
    "5 chat template; 6 model could not be fetched; 7 not-a-number; 8 what was compared differs; "
    "9 not the same sample; 10 no verdict; 130 interrupted; 129, 143 told to end (SIGHUP, SIGTERM)."
)
FIRST_STEPS = """Assay: does the fast engine compute what the model file says?

Try, with the small model that is built in:

  assay run 'def fib(n):'      generate text with the fast engine
  assay parity                 judge the fast engine against the oracle, stage by stage
  assay inspect                what a model file says of itself
  assay pull --list            real models that can be fetched by name; or give your own: -m FILE

assay --help lists all commands, assay COMMAND --help the options of one.
"""

COMMANDS = ("run", "chat", "tokenize", "inspect", "convert", "tensors", "validate", "hex", "diff", "pull", "bench",
            "parity", "flips", "bisect", "axes", "trace", "perplexity", "quantize", "doctor", "prove")  # fmt: skip
"""Modules of ``assay/commands``, in the order of ``assay --help``."""


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(f"assay {installed('assay')}")
        except PackageNotFoundError:  # run from a checkout
            typer.echo("assay, not installed")
        raise typer.Exit


def assay(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Does the fast engine compute what the model file says?"""


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The command line, with the one command that is asked for, or with all of them.

    Importing all takes a fifth of a second, which a warm start would notice.
    """
    app = typer.Typer(
        name="assay",
        help="Does the fast engine compute what the model file says?",
        epilog=EPILOG,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(assay)
    for name in arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS:
        command = import_module(f"assay.commands.{name}").command
        app.command(name, help=flowing(command.__doc__ or ""), epilog=EPILOG)(command)
    return app


def flowing(text: str) -> str:
    """A docstring whose paragraphs are one line each, for the terminal to break: Typer keeps line ends as they are."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def main() -> None:
    """Run the command line and exit. Every failure becomes one line on standard error and an exit code."""
    prepare_streams()
    code = 0
    try:
        code = outcome()
        sys.stdout.flush()  # what cannot be written is noticed here, not by the interpreter as it closes down
    except BrokenPipeError:  # the reader of our output has gone; there is nobody left to tell
        discard_output()
    except OSError as error:  # a full disk, say: the machine's trouble, not a bug
        discard_output()
        code = fail(f"the system refused: {error}", 2)
    sys.exit(code)


def outcome() -> int:
    """Carry out what ``sys.argv`` asks for; the exit code, failures already reported. Raises OSError.

    Typer's own runner is not used: it turns a broken pipe into exit code 1 and says nothing about Ctrl-C.
    """
    if not sys.argv[1:]:
        print(FIRST_STEPS, end="")
        return 0
    try:
        with ending_when_told():
            command = typer.main.get_command(app_for(sys.argv[1:]))
            with command.make_context("assay", sys.argv[1:]) as context:
                command.invoke(context)
    except typer.Exit as exit_:
        return exit_.exit_code
    except AssayError as error:
        return fail(str(error), error.exit_code, error)
    except TyperException as error:
        message = error.format_message()  # empty where the help text was the answer
        return fail(f"{message} (try --help)", 2) if message else 2
    except (typer.Abort, KeyboardInterrupt):
        return fail("interrupted", 130)
    except Ended as told:
        return fail(f"ended by {told.signal.name}", 128 + told.signal)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Rich's answer to a reader of --help who has seen enough
            raise BrokenPipeError from None
        raise
    except OSError:
        raise
    except Exception as error:
        if os.environ.get("ASSAY_TRACEBACK"):
            raise
        return fail(f"internal error: {type(error).__name__}: {error}. Please report it; "
                    "set ASSAY_TRACEBACK=1 for the traceback", 1)  # fmt: skip
    return 0


def discard_output() -> None:
    """Send what is still to be written nowhere, so that it cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(line: str, code: int, error: AssayError | None = None) -> int:
    """Say one line on standard error, and with --json also an object on standard output."""
    one_line = " ".join(line.split())
    say(one_line)
    if "--json" in sys.argv:
        what = {"type": "AssayError", "what": one_line} if error is None else options.error_of(error)
        with suppress(OSError):  # nobody may be reading; the exit code must still be the failure's
            print(json.dumps({"error": what, "exit_code": code}, ensure_ascii=False))
    return code
