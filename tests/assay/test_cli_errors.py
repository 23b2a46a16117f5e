"""Exit codes, what goes to which stream, and that no list of arguments ends in a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay import cli
from assay.fetch import pull
from assay.formats import ModelError, NumericError, SourceError, TemplateError
from assay.goldens import BUILTIN
from tests import hf_builder
from tests.assay.command_line import assay
from tests.examples import examples
from tests.model_builder import build

ROOT = Path(__file__).parents[2]
ENDLESS = ("run", "import os\nimport", "--engine", "reference", "-n", "2000")  # library code runs on and on


def program(*arguments: str, **how: object) -> subprocess.Popen[bytes]:
    """``assay`` as a process of its own, listening to Ctrl-C even where the test was started in the background."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); " \
           "from assay.cli import main; main()"  # fmt: skip
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | how
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, **streams)  # type: ignore[call-overload]


@pytest.fixture
def truncated(tmp_path: Path) -> Path:
    path = tmp_path / "truncated.gguf"
    path.write_bytes(BUILTIN.read_bytes()[:5000])
    return path


NOT_THERE = (Path("/dev/zero"), Path("/no/such.gguf"))
LOOKING = [("inspect",), ("tensors",), ("validate",), ("hex",), ("diff", "builtin")]


@pytest.mark.parametrize("command", [*LOOKING, ("run", "a", "-m"), ("tokenize", "a", "-m"), ("chat", "-m")])
def test_files_that_are_no_models(command: tuple[str, ...], truncated: Path) -> None:
    pipe = truncated.with_name("pipe")
    os.mkfifo(pipe)
    empty = truncated.with_name("empty")
    empty.touch()
    damaged = (truncated, ROOT / "LICENSE", truncated.parent, empty)
    for path in (*damaged, *NOT_THERE, pipe, truncated / "below", truncated.with_name("x" * 300)):
        code = 3 if path in damaged else 2
        refusal = assay(*command, str(path))
        assert refusal.is_refusal(code), (path, refusal.err)
        assert str(path) in refusal.err
        assert assay(*command, str(path), "--json").is_refusal(code)


WITH_TWO_FILES = [("convert", "{}", "x.apr"), ("quantize", "{}", "x.gguf"), ("diff", "{}", "builtin"),
                  ("parity", "a", "--dump", "{}"), ("trace", "--compare", "{}", "{}"), ("run", "-f", "{}"),
                  ("bench", "{}"), ("parity", "-m", "{}"), ("flips", "a", "-m", "{}"), ("bisect", "-m", "{}"),
                  ("axes", "-m", "{}"), ("trace", "-o", "x", "-m", "{}")]  # fmt: skip


