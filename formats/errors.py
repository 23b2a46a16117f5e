"""The closed set of errors that Assay raises.

Every error says *what* is wrong, *where* (file, offset, field, tensor or stage) and *what to do*. Each type
has an exit code of its own, so that a script can tell a bad file from a bad prompt. Nothing outside this set
may reach a user: an ``IndexError`` or a ``MemoryError`` from hostile input is a bug in Assay.

    code  type             meaning
    0     -                success
    1     -                a bug in Assay itself (please report it)
    2     InputError       the request cannot be carried out: options, prompt, token ids
    3     FormatError      the bytes are not a well-formed model file
    4     ModelError       a well-formed file, but not a model that Assay can run
    5     TemplateError    the chat template is missing, refused, or failed
    6     SourceError      a model could not be fetched or verified
    7     NumericError     an engine produced a value that is not a number
    8     -                no error: the two things that were compared differ, or the self-check failed (``DIFFERENT``)
    9     SampleError      two engines were not shown the same sample, so nothing was compared
    10    -                no error: no verdict, for want of a floor or as the file is in doubt (``UNDECIDED``)
    130   -                interrupted (Ctrl-C)
    129   -                told to end by SIGHUP, as 143 by SIGTERM: 128 + the signal's number
"""

from __future__ import annotations

DIFFERENT = 8
UNDECIDED = 10


class AssayError(Exception):
    """Base of every error a user can meet: one line of text, made of what, where and what to do."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy.removesuffix(".")  # none after a command or an address
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}. {self.remedy}" if self.remedy else line


class InputError(AssayError):
    """The request itself cannot be carried out: bad option, bad prompt, ids outside the vocabulary."""

    exit_code = 2


class FormatError(AssayError):
    """The bytes are not a well-formed model file.

    ``code`` is a short stable name (``"bad-magic"``), ``offset`` the byte offset in the file at which the
    trouble was found (None where no single byte is to blame), ``field`` the name of the field being read.
    """

    exit_code = 3

    def __init__(self, code: str, detail: str, *, path: object, field: str, offset: int | None = None,
                 remedy: str = "The file is damaged or not a model; fetch it again.") -> None:
        self.code, self.offset, self.field = code, offset, field
        at = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{detail} [{code}]", where=f"{path}: {field}{at}", remedy=remedy)


class ModelError(AssayError):
    """A well-formed file whose contents are not a model that Assay can run correctly."""

    exit_code = 4


class TemplateError(AssayError):
    """The chat template is missing, unknown to the oracle, refused by the sandbox, or failed to render."""

    exit_code = 5


class SourceError(AssayError):
    """A model could not be fetched, or what was fetched is not what the catalogue promises."""

    exit_code = 6


class NumericError(AssayError):
    """An engine produced a NaN or an infinity; generation stops rather than launder it into a token."""

    exit_code = 7


class SampleError(AssayError):
    """Two engines were not shown the same prompt, ids, weights or stages: no number is computed from that."""

    exit_code = 9
