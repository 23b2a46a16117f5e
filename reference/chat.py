"""Chat prompts: a conversation written out as the one text that a Qwen2.5 chat model was trained to continue.

Every turn is ``<|im_start|>{role}\\n{content}<|im_end|>\\n`` ("ChatML"); the prompt ends with an opened
assistant turn, which the model fills in. Tool definitions, calls and results are JSON inside such turns.

A model file states its format as a program in the Jinja language. This module does not run that program: it
says in Python what the known ones mean, and knows them by the SHA-256 of their text, as Jinja reads it.

Source: the ``tokenizer.chat_template`` of Qwen2.5-Coder-0.5B-Instruct and -1.5B-Instruct.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from assay.formats import ModelFile
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import checked_control_tokens, checked_messages, checked_tools, opens_answer
from assay.formats.errors import TemplateError

Piece = tuple[str, bool]
"""A piece of the prompt's text, and whether it is a control token's spelling that came from content."""


class Flavour(NamedTuple):
    """Where known templates differ: the system text when none is given, and the example of a call."""

    default_system: str
    example_call: str


QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CALL = '{"name": <function-name>, "arguments": <args-json-object>}'

FLAVOURS = {
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": Flavour(QWEN, CALL),
    # The file of the 1.5B doubles the braces of the example (and only there): an accident of its making, but
    # what the model's users get.
    "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4": Flavour(QWEN, "{" + CALL + "}"),
}
"""SHA-256 of the template's UTF-8 text, as :func:`as_jinja_reads` gives it -> what it means."""


def chat_prompt(file: ModelFile, messages: Sequence[Mapping[str, Any]], *,
                tools: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool | None = None,
                continue_final_message: bool = False) -> Prompt:  # fmt: skip
    """The prompt for a conversation with the model of ``file``; the rest as of :func:`render`."""
    vocabulary = file.vocabulary
    return render(messages, file.chat_template or "", tools=tools, add_generation_prompt=add_generation_prompt,
                  continue_final_message=continue_final_message, control_tokens=vocabulary.control_tokens,
                  bos_token=vocabulary.text_of(vocabulary.bos_id),
                  eos_token=vocabulary.text_of(vocabulary.eos_id))  # fmt: skip


@checked
def render(messages: Sequence[Mapping[str, Any]], template: str | None, *, control_tokens: Sequence[str] = (),
           tools: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool | None = None,
           continue_final_message: bool = False, special_in_content: bool = False, bos_token: str = "",
           eos_token: str = "", now: datetime | None = None) -> Prompt:  # fmt: skip
    """The prompt for ``messages`` (and ``tools``), as the model file's ``template`` means it.

    ``literal`` of the result lists where content (messages' text, tool definitions, names and arguments of
    calls) spells one of ``control_tokens``; it is empty with ``special_in_content``, which lets content write
    control tokens. What a message must be, and what the two flags make of the end: ``formats/contract/messages.py``.
    No known template mentions ``bos_token``, ``eos_token`` or the date ``now``: they are here
    because the fast twin, which runs any template, needs them. Raises InputError for messages that break those
    rules, TemplateError for a missing or unknown template.
    """
    flavour = flavour_of(template)
    messages, tools = checked_messages(messages), checked_tools(tools)
    spellings = [] if special_in_content else checked_control_tokens(control_tokens)
    spelling = re.compile("(" + ("|".join(map(re.escape, spellings)) or "(?!)") + ")")  # (?!) matches nothing
    opens = opens_answer(messages, add_generation_prompt, continue_final_message)
    prompt = [*system_turn(messages[0], tools, flavour, spelling), *turns(messages, spelling)]
    if continue_final_message:
        prompt.pop()  # what ends the last turn
    return assemble([*prompt, ("<|im_start|>assistant\n" if opens else "", False)])


def flavour_of(template: str | None) -> Flavour:
    """What ``template`` means; TemplateError if it is missing or none that the oracle knows."""
    if not template:
        raise TemplateError("the model has no chat template", where="tokenizer.chat_template",
                            remedy="It is not a chat model: give raw text as the prompt.")  # fmt: skip
    known = FLAVOURS.get(digest_of(as_jinja_reads(template)))
    if known is None:
        raise TemplateError(f"the oracle does not know the chat template with SHA-256 {digest_of(template)}",
                            where="tokenizer.chat_template",
                            remedy="Use the accel engine, or give the prompt as raw text.")  # fmt: skip
    return known


def as_jinja_reads(template: str) -> str:
    r"""``template`` with what Jinja does not see in its newlines made uniform: two that render alike are equal.

    Jinja reads ``\r\n`` and ``\r`` as ``\n``, drops one newline at the end of the source, and (``trim_blocks``, which
    chat templates are rendered with) the one right after a block's ``%}``. Here the text ends with one in any case.
    Source: jinja2/lexer.py, ``Lexer.tokeniter``.
    """
    text = re.sub("\r\n?", "\n", template).removesuffix("\n")
    return (text.removesuffix("\n") if text.endswith("%}\n") else text) + "\n"


