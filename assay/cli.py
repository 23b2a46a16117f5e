"""The command line. Text goes to standard output, everything else to standard error; exit codes are those of
``formats/errors.py`` and stand in ``assay --help``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from assay.commands import chat, inspect, pull, run, tokenize
from formats import AssayError

EPILOG = (
    "Exit codes: 0 success; 1 a bug in Assay; 2 bad request; 3 damaged file; 4 not a model Assay can run; "
    "5 chat template; 6 model could not be fetched; 7 not-a-number; 130 interrupted."
)

app = typer.Typer(
    name="assay",
    help="Does the fast engine compute what the model file says?",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", epilog=EPILOG)(run.command)
app.command("chat", epilog=EPILOG)(chat.command)
app.command("tokenize", epilog=EPILOG)(tokenize.command)
app.command("inspect", epilog=EPILOG)(inspect.command)
app.command("pull", epilog=EPILOG)(pull.command)


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import version as installed

        typer.echo(f"assay {installed('assay')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Does the fast engine compute what the model file says?"""


def main() -> None:
    """Run the command line; every failure becomes one line on standard error and an exit code."""
    try:
        code = app(standalone_mode=False)
    except AssayError as error:
        code = fail(str(error), error.exit_code, error)
    except TyperException as error:
        message = error.format_message()  # empty where the help text was the answer
        code = fail(f"{message} (try --help)", 2) if message else 2
    except (typer.Abort, KeyboardInterrupt):
        code = fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone; there is nobody left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if os.environ.get("ASSAY_TRACEBACK"):
            raise
        code = fail(f"internal error: {type(error).__name__}: {error}. Please report it; "
                    "set ASSAY_TRACEBACK=1 for the traceback", 1)  # fmt: skip
    sys.exit(code if isinstance(code, int) else 0)


def fail(line: str, code: int, error: AssayError | None = None) -> int:
    """Say one line on standard error, and with --json also an object on standard output."""
    one_line = " ".join(line.split())
    print(f"assay: {one_line}", file=sys.stderr)
    if "--json" in sys.argv:
        what: dict[str, Any] = {"type": "AssayError", "what": one_line}
        if error is not None:
            what = {"type": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
        print(json.dumps({"error": what, "exit_code": code}, ensure_ascii=False))
    return code
