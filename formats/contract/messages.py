"""What a conversation may look like before anybody renders it: the rules of the data, no rendering.

    messages   [{"role": "user", "content": "Hi"}, ...]; roles system, user, assistant, tool
    calls      an assistant's "tool_calls": [{"name": str, "arguments": JSON}, ...], each perhaps wrapped as
               {"function": {"name": ..., "arguments": ...}}; its content may then be None
    tools      [JSON object, ...], one definition per function

A prompt ends with an opened assistant's turn, or (``add_generation_prompt`` False) with the last message's end, or
(``continue_final_message``) within the last message, an assistant's, which the model is to go on with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.formats.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
MAX_REQUEST_BYTES = 16 << 20
MAX_DEPTH = 64
"""Deepest nesting of lists and objects in one message or tool."""


@dataclass(frozen=True)
class Conversation:
    """What an engine's ``chat_prompt`` is given: its arguments, by their names."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    """None: unless the last message is continued."""
    continue_final_message: bool = False


def opens_answer(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool | None,
                 continue_final_message: bool) -> bool:  # fmt: skip
    """Whether a prompt ends with an opened assistant's turn; ``messages`` have been checked.

    Raises InputError for both at once, and where the last message is not an assistant's text.
    """
    if not continue_final_message:
        return add_generation_prompt is not False
    if add_generation_prompt:
        raise InputError("an answer cannot be opened after a message that is to be continued",
                         where="continue_final_message", remedy="Leave out add_generation_prompt")  # fmt: skip
    if messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
        raise InputError("the last message is not an assistant's text", where="continue_final_message",
                         remedy="End with such a message, or leave out continue_final_message")  # fmt: skip
    return False


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy of ``messages`` made of plain JSON types alone; InputError if they break the rules."""
    copies = _checked_objects(messages, "messages")
    if not copies:
        raise InputError("the conversation is empty", where="messages", remedy="Give at least one message.")
    for i, message in enumerate(copies):
        _check_message(message, f"messages[{i}]")
    return copies


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """A copy of ``tools`` as of :func:`checked_messages`; None stays None."""
    return None if tools is None else _checked_objects(tools, "tools")


def checked_control_tokens(control_tokens: Sequence[str]) -> list[str]:
    """The spellings to look for in content, longest first, so that the longest match wins; no duplicates.

    A spelling that JSON would escape (quote, backslash, control character) is refused with InputError: inside
    tool definitions content is JSON, and there its range could not be told.
    """
    for token in control_tokens:
        if not isinstance(token, str) or json.dumps(token, ensure_ascii=False) != f'"{token}"':
            raise InputError(f"the token {token!a} is escaped in JSON, so it cannot be found there",
                             where="control_tokens", remedy="Leave it out, or pass special_in_content=True.")
    return sorted({token for token in control_tokens if token}, key=lambda token: (-len(token), token))


def _checked_objects(values: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(values, Sequence) or not all(isinstance(value, Mapping) for value in values):
        raise InputError("it is not a list of JSON objects", where=where, remedy="Give a list of JSON objects.")
    try:
        text = json.dumps([dict(value) for value in values], ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError("the text holds a lone surrogate", where=where,
                         remedy="Give text that can be written as UTF-8.") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON data ({error})", where=where,
                         remedy="Use text, finite numbers, lists and objects.") from error  # fmt: skip
    if size > MAX_REQUEST_BYTES:
        raise InputError(f"{size} bytes of JSON are more than the {MAX_REQUEST_BYTES} allowed", where=where,
                         remedy="Shorten it.")
    copies = json.loads(text)
    for i, copy in enumerate(copies):
        _check_depth(copy, f"{where}[{i}]")
    return copies


def _check_depth(value: Any, where: str) -> None:
    level = [value]  # one level of nesting at a time: recursion is what hostile nesting would exhaust
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise InputError(f"it is nested more than {MAX_DEPTH} deep", where=where, remedy="Give flatter data.")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_message(message: dict[str, Any], where: str) -> None:
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"there is no role {role!a}", where=f"{where}.role",
                         remedy=f"Choose one of {', '.join(ROLES)}.")  # fmt: skip
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise InputError("it is not a list of tool calls", where=f"{where}.tool_calls",
                         remedy="Give a list, or leave it out.")
    for i, call in enumerate(calls or []):
        _check_call(call, f"{where}.tool_calls[{i}]")
    content = message.get("content")
    speechless = content is None and role == "assistant" and calls
    if not isinstance(content, str) and not speechless:
        raise InputError(f"the content is of type {type(content).__name__}, not text", where=f"{where}.content",
                         remedy="Give text; only an assistant that calls tools may have none.")  # fmt: skip


def _check_call(call: Any, where: str) -> None:
    if isinstance(call, dict) and "function" in call:
        call, where = call["function"], f"{where}.function"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise InputError("it is not a tool call", where=where, remedy='Give {"name": text, "arguments": JSON}.')
