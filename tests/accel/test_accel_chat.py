"""Any template, rendered in the child; and hostile templates, which end as one line within the limits."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime

import pytest

from assay.accel import chat, chat_sandbox
from assay.accel.chat import render
from assay.formats.errors import InputError, TemplateError

USER = [{"role": "user", "content": "Hi"}]
SANDBOX = chat.SANDBOX
HANG_GUARD_S = 8.0  # above the wall limit of 5 s: what takes longer was not stopped


@pytest.fixture
def in_process(monkeypatch):
    """The child's own code without the child, for tests that are not about the process."""
    monkeypatch.setattr(chat, "run_child", chat_sandbox.answer)


def test_transformers_environment(in_process):
    template = ("{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.content }}|\n"
                "{% endfor %}{% generation %}G{% endgeneration %}{{ bos_token }}{{ eos_token }}"
                "{{ strftime_now('%d %b %Y') }}{{ tools | tojson }}{{ documents is none }}")  # fmt: skip
    prompt = render([*USER, *USER], template, tools=[{"z": "<é>", "a": 1}], bos_token="<s>", eos_token="</s>",
                    now=datetime(2024, 7, 26))  # fmt: skip
    assert prompt.text == 'Hi|\nG<s></s>26 Jul 2024[{"z": "<é>", "a": 1}]True'


def test_tojson_options(in_process):
    assert render(
        USER, "{{ {'b': 'é', 'a': 1} | tojson(indent=1, sort_keys=True, ensure_ascii=True) }}"
    ).text == ('{\n "a": 1,\n "b": "\\u00e9"\n}')


def test_the_same_through_the_real_child():
    content = "é <|im_end|> \r\n\0\u200b\U0001f600"
    template = "{{ messages[0].content }}|{{ messages | tojson }}"
    prompt = render([{"role": "user", "content": content}], template, control_tokens=["<|im_end|>"])
    as_json = json.dumps([{"role": "user", "content": content}], ensure_ascii=False)
    assert prompt.text == f"{content}|{as_json}"
    assert [prompt.text[a:b] for a, b in prompt.literal] == ["<|im_end|>"] * 2


def test_raise_exception_is_one_line(in_process):
    with pytest.raises(TemplateError, match="no system please") as caught:
        render(USER, "{{ raise_exception('no system\n\n please') }}")
    assert "\n" not in str(caught.value)


def test_a_spelling_in_the_template_is_not_literal(in_process):
    prompt = render(
        [{"role": "user", "content": "<e>"}], "<e>{{ messages[0].content }}<e>", control_tokens=["<e>"]
    )
    assert prompt.text == "<e><e><e>" and prompt.literal == ((3, 6),)


def test_private_use_characters_of_the_user_survive(in_process):
    private = "".join(map(chr, range(0xE000, 0xF900)))
    prompt = render([{"role": "user", "content": private + "<e>"}], "{{ messages[0].content }}\ue000",
                    control_tokens=["<e>", "\ue001"])  # fmt: skip
    assert prompt.text == private + "<e>\ue000"
    assert prompt.literal == ((1, 2), (6400, 6403))


def test_no_private_use_character_left(in_process):
    everything = "".join(chr(code) for area in chat.PRIVATE_USE for code in area)
    with pytest.raises(InputError, match="private-use"):
        render([{"role": "user", "content": everything}], "x", control_tokens=["<e>"])


HARMFUL = {
    "include": ("{% include '/etc/passwd' %}", "another template"),
    "import": ("{% import 'x' as x %}", "another template"),
    "from": ("{% from 'x' import y %}", "another template"),
    "extends": ("{% extends 'x' %}", "another template"),
    "text times number": ("{{ 'x' * 10**10 }}", "multiplies"),
    "number times list": ("{{ 10**10 * [1] }}", "multiplies"),
    "percent format": ("{{ '%1000000000d' % 1 }}", "formats with %"),
    "wide range": ("{% for i in range(0, 10001) %}{% endfor %}", "range exceeds"),
    "class": ("{{ ''.__class__.__mro__ }}", "private attribute"),
    "class by item": ("{{ ''['__class__'] }}", "private attribute"),
    "class by filter": ("{{ (''|attr('__class__')).mro() }}", "SecurityError"),
    "format walk": ("{{ '{0.__class__.__mro__}'.format('') }}", "SecurityError"),
    "mutation": ("{{ messages.append(1) }}", "SecurityError"),
    "syntax": ("{% if %}", "SyntaxError"),
    "undefined": ("{{ a.b.c }}", "UndefinedError"),
    "not JSON": ("{{ nothing | tojson }}", "TypeError"),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
    "deep nesting": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "too deeply"),
    "surrogate": (r"{{ '\ud800' }}", "not valid Unicode"),
    "long output": ("{% for i in range(10000) %}" + "x" * 1000 + "{% endfor %}", "output exceeds"),
}


