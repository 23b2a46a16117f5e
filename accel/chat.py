"""Chat prompts: the model file's own Jinja template, rendered in a child process with limits.

Content must not become control tokens, so before rendering each control token's spelling in content is
replaced by one private-use character that occurs nowhere else; after rendering it is put back and its place
noted. One character, so that no template can cut it in two, and JSON leaves it as it is. (A template that
measures the length of content sees one character in place of such a spelling.)

The child is ``chat_sandbox.py``; rendering never happens at load, only here.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from assay.formats import ModelFile
from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import checked_control_tokens, checked_messages, checked_tools, opens_answer
from assay.formats.errors import InputError, TemplateError
from assay.formats.system.python_child import python_child

SANDBOX = Path(__file__).with_name("chat_sandbox.py")
MAX_TEMPLATE_BYTES = 64 << 10
WALL_SECONDS = 5.0
PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Unicode's three private-use areas."""


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
    """The prompt for ``messages`` (and ``tools``), as ``template`` renders it.

    ``literal`` of the result lists where content (messages' text, tool definitions, names and arguments of
    calls) spells one of ``control_tokens``; it is empty with ``special_in_content``, which lets content write
    control tokens. What a message must be, and what the two flags make of the end: ``formats/contract/messages.py``.
    ``now`` is the moment that the template's ``strftime_now`` shows, the present if None.
    Raises InputError for messages that break those rules, TemplateError for a template that is missing, refused, fails,
    leaves out the message that is to be continued, or exceeds a limit on time, memory or output.
    """
    template = checked_template(template)
    messages, tools = checked_messages(messages), checked_tools(tools)
    spellings = [] if special_in_content else checked_control_tokens(control_tokens)
    opens = opens_answer(messages, add_generation_prompt, continue_final_message)
    everything = json.dumps([template, messages, tools], ensure_ascii=False)
    mask = placeholders(spellings, everything)
    messages = [masked_message(message, mask) for message in messages]
    end = ""
    if continue_final_message:
        (end,) = placeholders([""], everything + "".join(mask.values())).values()
        messages[-1]["content"] += end + " "
    request = {
        "template": template,
        "messages": messages,
        "tools": masked(tools, mask),
        "add_generation_prompt": opens,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "now": (now or datetime.now()).isoformat(),
    }
    return unmasked(up_to(end, rendered(run_child(request))), mask)


def checked_template(template: str | None) -> str:
    """The template; TemplateError if it is missing, not valid text, or longer than MAX_TEMPLATE_BYTES."""
    if not template:
        raise TemplateError("the model has no chat template", where="tokenizer.chat_template",
                            remedy="It is not a chat model: give raw text as the prompt.")  # fmt: skip
    try:
        size = len(template.encode())
    except UnicodeEncodeError:
        raise failed("it is not valid Unicode") from None
    if size > MAX_TEMPLATE_BYTES:
        raise failed(f"it has {size} bytes, more than {MAX_TEMPLATE_BYTES}")
    return template


def failed(reason: str) -> TemplateError:
    """The one shape of this module's template errors."""
    return TemplateError(f"the chat template did not render: {reason}", where="tokenizer.chat_template",
                         remedy="Give the rendered text as a raw prompt, or use another model.")  # fmt: skip


def placeholders(spellings: Sequence[str], everything: str) -> dict[str, str]:
    """A private-use character that ``everything`` lacks for each spelling, longest spelling first."""
    taken = set(everything)
    free = (chr(code) for code in chain(*PRIVATE_USE) if chr(code) not in taken)
    mask = dict(zip(spellings, free, strict=False))
    if len(mask) < len(spellings):
        raise InputError("the text has every private-use character in it", where="messages",
                         remedy="Remove some, or pass special_in_content=True.")  # fmt: skip
    return mask


def masked(value: Any, mask: Mapping[str, str]) -> Any:
    """``value`` with every spelling in its strings and keys replaced, leftmost first, the longest winning."""
    if not mask:
        return value
    pattern = re.compile("|".join(map(re.escape, mask)))

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: mask[match[0]], value)
        if isinstance(value, dict):
            return {walk(key): walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list) else value

    return walk(value)


def masked_message(message: dict[str, Any], mask: Mapping[str, str]) -> dict[str, Any]:
    """A message with its content masked: not its role, nor the names of its fields and those of its calls."""
    kept = ("role", "tool_calls")
    fields = {key: value if key in kept else masked(value, mask) for key, value in message.items()}
    if message.get("tool_calls"):
        fields["tool_calls"] = [masked_call(call, mask) for call in message["tool_calls"]]
    return fields


def masked_call(call: dict[str, Any], mask: Mapping[str, str]) -> dict[str, Any]:
    """A tool call, wrapped in ``function`` or not, with its values masked and its fields' names kept."""
    return {key: masked_call(value, mask) if key == "function" else masked(value, mask)
            for key, value in call.items()}  # fmt: skip


def unmasked(text: str, mask: Mapping[str, str]) -> Prompt:
    """The spellings back in place of their characters, and the range of each."""
    if not mask:
        return Prompt(text)
    spelling_of = {character: spelling for spelling, character in mask.items()}
    parts, literal, position = [], [], 0
    for part in re.split("([" + "".join(spelling_of) + "])", text):
        if part in spelling_of:
            part = spelling_of[part]
            literal.append((position, position + len(part)))
        parts.append(part)
        position += len(part)
    return Prompt("".join(parts), tuple(literal))


def up_to(end: str, text: str) -> str:
    """``text`` before the last ``end``, which stands at the end of what is to be continued; all of it without ``end``.

    A blank was put behind it. Where that is gone the template strips content, so this one's own blanks go as well, as
    if it had been rendered without ``end`` (and as transformers does).
    """
    if not end:
        return text
    before, found, after = text.rpartition(end)
    if not found:
        raise failed("it does not show the message that is to be continued")
    kept = before if after.startswith(" ") else before.rstrip()
    return kept.replace(f"{end} ", "").replace(end, "")  # where the template shows that text twice


def run_child(request: dict[str, Any]) -> Any:
    """The child's answer, ``{"text"}`` or ``{"error"}``; TemplateError if it was killed or crashed."""
    try:
        sent = json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError("the text holds a lone surrogate", where="bos_token, eos_token",
                         remedy="Pass the tokens as the vocabulary has them.") from None  # fmt: skip
    try:
        child = subprocess.run(python_child(SANDBOX, needs=("jinja2", "markupsafe"), only=True), input=sent,
                               capture_output=True, env={}, cwd="/", timeout=WALL_SECONDS, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise failed(f"it took longer than {WALL_SECONDS:g} s") from None
    except OSError as error:
        raise failed(f"the sandbox could not be started ({error})") from error
    if child.returncode == -signal.SIGXCPU:
        raise failed("it used more than 2 s of processor time")
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise failed(f"the sandbox ended with status {child.returncode} {last}".rstrip())
    try:
        return json.loads(child.stdout)
    except ValueError:
        return None


def rendered(answer: Any) -> str:
    """The text of the child's answer; TemplateError with its reason if it has none."""
    match answer:
        case {"text": str(text)}:
            return text
        case {"error": str(reason)}:
            raise failed(reason)
    raise failed("the sandbox gave no readable answer")
