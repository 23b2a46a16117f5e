"""Writing a file: whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from assay.formats import InputError
from assay.formats.system import atomic_file as durable
from assay.formats.system.atomic_file import replacing

OLD, NEW = b"old", b"new" * 1000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(OLD)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with replacing(path) as file:
        file.write(NEW)
        (beside,) = names(tmp_path)
        assert beside.startswith("model.gguf.") and beside.endswith(".unfinished")
    assert names(tmp_path) == ["model.gguf"] and path.read_bytes() == NEW


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "model.gguf"):
        pass
    assert (tmp_path / "model.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_is_refused_before_any_work(target: Path) -> None:
    with pytest.raises(InputError, match="--force") as caught, replacing(target):
        pytest.fail("the block was entered")
    assert caught.value.exit_code == 2
    assert names(target.parent) == ["model.gguf"] and target.read_bytes() == OLD


def test_force_replaces_it(target: Path) -> None:
    with replacing(target, force=True) as file:
        file.write(NEW)
        assert target.read_bytes() == OLD
    assert target.read_bytes() == NEW and names(target.parent) == ["model.gguf"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(InputError, match="exists already"), replacing(path):
        path.write_bytes(OLD)
    assert path.read_bytes() == OLD and names(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("trouble", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_any_exception_leaves_the_old_file_and_passes_on(target: Path, trouble: BaseException) -> None:
    with pytest.raises(type(trouble)) as caught, replacing(target, force=True) as file:
        file.write(NEW)
        raise trouble
    assert caught.value is trouble
    assert target.read_bytes() == OLD and names(target.parent) == ["model.gguf"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_of_the_disk_is_one_line(target: Path, monkeypatch: pytest.MonkeyPatch, call: str,
                                          number: int) -> None:  # fmt: skip
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(InputError) as caught, replacing(target, force=True) as file:
        file.write(NEW)
    monkeypatch.undo()
    text = str(caught.value)
    assert text.isprintable() and str(target) in text and caught.value.remedy and caught.value.exit_code == 2
    assert ("the disk is full" in text) is (number != errno.EIO)
    assert target.read_bytes() == OLD and names(target.parent) == ["model.gguf"]


FILL = """
import resource, signal, sys
from assay.formats import InputError
from assay.formats.system.atomic_file import replacing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk does, the write then fails instead of killing
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with replacing(sys.argv[1], force=True) as file:
        for _ in range(int(sys.argv[2])):
            file.write(bytes(1 << 16))
except InputError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


@pytest.mark.parametrize("pieces", [17, 64])
def test_a_disk_that_is_truly_full(target: Path, pieces: int) -> None:
    """17 pieces of 64 KiB fail when the buffer is written at the end, 64 in the middle."""
    run = subprocess.run([sys.executable, "-c", FILL, str(target), str(pieces)], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("2 ") and run.stderr.count("\n") == 1
    assert "the disk is full" in run.stderr
    assert target.read_bytes() == OLD and names(target.parent) == ["model.gguf"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"), replacing(tmp_path / "no" / "model.gguf"):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("path", ["/dev/null", "."])
def test_what_is_no_regular_file_is_never_replaced(path: str) -> None:
    with pytest.raises(InputError, match="not a regular file"), replacing(path, force=True):
        pytest.fail("the block was entered")


def test_through_a_link_the_file_it_points_to_is_replaced(target: Path) -> None:
    link = target.with_name("link.gguf")
    link.symlink_to(target)
    with replacing(link, force=True) as file:
        file.write(NEW)
    assert link.is_symlink() and target.read_bytes() == NEW


KILLED = """
import sys
from assay.formats.system.atomic_file import replacing
with replacing(sys.argv[1], force=True) as file:
    file.write(b"new" * 1_000_000)
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_the_old_file_and_rubbish_that_says_so(target: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert target.read_bytes() == OLD
    rest = [name for name in names(target.parent) if name != "model.gguf"]
    assert len(rest) == 1 and rest[0].endswith(durable.UNFINISHED)
    with replacing(target, force=True) as file:  # the next writer is not led astray by it
        file.write(NEW)
    assert target.read_bytes() == NEW and rest[0] in names(target.parent)


def test_all_is_on_the_disk_before_the_name_and_the_name_after(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(durable, "sync", lambda path: order.append(f"sync {'folder' if path.is_dir() else 'file'}"))
    replace = os.replace

    def renamed(source: Path, to: Path) -> None:
        order.append("rename")
        replace(source, to)

    monkeypatch.setattr(os, "replace", renamed)
    with replacing(target, force=True) as file:
        file.write(NEW)
    assert order == ["sync file", "rename", "sync folder"]