def digest_of(text: str) -> str:
    """SHA-256 of ``text`` in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def system_turn(first: dict, tools: list[dict] | None, flavour: Flavour,
                spelling: re.Pattern) -> Iterator[Piece]:  # fmt: skip
    """The opening turn, always there: the first message if it is the system's, or else the default text."""
    yield "<|im_start|>system\n", False
    if first["role"] == "system":
        yield from content(first["content"], spelling)
    else:
        yield flavour.default_system, False
    if tools:
        yield from tool_definitions(tools, flavour, spelling)
    yield "<|im_end|>\n", False


def tool_definitions(tools: list[dict], flavour: Flavour, spelling: re.Pattern) -> Iterator[Piece]:
    """What the system turn says about tools: one definition a line, and how to call them."""
    yield "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n", False
    yield "You are provided with function signatures within <tools></tools> XML tags:\n<tools>", False
    for tool in tools:
        yield "\n", False
        yield from as_json(tool, spelling)
    yield "\n</tools>\n\nFor each function call, return a json object with function name and arguments", False
    yield f" within <tool_call></tool_call> XML tags:\n<tool_call>\n{flavour.example_call}", False
    yield "\n</tool_call>", False


def turns(messages: list[dict], spelling: re.Pattern) -> Iterator[Piece]:
    """Every turn after the opening one, by the role of its message."""
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            opens = i == 0 or messages[i - 1]["role"] != "tool"
            closes = i == len(messages) - 1 or messages[i + 1]["role"] != "tool"
            yield from tool_turn(message, spelling, opens=opens, closes=closes)
        elif message["role"] == "assistant" and message.get("tool_calls"):
            yield from call_turn(message, spelling)
        elif message["role"] != "system" or i > 0:  # a system message that comes first is already written
            yield from turn(message, spelling)


def turn(message: dict, spelling: re.Pattern) -> Iterator[Piece]:
    """``<|im_start|>{role}\\n{content}<|im_end|>\\n``: a user's, an assistant's or a later system message."""
    yield f"<|im_start|>{message['role']}\n", False
    yield from content(message["content"], spelling)
    yield "<|im_end|>\n", False


def call_turn(message: dict, spelling: re.Pattern) -> Iterator[Piece]:
    """An assistant's turn that calls tools: its text if there is any, then a JSON object for each call."""
    yield "<|im_start|>assistant", False
    if message.get("content"):
        yield "\n", False
        yield from content(message["content"], spelling)
    for call in message["tool_calls"]:
        call = call.get("function", call)
        yield '\n<tool_call>\n{"name": "', False
        yield from content(call["name"], spelling)  # as it is: the template does not escape names
        yield '", "arguments": ', False
        yield from as_json(call["arguments"], spelling)
        yield "}\n</tool_call>", False
    yield "<|im_end|>\n", False


def tool_turn(message: dict, spelling: re.Pattern, *, opens: bool, closes: bool) -> Iterator[Piece]:
    """One tool's answer. Answers in a row share a user turn: the first opens it, the last closes it."""
    yield "<|im_start|>user" if opens else "", False
    yield "\n<tool_response>\n", False
    yield from content(message["content"], spelling)
    yield "\n</tool_response>", False
    yield "<|im_end|>\n" if closes else "", False


def content(text: str, spelling: re.Pattern) -> Iterator[Piece]:
    """``text`` cut at each control token's spelling: splitting by a group puts those at the odd places."""
    for i, part in enumerate(spelling.split(text)):
        yield part, i % 2 == 1


def as_json(value: Any, spelling: re.Pattern) -> Iterator[Piece]:
    """``json.dumps(value, ensure_ascii=False)``, with the spellings in its keys and strings marked."""
    if isinstance(value, str):
        yield '"', False
        for part, is_spelling in content(value, spelling):
            yield json.dumps(part, ensure_ascii=False)[1:-1], is_spelling
        yield '"', False
    elif isinstance(value, (dict, list)):
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        yield opening, False
        for i, item in enumerate(value):
            yield ", " if i else "", False
            yield from as_json(item, spelling)
            if isinstance(value, dict):
                yield ": ", False
                yield from as_json(value[item], spelling)
        yield closing, False
    else:
        yield json.dumps(value), False


def assemble(pieces: Iterable[Piece]) -> Prompt:
    """The pieces joined, and the character range of each control spelling among them."""
    parts, literal, position = [], [], 0
    for text, is_spelling in pieces:
        if is_spelling:
            literal.append((position, position + len(text)))
        parts.append(text)
        position += len(text)
    return Prompt("".join(parts), tuple(literal))
