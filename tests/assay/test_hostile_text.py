"""A file, a folder and a template whose every text is hostile, through every command: no terminal obeys any of it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.cli import COMMANDS
from assay.formats.system.printable import OBEYED
from assay.output import Escaping
from tests import hf_builder, model_builder
from tests.assay.command_line import Outcome, assay
from tests.model_builder import KINDS, MERGES, TOKENS

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202egnp.\u2066[red]x[/red][link=e]y[/link]\n\tz\u2028\x7f"
TEMPLATE = "{{ messages[0].content }}" + HOSTILE
REFUSING = '{{ raise_exception("' + HOSTILE.replace("\n", " ") + '") }}'
NAME = "\x1b]0;owned\x07\x1b[2J\x9b\u202e[red]x[/red][link=e]y[/link]\n\t"
"""A tensor's, of at most 63 bytes."""
SHAPE = model_builder.Shape(n_padding=2)
NEVER_RUN = {"pull", "bench", "doctor", "prove"}
"""What the catalogue says, what takes minutes, what reads no file of a user's: all print through the same functions."""


def metadata(template: str) -> dict[str, object]:
    """Every text of a model's metadata that can be hostile while it runs."""
    return {"general.name": HOSTILE, f"general.{HOSTILE}": HOSTILE, "general.list": [HOSTILE, HOSTILE],
            "tokenizer.ggml.tokens": [*TOKENS[:-1], HOSTILE], "tokenizer.ggml.token_type": KINDS,
            "tokenizer.chat_template": template}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose own name is hostile, too."""
    here = tmp_path_factory.mktemp("hostile") / HOSTILE.replace("/", "|")
    here.mkdir()
    for name, template in (("runs", TEMPLATE), ("refuses", REFUSING)):
        model_builder.build(here / f"{name}.gguf", SHAPE, metadata=metadata(template))
    odd = {f"{NAME}{i}": tensor for i, tensor in enumerate(model_builder.tensors_of(SHAPE).values())}
    model_builder.build(here / "odd.gguf", SHAPE, metadata=metadata(TEMPLATE) | {"general.architecture": HOSTILE},
                        tensors=odd)  # fmt: skip
    merges = [*MERGES[:2], HOSTILE]
    model_builder.build(here / "broken.gguf", SHAPE, metadata={"tokenizer.ggml.merges": merges})
    hf_builder.build(here / "hf", config={HOSTILE: HOSTILE, "architectures": [HOSTILE]})
    hf_builder.build(here / "chat", files={"chat_template.jinja": REFUSING})
    return here


def demand_shown(said: Outcome) -> None:
    """Whatever was printed, no character of it is obeyed; as JSON it still is JSON."""
    for stream in (said.out, said.err):
        assert not [c for c in OBEYED.findall(stream) if c != "\n"], (said.arguments, stream)
    assert said.code in (0, 2, 3, 4, 5, 8, 9, 10), said.err
    if "--json" in said.arguments and said.out:
        json.loads(said.out)


ON_ANY_FILE = [
    ("inspect",), ("inspect", "--keys"), ("tensors",), ("tensors", "--stats"), ("tensors", "--name", HOSTILE),
    ("validate", "-v"), ("hex", "--length", "9000"), ("hex", "--tensor", f"{NAME}0"), ("diff", "builtin"),
]  # fmt: skip
ON_A_MODEL = [
    ("run", "a", "-n", "2", "-e", "reference", "-m"), ("run", "a", "--chat", "-n", "2", "-e", "reference", "-m"),
    ("tokenize", HOSTILE, "-e", "reference", "-m"), ("chat", "-n", "2", "-e", "reference", "--json", "-m"),
    ("parity", HOSTILE, "-e", "reference", "--runs", "2", "-m"), ("flips", HOSTILE, "-e", "reference", "-m"),
    ("bisect", "abc", "-e", "reference", "--runs", "2", "-m"), ("trace", "abc", "-e", "reference", "-o", "{new}", "-m"),
    ("perplexity", "-f", "{text}", "-c", "8", "-e", "reference", "-m"),
    ("parity", "a", "--chat", "-e", "reference", "-m"), ("axes", "abc", "--engines", "reference f32", "-m"),
    ("flips", "a", "--arith", HOSTILE, "-m"), ("run", "a", "--engine", HOSTILE, "-m"), (HOSTILE, "a", "-m"),
]  # fmt: skip


def test_every_command_is_here() -> None:
    tried = {command[0] for command in [*ON_ANY_FILE, *ON_A_MODEL]} | {"convert", "quantize"}
    assert tried | NEVER_RUN >= set(COMMANDS)


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("command", ON_ANY_FILE, ids=" ".join)
def test_commands_that_look_into_any_file(command: tuple[str, ...], as_json: tuple[str, ...], folder: Path) -> None:
    for name in ("runs.gguf", "odd.gguf", "broken.gguf", "hf", "chat", HOSTILE):
        demand_shown(assay(*command, str(folder / name), *as_json))


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("command", ON_A_MODEL, ids=" ".join)
def test_commands_that_run_a_model(
    command: tuple[str, ...], as_json: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(HOSTILE * 8)
    places = {"{new}": str(tmp_path / "new"), "{text}": str(tmp_path / "text")}
    command = tuple(places.get(part, part) for part in command)
    whole = {"parity", "flips", "bisect", "axes", "trace", "perplexity"} & {command[0]}
    for name in ("runs.gguf", *(() if whole else ("broken.gguf", "hf")), "refuses.gguf", "chat"):
        said = assay(*command, str(folder / name), *as_json, *(("--force",) if command[0] == "trace" else ()),
                     stdin=HOSTILE.encode())  # fmt: skip
        if command[0] == "run" and not as_json:  # in a pipe the answer is data; see below
            said = Outcome(said.arguments, said.code, "", said.err)
        if command[0] == "chat":
            for line in said.out.splitlines():
                json.loads(line)
            said = Outcome(("chat",), said.code, said.out, said.err)
        demand_shown(said)


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
def test_commands_that_write_files(as_json: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("runs.gguf", "odd.gguf", "broken.gguf", "hf", "chat")):
        target = tmp_path / f"{i}{HOSTILE}"
        demand_shown(assay("convert", str(folder / name), f"{target}.apr", *as_json))
        demand_shown(assay("convert", str(folder / name), f"{target}.gguf", "--as", HOSTILE, *as_json))
        demand_shown(assay("quantize", str(folder / name), f"{target}.q.gguf", "-t", "Q8_0", *as_json))


def test_reports_show_it_too(folder: Path, tmp_path: Path) -> None:
    html, xml = tmp_path / "page.html", tmp_path / "junit.xml"
    said = assay("parity", HOSTILE, "-e", "reference", "--runs", "2", "-m", str(folder / "runs.gguf"),
                 "--report", str(html), "--junit", str(xml))  # fmt: skip
    assert html.exists() and xml.exists(), said.err
    for file in (html, xml):
        text = file.read_text()
        assert not [c for c in OBEYED.findall(text) if c not in "\n\t"]
        assert r"\u001b]0;owned" in text


def test_markup_in_names_is_only_text(folder: Path) -> None:
    for command in ("tensors", "inspect"):
        shown = assay(command, str(folder / "odd.gguf"), *(["--keys"] if command == "inspect" else []))
        assert shown.code == 0 and "[red]x[/red][link=e]y[/link]" in shown.out


def test_what_a_model_writes_is_left_alone_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("run", "chat"):
        monkeypatch.setattr(f"assay.commands.{command}.stream_generate", writing(HOSTILE))
    assert assay("run", "a", "-e", "reference").out == f"{HOSTILE}\n"
    assert assay("chat", "-e", "reference", stdin=b"a").out == f"{HOSTILE}\n"


def writing(text: str) -> Callable[..., object]:
    """A ``stream_generate`` that writes ``text``."""
    from assay.formats.contract.engine import Step

    return lambda *_, **__: iter([Step(1, text, 1.0, 0.0, finish_reason="stop")])


@pytest.mark.parametrize("command", [
    "['run', 'a', '-e', 'reference']", "['inspect', NAME]", "['tensors', NAME]", "['hex', NAME, '--length', '4000']",
])  # fmt: skip
def test_on_a_terminal(command: str, folder: Path) -> None:
    """Colours are Rich's own; the text in them is escaped, an answer's too."""
    code = ("import sys; from assay import cli; from assay.commands import run; "
            "from tests.assay.test_hostile_text import HOSTILE, writing; run.stream_generate = writing(HOSTILE); "
            f"NAME = {str(folder / 'odd.gguf')!r}; sys.argv = ['assay', *{command}]; cli.main()")  # fmt: skip
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
                             cwd=Path(__file__).parents[2], env=os.environ | {"TERM": "xterm"})  # fmt: skip
    os.close(theirs)
    seen = bytearray()
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    text = seen.decode()
    assert child.wait() == 0, text
    assert "owned" in text
    assert not any(bad in text for bad in ("\x1b]0", "\x1b[2J", "\x9b", "\u202e", "\u2066", "\x07", "\x7f"))


def test_a_stream_that_escapes_is_otherwise_the_stream_behind_it() -> None:
    stream = Escaping(sys.__stdout__)  # pyright: ignore[reportArgumentType]
    assert stream.encoding == sys.__stdout__.encoding  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(AttributeError):
        _ = stream.nosuch
