"""The GGUF reader on paths that are not files, and on files that change under its hands."""

from __future__ import annotations

import os

import pytest

from assay.formats.containers.gguf import read_gguf
from assay.formats.errors import FormatError
from tests import gguf_files as raw
from tests.formats.containers.refusal import refused


def test_not_a_file(tmp_path):
    """None of these may block or be read without end, also not through a link."""
    os.mkfifo(tmp_path / "pipe")
    for target, code in (("pipe", "not-a-file"), ("/dev/zero", "not-a-file"), (".", "not-a-file"),
                         ("absent", "no-file"), ("loop", "unreadable")):  # fmt: skip
        link = tmp_path / "loop"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        refused(link, code)
        if target != "loop":
            refused(tmp_path / target, code)
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "below", "no-file")
    refused(tmp_path / ("x" * 300), "unreadable")
    with pytest.raises(FormatError, match="no-file"):
        read_gguf("a\0b")


def test_pipe_swapped_in_between_look_and_open(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())
    looked = os.stat

    def look_then_swap(at, **options):
        status = looked(at, **options)
        path.unlink()
        os.mkfifo(path)
        return status

    monkeypatch.setattr(os, "stat", look_then_swap)
    refused(path, "not-a-file")


@pytest.mark.parametrize("call", ["open", "pread", "fstat", "stat"])
def test_operating_system_errors(tmp_path, monkeypatch, call):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())

    def fails(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(FormatError) as caught:
        read_gguf(path)
    monkeypatch.undo()
    assert caught.value.code == "unreadable" and "Permission denied" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 100, len(raw.small_file()) - 1])
def test_file_shrinks_before_it_is_read(tmp_path, monkeypatch, keep):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())
    pread = os.pread

    def shrinking(fd, n, offset):
        os.truncate(path, keep)
        return pread(fd, n, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    refused(path, "file-changed")


@pytest.mark.parametrize("metadata_only", [False, True])
@pytest.mark.parametrize("change", ["cut", "appended to", "overwritten"])
def test_file_changes_while_it_is_read(tmp_path, monkeypatch, change, metadata_only):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())
    pread = os.pread

    def changing(fd, n, offset):
        data = pread(fd, n, offset)
        if change == "overwritten":
            os.utime(path, ns=(0, 0))  # a rewrite within one tick of the clock would leave the time as it was
        else:
            os.truncate(path, len(data) + (-1 if change == "cut" else 1))
        return data

    monkeypatch.setattr(os, "pread", changing)
    refused(path, "file-changed", metadata_only=metadata_only)


def test_file_shrinks_before_it_is_mapped(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())
    monkeypatch.setattr("assay.formats.containers.gguf.demand_unchanged", lambda *_: os.truncate(path, 10))
    refused(path, "file-changed")


def test_file_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.small_file())
    gguf = read_gguf(path)
    os.truncate(path, 10)
    with pytest.raises(FormatError) as caught:
        gguf.raw("vector")
    assert caught.value.code == "file-changed"
    assert gguf.metadata.strings("some.words") == ["eins", "", "drei"]  # the map is not needed for these