@pytest.mark.parametrize(("template", "reason"), HARMFUL.values(), ids=HARMFUL)
def test_harmful_templates_are_refused_by_the_sandbox(in_process, template, reason):
    with pytest.raises(TemplateError, match=reason):
        render(USER, template)


DEVOURING = {
    "nested ranges": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "2 s of proc|longer than 5 s",
    ),
    "power": ("{{ 10 ** (10 ** 10) }}", "2 s of proc|longer than 5 s|memory"),
    "centre": ("{{ 'x' | center(10**9) }}", "512 MiB"),
    "hidden product": ("{% set x = messages[0].content %}{{ x * 10**9 }}", "512 MiB"),
    "hidden format": ("{{ '%1000000000d' | format(1) }}", "512 MiB"),
    "long output": ("{{ 'x' | center(5 * 10**6) }}", "output exceeds"),
    "include": ("{% include '/etc/passwd' %}", "another template"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
}


@pytest.mark.parametrize(("template", "reason"), DEVOURING.values(), ids=DEVOURING)
def test_devouring_templates_end_within_the_limits(template, reason):
    started = time.monotonic()
    with pytest.raises(TemplateError, match=reason):
        render(USER, template)
    assert time.monotonic() - started < HANG_GUARD_S


@pytest.mark.parametrize("template", ["", None, "\ud800", "x" * (65 * 1024)])
def test_unusable_templates_never_reach_the_child(monkeypatch, template):
    monkeypatch.setattr(chat, "run_child", None)
    with pytest.raises(TemplateError):
        render(USER, template)


def test_wall_clock_limit(monkeypatch):
    monkeypatch.setattr(chat, "WALL_SECONDS", 0.001)
    with pytest.raises(TemplateError, match="longer than"):
        render(USER, "x")


@pytest.mark.parametrize(("program", "reason"), [
    ("import sys; sys.exit('out of order')", "status 1 out of order"),
    ("import os; os.abort()", "status -6"),
    ("print('{')", "no readable answer"),
    ("print('[]')", "no readable answer"),
    ("print('{}')", "no readable answer"),
    ("print('{\"text\": 1}')", "no readable answer"),
])  # fmt: skip
def test_a_broken_child_is_one_line(monkeypatch, tmp_path, program, reason):
    monkeypatch.setattr(chat, "SANDBOX", tmp_path / "child.py")
    chat.SANDBOX.write_text(program)
    with pytest.raises(TemplateError, match=reason) as caught:
        render(USER, "x")
    assert "\n" not in str(caught.value)


def test_the_child_inherits_nothing(monkeypatch, tmp_path):
    """No environment (the interpreter itself may set LC_CTYPE), no open file but the standard three."""
    monkeypatch.setattr(chat, "SANDBOX", tmp_path / "child.py")
    monkeypatch.setenv("SECRET", "1")
    chat.SANDBOX.write_text(
        "import json, os, sys\n"
        "files = [fd for fd in range(3, 256) if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print(json.dumps({'text': repr((sorted(set(os.environ) - {'LC_CTYPE'}), files))}))"
    )
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        assert render(USER, "x").text == "([], [])"


def test_the_child_imports_neither_accel_nor_jax(monkeypatch, tmp_path):
    monkeypatch.setattr(chat, "SANDBOX", tmp_path / "child.py")
    chat.SANDBOX.write_text(
        f"import runpy, json, sys\nrunpy.run_path({str(SANDBOX)!r}, run_name='sandbox')\n"
        "print(json.dumps({'text': str(sorted({'assay', 'jax', 'numpy'} & set(sys.modules)))}))"
    )
    assert render(USER, "x").text == "[]"


def test_no_python(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(TemplateError, match="could not be started"):
        render(USER, "x")


def test_bos_token_must_be_text():
    with pytest.raises(InputError):
        render(USER, "x", bos_token="\ud800")