@pytest.mark.parametrize("command", WITH_TWO_FILES, ids=" ".join)
def test_a_file_that_is_not_there_is_a_bad_request(command: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 3 is for bytes: a script that fetches a damaged file again would do so for ever."""
    absent = str(tmp_path / "absent.gguf")
    refusal = assay(*(part.replace("{}", absent) for part in command))
    assert refusal.is_refusal(2), refusal.err


@pytest.mark.parametrize(("command", "option"), [
    (("convert", "builtin", "x.apr", "--shard-size", "1"), "--shard-size"), (("pull", "--list", "--force"), "--force"),
    (("bench", "--force"), "--force"), (("parity", "--force"), "--force"), (("flips", "a", "--force"), "--force"),
    (("bisect", "--force"), "--force"), (("quantize", "builtin", "x", "-t", "Q8_0", "--by-name"), "--by-name"),
    (("quantize", "builtin", "x", "--pure", "--by-name"), "--by-name"),
    (("trace", "--compare", "x", "y", "--arith", "f64"), "--arith"),
    (("trace", "--compare", "x", "y", "-e", "reference"), "--engine"),
    (("trace", "--compare", "x", "y", "--force"), "--force"),
])  # fmt: skip
def test_an_option_that_does_nothing_is_refused(command: tuple[str, ...], option: str) -> None:
    refusal = assay(*command)
    assert refusal.is_refusal(2)
    assert refusal.err.startswith(f"assay: {option}: it has no effect: "), refusal.err


def test_a_file_that_a_folder_lacks_is_damage(tmp_path: Path) -> None:
    folder = hf_builder.build(tmp_path / "hf", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert assay("inspect", str(folder)).is_refusal(3)


def test_an_unknown_name_is_no_path(home: Path) -> None:
    refusal = assay("inspect", "qwen2.5-coder-0.5")
    assert refusal.is_refusal(2)
    assert "qwen2.5-coder-0.5b" in refusal.err


@pytest.mark.parametrize("error", [ModelError, TemplateError, SourceError, NumericError])
def test_every_error_has_its_exit_code(error: type[ModelError], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        raise error("two\nlines", where="here", remedy="Do that.")

    monkeypatch.setattr("assay.commands.options.open_model", failing)
    refusal = assay("tokenize", "a", "--json")
    assert refusal.is_refusal(error.exit_code)
    assert refusal.err == "assay: here: two lines. Do that\n"
    said = {"type": error.__name__, "what": "two\nlines", "where": "here", "remedy": "Do that"}
    assert json.loads(refusal.out)["error"] == said


def test_a_bug_is_called_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.commands.options.open_model", lambda path: 1 / 0)
    refusal = assay("tokenize", "a")
    assert refusal.is_refusal(1)
    assert "internal error: ZeroDivisionError" in refusal.err
    monkeypatch.setenv("ASSAY_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        assay("tokenize", "a")


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("assay.commands.options.open_model", stopping)
    said = assay("tokenize", "a")
    assert (said.code, said.out, said.err) == (130, "", "assay: interrupted\n")


def test_help_and_version() -> None:
    for arguments in (("--help",), ("run", "--help"), ("--version",)):
        said = assay(*arguments)
        assert (said.code, said.err) == (0, "")
        assert "assay" in said.out
    assert "130 interrupted" in " ".join(assay("--help").out.split())
    assert assay("nosuch").is_refusal(2)


def test_without_arguments_it_says_what_to_try_first() -> None:
    said = assay()
    assert (said.code, said.err) == (0, "")
    tried = [line.split()[1] for line in said.out.splitlines() if line.startswith("  assay ")]
    assert 4 <= len(tried) <= 5 and set(tried) <= set(cli.COMMANDS) and "--help" in said.out
    assert len(said.out.splitlines()) < 15


def test_a_process_speaks_utf8_on_standard_output_only() -> None:
    child = program("tokenize", "é", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    out, err = child.communicate()
    assert (child.returncode, err) == (0, b"")
    assert out.decode() == assay("tokenize", "é").out
    assert not out.isascii(), "this text would not show the difference"


def test_ctrl_c_in_a_generation() -> None:
    child = program(*ENDLESS)
    assert child.stdout is not None
    child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert (child.returncode, err) == (130, b"assay: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("command", ["convert", "quantize", "trace"])
def test_a_signal_leaves_nothing_unfinished(command: str, number: signal.Signals, tmp_path: Path) -> None:
    """Sent while a file is being written: what there is by then is seen to go. 143 is 128 + SIGTERM, as shells say."""
    waiting = {"convert": "assay.formats.containers.apr_writer.Stored.pieces",
               "quantize": "assay.formats.containers.base.Stored.pieces",
               "trace": "assay.parity.recorder.Recorder.__call__"}[command]  # fmt: skip
    owner, _, method = waiting.rpartition(".")
    module, _, name = owner.rpartition(".")
    code = (f"import signal, sys, time; from importlib import import_module; from assay import cli; "
            f"setattr(getattr(import_module({module!r}), {name!r}), {method!r}, "
            "lambda *_: (print('here', flush=True), time.sleep(60))); "
            "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL); "
            "cli.main()")  # fmt: skip
    target = str(tmp_path / {"convert": "x.apr", "quantize": "x.gguf", "trace": "x"}[command])
    arguments = {"convert": ["builtin", target], "quantize": ["builtin", target, "--requantize"],
                 "trace": ["a", "-e", "reference", "-o", target]}[command]  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", code, command, *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]
    child.send_signal(number)
    _, err = child.communicate()
    assert child.returncode == 128 + number
    assert err in (b"assay: interrupted\n", f"assay: ended by {number.name}\n".encode())
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As ``nohup`` wants it."""
    code = ("import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from assay import cli; "
            "from assay.commands import options; "
            "options.open_file = lambda model: os.kill(os.getpid(), signal.SIGHUP) or exit(7); cli.main()")  # fmt: skip
    child = subprocess.run([sys.executable, "-c", code, "tokenize", "a"], cwd=ROOT, capture_output=True, check=False)
    assert (child.returncode, child.stderr) == (7, b"")


def test_the_terminal_breaks_the_lines_of_a_help_text() -> None:
    """Those of the docstring, which is as wide as code may be, would break a narrower one's in their middle."""
    paragraphs = str(cli.app_for(["trace"]).registered_commands[0].help).split("\n\n")
    assert len(paragraphs) == 2 and len(paragraphs[1]) > 120 and "\n" not in "".join(paragraphs)


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("--version",), ()])
def test_help_whose_reader_has_seen_enough(arguments: tuple[str, ...]) -> None:
    gone, end = os.pipe()
    os.close(gone)
    child = program(*arguments, stdout=end)
    os.close(end)
    _, err = child.communicate()
    assert (child.returncode, err) == (0, b"")


@pytest.mark.parametrize("arguments", [("run", "--nosuch"), ("inspect", "nosuch"), ("run", "a", "--temp", "-1")])
def test_a_failure_that_nobody_hears_of_is_one_all_the_same(arguments: tuple[str, ...]) -> None:
    gone, end = os.pipe()
    os.close(gone)
    child = program(*arguments, stderr=end)
    os.close(end)
    child.communicate()
    assert child.returncode == 2


