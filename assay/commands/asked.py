"""What a command is asked to read: a text, a conversation or token ids; typed, in a file, or on standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.formats import FormatError, InputError
from assay.formats.containers.strict_json import parse_value
from assay.formats.contract.messages import Conversation, checked_messages, checked_tools, opens_answer

PromptFile = Annotated[Path | None, typer.Option("--prompt-file", "-f", help="Read the prompt from this file.")]
Messages = Annotated[
    str | None,
    typer.Option(metavar="FILE.json", help="A conversation in OpenAI's format: a list of messages, or an object with "
                 "messages, tools, add_generation_prompt, continue_final_message; - reads standard input."),
]  # fmt: skip
IDS_HELP = "1,2,3, or the JSON of 'assay tokenize --json'; @FILE reads a file, - standard input."
MAX_BYTES = 16 << 20

Asked = str | Conversation | list[int]


def asked(prompt: str | None, prompt_file: Path | None, ids: str | None, messages: str | None, *,
          chat: bool = False) -> Asked:  # fmt: skip
    """What was given in the one place: a text, token ids, or a conversation.

    Raises InputError if there is none or more than one, if ``chat`` has no text to wrap, and for what cannot be read.
    """
    demand_one({"PROMPT": prompt, "--prompt-file": prompt_file, "--messages": messages, "--ids": ids})
    for option, given, why in (("--ids", ids, "Ids are final"), ("--messages", messages, "They are rendered anyway")):
        if chat and given is not None:
            raise InputError(f"--chat and {option} exclude one another", where=option, remedy=why)
    return read_from(prompt, prompt_file, messages) if ids is None else parse_ids(ids)


def asked_text(prompt: str | None, prompt_file: Path | None, messages: str | None) -> str | Conversation:
    """As :func:`asked`, where ids cannot be given."""
    demand_one({"TEXT": prompt, "--prompt-file": prompt_file, "--messages": messages})
    return read_from(prompt, prompt_file, messages)


def demand_one(given: dict[str, Any]) -> None:
    """Raise InputError unless one of the options was given, by its name, and one only."""
    if sum(value is not None for value in given.values()) != 1:
        *others, last = given
        raise InputError(f"give exactly one of {', '.join(others)} and {last}", where="prompt",
                         remedy="For example: assay run 'def fib(n):'")  # fmt: skip


def read_from(prompt: str | None, prompt_file: Path | None, messages: str | None) -> str | Conversation:
    """The text or the conversation in the one of the three that is given; ``-`` is standard input."""
    if messages is not None:
        return conversation_of(parse_json(read_text(messages), messages))
    return read_text("-" if prompt_file is None else prompt_file) if prompt in (None, "-") else prompt


def text_and_ids(what: Asked) -> tuple[str | Conversation | None, list[int] | None]:
    """What is rendered and encoded, and what is read as it is: one of the two, the other is None."""
    return (None, what) if isinstance(what, list) else (what, None)


def read_text(path: str | Path) -> str:
    """A UTF-8 text file of bounded size, line ends untouched; ``-`` is standard input."""
    if str(path) == "-":
        return decoded(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")
    try:
        with open(path, "rb") as file:
            return decoded(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=str(path),
                         remedy="Check the path") from None
    except ValueError:  # a NUL in the name
        raise InputError("it is not the name of a file", where=repr(path), remedy="Check the path") from None


def decoded(raw: bytes, where: str) -> str:
    """``raw`` as UTF-8; InputError if it is not, or too long."""
    if len(raw) > MAX_BYTES:
        raise InputError(f"it is longer than {MAX_BYTES} bytes", where=where, remedy="Shorten it")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"it is not valid UTF-8 at byte {error.start}", where=where,
                         remedy="Convert it to UTF-8") from None


def parse_json(text: str, where: str) -> Any:
    """The JSON value in a user's ``text``; InputError if there is a doubt what it is."""
    try:
        return parse_value(text.encode(errors="surrogatepass"), Path(where), "JSON")
    except FormatError as error:
        raise InputError(error.what.removesuffix(f" [{error.code}]"), where="standard input" if where == "-" else where,
                         remedy="Give JSON") from None  # fmt: skip


def parse_ids(text: str) -> list[int]:
    """Token ids from ``"1,2,3"``, from a JSON list, or from a JSON object whose ``ids`` they are.

    ``@FILE`` and ``-`` name where that is read.
    """
    if text == "-" or text.startswith("@"):
        text = read_text(text.removeprefix("@"))
    text = text.strip()
    if text.startswith(("[", "{")):
        found = parse_json(text, "--ids")
        if isinstance(found, dict) and "prompt_ids" in found:  # of 'assay run --json': its ids are the answer alone
            raise InputError("it has both prompt_ids and ids", where="--ids", remedy="Give the list that is meant")
        found = found.get("ids") if isinstance(found, dict) else found
        if isinstance(found, list) and all(type(i) is int for i in found):
            return found
    else:
        try:
            return [int(part) for part in text.split(",")]
        except ValueError:
            pass
    raise InputError(f"{text[:40]!r} is not a list of token ids", where="--ids",
                     remedy="Write them as 1,2,3, or as 'assay tokenize --json' does")  # fmt: skip


def conversation_of(value: Any) -> Conversation:
    """The conversation in JSON as OpenAI's interface has it: a list of messages, or an object with the keys of
    :class:`Conversation`.

    That interface writes the arguments of a call as a text of JSON, templates want the object: it is put in its place.
    Raises InputError for anything else, and for messages that break the rules.
    """
    given: Any = {"messages": value} if isinstance(value, list) else value
    known = list(Conversation.__dataclass_fields__)
    if not isinstance(given, dict) or "messages" not in given:
        raise InputError("it is not a list of messages, nor an object that has one", where="messages",
                         remedy='Give [{"role": "user", "content": "Hi"}], or {"messages": [...], "tools": [...]}')
    if unknown := [key for key in given if key not in known]:
        raise InputError(f"the key {unknown[0]!a} has no effect here", where="messages",
                         remedy=f"Leave it out; known are {', '.join(known)}")  # fmt: skip
    for key in known[2:]:
        if not isinstance(given.get(key), bool | None):
            raise InputError("it is not true or false", where=key, remedy="Give true or false")
    messages, tools = checked_messages(given["messages"]), checked_tools(given.get("tools"))
    for i, message in enumerate(messages):
        for j, call in enumerate(message.get("tool_calls") or []):
            _parse_arguments(call.get("function", call), f"messages[{i}].tool_calls[{j}].arguments")
    made = Conversation(messages, tools, given.get("add_generation_prompt"), bool(given.get("continue_final_message")))
    opens_answer(messages, made.add_generation_prompt, made.continue_final_message)
    return made


def _parse_arguments(call: dict[str, Any], where: str) -> None:
    if isinstance(call["arguments"], str):
        call["arguments"] = parse_json(call["arguments"], where)
    if not isinstance(call["arguments"], dict):
        raise InputError("it is not a JSON object", where=where, remedy='Give {"name": value}, or that as text')
