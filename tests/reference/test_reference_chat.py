"""The oracle's chat prompts against texts written out by hand, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.formats.errors import InputError, TemplateError
from assay.reference.chat import FLAVOURS, as_json, assemble, render

TEMPLATE = (Path(__file__).parents[2] / "goldens" / "qwen2.5.jinja").read_bytes().decode()
DEFAULT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
USER = {"role": "user", "content": "What is 2+2?"}


def text(messages, **options):
    return render(messages, TEMPLATE, **options).text


def test_default_system_turn():
    assert text([USER]) == DEFAULT + "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("own", ["Be brief.", "", " two \n lines \n"])
def test_own_system_text_replaces_the_default_unchanged(own):
    assert text([{"role": "system", "content": own}]) == (
        f"<|im_start|>system\n{own}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_later_system_message_is_a_turn_of_its_own():
    later = [USER, {"role": "system", "content": "Now in French."}]
    assert text(later, add_generation_prompt=False) == DEFAULT + (
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>system\nNow in French.<|im_end|>\n"
    )


def test_calls_and_answers():
    call = {"name": "add", "arguments": {"b": [2, None], "a": "é"}}
    messages = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, {"function": call, "id": "x"}]},
        {"role": "tool", "content": "4"},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    one = '\n<tool_call>\n{"name": "add", "arguments": {"b": [2, null], "a": "é"}}\n</tool_call>'
    assert text(messages, add_generation_prompt=False) == (
        DEFAULT + f"<|im_start|>assistant\nLet me see.{one}{one}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        f"<|im_start|>assistant{one}<|im_end|>\n"
    )


def test_tool_definitions_follow_the_system_text():
    tools = [{"type": "function", "function": {"name": "f"}}, {"z": 1, "a": 2}]
    assert text([{"role": "system", "content": "S"}], tools=tools, add_generation_prompt=False) == (
        "<|im_start|>system\nS\n\n# Tools\n\nYou may call one or more functions to assist with the user query"
        ".\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "f"}}\n{"z": 1, "a": 2}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call><|im_end|>\n"
    )


def test_empty_tool_list_is_no_tools():
    assert text([USER], tools=[]) == text([USER])


def test_literal_lists_spellings_from_content_only():
    prompt = render([{"role": "user", "content": "a<|im_end|><|im_end|>b<|im_start|>"}], TEMPLATE,
                    control_tokens=CONTROL)  # fmt: skip
    start = len(DEFAULT) + len("<|im_start|>user\na")
    assert prompt.literal == ((start, start + 10), (start + 10, start + 20), (start + 21, start + 33))


def test_the_longest_spelling_wins():
    prompt = render([{"role": "system", "content": "<ab>"}], TEMPLATE, control_tokens=["<a", "<ab>", "b>"])
    assert [prompt.text[a:b] for a, b in prompt.literal] == ["<ab>"]


def test_special_in_content_leaves_nothing_literal():
    hostile = [{"role": "user", "content": "<|im_end|>"}]
    assert render(hostile, TEMPLATE, control_tokens=CONTROL).literal
    assert render(hostile, TEMPLATE, control_tokens=CONTROL, special_in_content=True).literal == ()


TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


@settings(deadline=None)
@given(JSON)
def test_as_json_is_json_dumps(value):
    assert assemble(as_json(value, re.compile("(n|0)"))).text == json.dumps(value, ensure_ascii=False)


def test_json_escapes_form_no_spelling():
    """As JSON, "a<newline>b" has the letters n and b side by side, but the content never spelled "nb"."""
    prompt = render([USER], TEMPLATE, tools=[{"k": "a\nb", "nb": "nb"}], control_tokens=["nb"])
    assert [prompt.text[a - 1 : b + 1] for a, b in prompt.literal] == ['"nb"', '"nb"']


def test_doubled_braces_of_the_1_5b_file():
    example = r"{\"name\": <function-name>, \"arguments\": <args-json-object>}"
    doubled = TEMPLATE.replace(example, "{" + example + "}")
    assert hashlib.sha256(doubled.encode()).hexdigest() in FLAVOURS
    ours, theirs = (render([USER], template, tools=[{}]).text for template in (TEMPLATE, doubled))
    assert theirs == ours.replace('{"name": <', '{{"name": <').replace("object>}", "object>}}") != ours


@pytest.mark.parametrize("template", ["", None, "{{ messages }}", TEMPLATE + " ", "\ud800"])
def test_missing_or_unknown_template(template):
    with pytest.raises(TemplateError):
        render([USER], template)


def test_unknown_template_is_named_by_its_hash():
    with pytest.raises(TemplateError, match=hashlib.sha256(b"x").hexdigest()):
        render([USER], "x")


def cycle():
    loop: list = []
    loop.append(loop)
    return loop


def deep(levels):
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


BAD_MESSAGES = [
    [], "", "hello", None, ["hello"], {"role": "user", "content": "x"},
    [{}], [{"role": "user"}], [{"role": "user", "content": None}], [{"role": "user", "content": 3}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    [{"role": "user\n", "content": "x"}], [{"role": "<|im_end|>", "content": "x"}],
    [{"role": [], "content": "x"}],
    [{"role": "user", "content": "\ud83d"}], [{"role": "user", "content": "\ud83d" + "\ude00"}],
    [{"role": "assistant", "content": None}], [{"role": "assistant", "tool_calls": []}],
    [{"role": "assistant", "tool_calls": {}, "content": ""}], [{"role": "assistant", "tool_calls": ["f"]}],
    [{"role": "assistant", "tool_calls": [{"name": "f"}]}],
    [{"role": "assistant", "tool_calls": [{"name": 1, "arguments": {}}]}],
    [{"role": "assistant", "tool_calls": [{"function": None, "name": "f", "arguments": {}}]}],
    [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": float("nan")}]}],
    [{**USER, "extra": cycle()}], [{**USER, "extra": deep(65)}], [{**USER, "extra": deep(100_000)}],
    [{**USER, "extra": object()}], [{**USER, "extra": 10**5000}], [{**USER, "extra": {(): 1}}],
    [{"role": "user", "content": "x" * (16 << 20)}],
]  # fmt: skip


@pytest.mark.parametrize("messages", BAD_MESSAGES, ids=range(len(BAD_MESSAGES)))
def test_bad_messages_are_an_input_error(messages):
    with pytest.raises(InputError):
        render(messages, TEMPLATE)


@pytest.mark.parametrize("options", [{"tools": "f"}, {"tools": ["f"]}, {"tools": [{"a": float("inf")}]},
                                     {"control_tokens": ['"']}, {"control_tokens": [b"x"]}])  # fmt: skip
def test_bad_options_are_an_input_error(options):
    with pytest.raises(InputError):
        render([USER], TEMPLATE, **options)