def test_a_reader_that_leaves() -> None:
    child = program(*ENDLESS)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    assert (child.wait(), child.stderr.read()) == (0, b"")
    child.stderr.close()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("model", "code"), [("builtin", 0), ("nosuch", 2)])
def test_a_reader_that_was_never_there(model: str, code: int, unbuffered: str) -> None:
    gone, end = os.pipe()
    os.close(gone)
    child = program("inspect", model, "--json", stdout=end, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    os.close(end)
    _, err = child.communicate()
    assert child.returncode == code
    assert err.count(b"\n") == (code != 0)


@pytest.mark.parametrize(("arguments", "code"), [
    (("tensors",), 0), (("hex",), 0), (("inspect", "--keys"), 0), (("validate",), 0), (("diff", "builtin"), 8),
    (("validate", "--json"), 0),
])  # fmt: skip
def test_a_reader_who_has_seen_enough(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    """The exit code is that of the answer, not of the pipe."""
    other = [str(build(tmp_path / "other.gguf"))] if arguments[0] == "diff" else []
    gone, end = os.pipe()
    os.close(gone)
    child = program(*arguments, *other, stdout=end)
    os.close(end)
    _, err = child.communicate()
    assert (child.returncode, err) == (code, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        child = program("inspect", stdout=full)
        _, err = child.communicate()
    assert child.returncode == 2
    assert b"No space left" in err
    assert err.count(b"\n") == 1


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["assay", "run", "-", "--engine", "reference"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    assert end.value.code == 2


TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\0"), max_size=20),
    st.sampled_from(["", "-", "--", "\udcff", "def f():", "<|im_end|>", "[/b]", "[red", "{{", "\x1b[2J"]),
)
NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "-1", "0.5", "nan", "inf", "1e-300", "1e300", "9" * 40, "x", "", "１"]),
    st.integers().map(str),
    st.floats().map(str),
)
LENGTHS = st.sampled_from(["1", "2", "0", "-3", "999999", "9" * 40, "two", ""])
MODELS = st.sampled_from(["builtin", "nosuch", "", ".", "/", "/dev/null", "/no/such", str(ROOT / "LICENSE"), "\udcff/"])
OPTIONS: dict[str, st.SearchStrategy[str] | None] = {
    "--model": MODELS, "--engine": st.sampled_from(["reference", "abacus", ""]), "--max-tokens": LENGTHS,
    "--arith": st.sampled_from(["f64", "f32", "ggml", "f16", ""]), "--system": TEXTS, "--prompt-file": TEXTS,
    "--ids": st.one_of(st.lists(st.integers(-2, 600)).map(lambda ids: ",".join(map(str, ids))), TEXTS),
    "--temperature": NUMBERS, "--top-k": NUMBERS, "--top-p": NUMBERS, "--min-p": NUMBERS, "--repeat-penalty": NUMBERS,
    "--seed": NUMBERS, "--stop": TEXTS, "--logprobs": NUMBERS, "--chat": None, "--no-special": None, "--no-nfc": None,
    "--cache-weights": None, "--no-stream": None, "--sha256": None, "--help": None, "--nosuch": None,
}  # fmt: skip


@st.composite
def argument_lists(draw: st.DrawFn) -> list[str]:
    """A command, options (mostly its own), and up to two positional arguments; short and on the oracle by default."""
    command = draw(st.sampled_from(["run", "run", "run", "chat", "tokenize", "inspect"]))
    positional = {"run": TEXTS, "tokenize": TEXTS, "inspect": MODELS, "chat": TEXTS}[command]
    n_positional = draw(st.sampled_from({"chat": [0, 0, 0, 1]}.get(command, [1, 1, 1, 0, 2])))
    arguments = [command, *draw(st.lists(positional, min_size=n_positional, max_size=n_positional))]
    own = {"tokenize": {"--model", "--engine", "--no-special", "--no-nfc"}, "inspect": {"--sha256"}}.get(command)
    names = sorted(own or OPTIONS)
    if command != "inspect":
        arguments += ["--engine", "reference"]
    if command in ("run", "chat"):
        arguments += ["-n", "2"]
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        value = OPTIONS[name]
        arguments += [name] if value is None else [f"{name}={draw(value)}"]
    return [*arguments, *draw(st.sampled_from([[], ["--json"]]))]


@given(arguments=argument_lists(), stdin=st.one_of(st.binary(max_size=30), st.just(b"hi\n/reset\n\nhi")))
@examples(80)
def test_no_arguments_end_in_a_bug(arguments: list[str], stdin: bytes) -> None:
    said = assay(*arguments, stdin=stdin)
    assert said.code in (0, 2, 3, 4, 5)
    assert "Traceback" not in said.err
    assert all(line.startswith("assay: ") for line in said.err.split("\n")[:-1])
    if said.code and arguments[0] != "chat":
        assert said.is_refusal(said.code)


@pytest.fixture(autouse=True)
def no_downloads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up name may be a catalogue's: it must not start a download."""
    monkeypatch.setattr(pull, "fetch", lambda *_: pytest.fail("a test must not download"))
