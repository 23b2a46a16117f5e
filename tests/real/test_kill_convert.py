"""Conversions that are killed, or run out of disk: never half a file under the final name."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kill_convert
import pytest
from kill_convert import campaign, digest, forked

from formats import InputError
from formats.convert import convert
from goldens import BUILTIN

TARGETS = ("x.apr", "x.gguf", "x")


def test_a_handful_of_kills(tmp_path: Path) -> None:
    complaints: list[str] = []
    outcomes = campaign(BUILTIN, tmp_path, 9, 1, complaints.append)
    assert outcomes["BROKEN"] == 0, complaints
    assert outcomes["killed"] >= 9


@pytest.mark.real
def test_two_hundred_kills(tmp_path: Path) -> None:
    complaints: list[str] = []
    outcomes = campaign(BUILTIN, tmp_path, 200, 0, complaints.append)
    assert outcomes["BROKEN"] == 0, complaints
    assert outcomes["left .unfinished"] > 0  # otherwise the kills came when nothing was being written


def test_the_campaign_sees_a_file_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself is checked: with a converter that writes under the final name, some kill finds half a file."""

    def careless(source: Path, target: Path, **options: Any) -> None:
        temporary = target.with_name("other")
        convert(source, temporary, to="hf" if target.suffix == "" else target.suffix[1:], **options)
        if target.is_dir():
            (target / "config.json").unlink()
            target.rmdir()
        if temporary.is_dir():
            temporary.rename(target)
            return
        with target.open("wb", buffering=0) as file:
            content = temporary.read_bytes()
            for at in range(0, len(content), 4096):
                file.write(content[at : at + 4096])
                time.sleep(0.001)
        temporary.unlink()

    monkeypatch.setattr(kill_convert, "convert", careless)
    found = sum(campaign(BUILTIN, tmp_path, 30, seed, lambda _: None)["BROKEN"] for seed in range(3))
    assert found > 0


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("limit", [0, 5_000, 400_000])
def test_a_full_disk(tmp_path: Path, name: str, limit: int) -> None:
    """No file may grow beyond ``limit`` bytes: the same error on the way as from a disk that is full."""
    target = tmp_path / name

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(InputError, match="disk is full"):
            convert(BUILTIN, target, treatment="F32")

    code = os.waitstatus_to_exitcode(os.waitpid(forked(limited), 0)[1])
    assert code == 0 and not os.listdir(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", TARGETS)
def test_a_disk_that_is_really_full(tmp_path: Path, name: str) -> None:
    """On a file system of 1 MB; needs the right to mount one. An old file outlives the attempt to replace it."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        (tmp_path / "filler").write_bytes(bytes(600_000))
        kill_convert.put_old(tmp_path / name)
        before = digest(tmp_path / name)
        with pytest.raises(InputError, match="disk is full"):
            convert(BUILTIN, tmp_path / name, treatment="F32", force=True)
        assert digest(tmp_path / name) == before and sorted(os.listdir(tmp_path)) == sorted(["filler", name])
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.real
def test_ctrl_c(tmp_path: Path) -> None:
    """SIGINT to the command: exit code 130, one line, nothing left."""
    source = tmp_path / "source.gguf"
    source.write_bytes(BUILTIN.read_bytes())
    script = ("import sys, formats.convert as c; write = c.write\n"
              "def interrupted(*a): write(*a); raise KeyboardInterrupt\n"
              "c.write = interrupted; sys.argv = ['assay', 'convert', *sys.argv[1:]]\n"
              "from assay.cli import main; main()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, source, tmp_path / "x.apr"], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 130 and done.stderr == "assay: interrupted\n"
    assert os.listdir(tmp_path) == ["source.gguf"]
