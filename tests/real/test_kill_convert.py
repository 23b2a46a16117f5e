"""Conversions that are killed, or run out of disk: never half a file under the final name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from assay.formats import InputError
from assay.formats.conversion.convert import convert
from assay.goldens import BUILTIN
from tests.real.kill_convert import TARGETS, digest, put_old

ROOT = Path(__file__).parents[2]


def killed(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the script, in a process of its own: one that has loaded JAX must not fork."""
    done = subprocess.run([sys.executable, "-m", "tests.real.kill_convert", *arguments],
                          capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_handful_of_kills() -> None:
    code, output = killed("--kills", "9")
    assert code == 0 and re.search(r"\b9 killed", output), output  # outcomes come in the order they first occurred


@pytest.mark.real_slow
def test_two_hundred_kills() -> None:
    code, output = killed("--kills", "200")
    assert code == 0 and "left .unfinished" in output, output  # else none came while something was being written


@pytest.mark.slow
def test_the_campaign_catches_a_file_written_in_place() -> None:
    """The check itself is checked."""
    code, output = killed("--kills", "30", "--careless")
    assert code == 1 and "BROKEN: x." in output, output


@pytest.mark.parametrize("name", TARGETS)
def test_a_full_disk(tmp_path: Path, name: str) -> None:
    """No file may grow beyond a limit: the same error on the way as from a disk that is full."""
    script = """if True:
        import resource, sys
        from pathlib import Path
        from assay.formats import InputError
        from assay.formats.conversion.convert import convert
        from assay.goldens import BUILTIN
        for limit in (400_000, 5_000, 0):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                convert(BUILTIN, sys.argv[1], treatment="F32")
            except InputError as error:
                print("disk is full" in str(error))
        """
    done = subprocess.run([sys.executable, "-c", script, tmp_path / name], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n" * 3, done.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", TARGETS)
def test_a_disk_that_is_really_full(tmp_path: Path, name: str) -> None:
    """On a file system of 1 MB; needs the right to mount one. An old file outlives the attempt to replace it."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        (tmp_path / "filler").write_bytes(bytes(600_000))
        put_old(tmp_path / name)
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
    script = ("import sys, assay.formats.conversion.convert as c; write = c.write\n"
              "def interrupted(*a): write(*a); raise KeyboardInterrupt\n"
              "c.write = interrupted; sys.argv = ['assay', 'convert', *sys.argv[1:]]\n"
              "from assay.cli import main; main()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, source, tmp_path / "x.apr"], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip
    assert done.returncode == 130 and done.stderr == "assay: interrupted\n"
    assert os.listdir(tmp_path) == ["source.gguf"]
