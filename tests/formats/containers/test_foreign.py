"""What lies in a model file's place and is none is named for what it is, wherever a file is read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from assay.formats import FormatError, ModelError, open_model
from assay.formats.containers.apr import read_apr
from assay.formats.containers.gguf import read_gguf
from assay.formats.containers.opening import open_container
from assay.formats.containers.safetensors import read_safetensors
from tests import apr_builder, gguf_files, hf_builder, model_builder, safetensors_files
from tests.formats.containers.refusal import refused


def zipped(name: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr(name, b"x" * 400)
    return raw.getvalue()


def tarred() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo("model.gguf")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"GGUF\3"))
    return raw.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 3993201344\n"
ANYWHERE = {
    "git-lfs-pointer": POINTER,
    "git-lfs-pointer with CRLF": POINTER.replace(b"\n", b"\r\n"),
    "empty-file": b"",
    "web-page": b"<!DOCTYPE html>\n<html lang='en'><head><title>Sign in</title></head></html>",
    "web-page in capitals after a BOM": b"\xef\xbb\xbf\n <HTML>\n<HEAD>",
    "web-page of a store": b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>",
    "archive gzip": gzip.compress(b"GGUF" * 100),
    "archive zip": zipped("model.gguf"),
    "archive tar": tarred(),
    "archive zstd": b"\x28\xb5\x2f\xfd" + bytes(range(200)),
    "archive 7z": b"7z\xbc\xaf\x27\x1c" + bytes(range(200)),
    "pickle of PyTorch": zipped("archive/data.pkl"),
    "pickle of old": pickle.dumps({"a": 1}, 2),
    "not-downloaded": bytes(4096),
}
IN_BINARIES = {
    "text-file": b"Entry not found",
    "text-file with an error": b'{"error":"Repository not found"}',
    "text-file in umlauts": ("Zugriff verweigert: " + "ü" * 600).encode(),
    "text-file of one letter": b"x",
}
IN_JSON = {"error and status": b'{"error":"Access to model X is restricted","status":403}', "detail": b'{"detail":""}'}
READERS = {"gguf": read_gguf, "apr": read_apr, "safetensors": read_safetensors, "any": open_container}


@pytest.mark.parametrize("case", {**ANYWHERE, **IN_BINARIES})
@pytest.mark.parametrize("reader", READERS)
def test_in_the_place_of_a_binary_file(tmp_path: Path, reader: str, case: str) -> None:
    path = tmp_path / "model"
    path.write_bytes({**ANYWHERE, **IN_BINARIES}[case])
    error = refused(path, case.split()[0], READERS[reader])
    assert "damaged" not in str(error)


FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "model.safetensors"]  # fmt: skip


@pytest.mark.parametrize("case", ANYWHERE)
@pytest.mark.parametrize("name", FILES)
def test_in_a_folder(tmp_path: Path, name: str, case: str) -> None:
    folder = hf_builder.build(tmp_path / "hf", files={"chat_template.jinja": "{{ 1 }}"})
    (folder / name).write_bytes(ANYWHERE[case])
    error = refused(folder, case.split()[0], open_container)
    assert name in error.where


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_in_a_folder_of_shards(tmp_path: Path, name: str) -> None:
    folder = hf_builder.build(tmp_path / "hf", shards=2)
    (folder / name).write_bytes(POINTER)
    assert name in refused(folder, "git-lfs-pointer", open_container).where


@pytest.mark.parametrize("case", IN_JSON)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_message_in_the_place_of_json(tmp_path: Path, name: str, case: str) -> None:
    folder = hf_builder.build(tmp_path / "hf")
    (folder / name).write_bytes(IN_JSON[case])
    assert name in refused(folder, "server-message", open_container).where


def test_what_only_looks_like_it_is_read(tmp_path: Path) -> None:
    """Templates may be any text; JSON may speak of errors; a number may begin as an archive does."""
    folder = hf_builder.build(tmp_path / "hf", config={"error": "none", "message": "x"},
                              files={"chat_template.jinja": "Entry not found"})  # fmt: skip
    assert open_model(folder).chat_template == "Entry not found"
    (folder / "chat_template.jinja").write_text("{# <html> #}{{ messages }}")
    assert open_model(folder).chat_template == "{# <html> #}{{ messages }}"


@pytest.mark.parametrize("size", [0x280, 0x10280, 0x8B1F, 0x1FB, 0x4142])  # a pickle's, and gzip's first bytes
def test_the_length_of_a_header_is_no_magic(tmp_path: Path, size: int) -> None:
    """Found here: a safetensors file whose header has 640 bytes was taken for a pickle."""
    raw = safetensors_files.packed({"x": ("F32", (2,), bytes(8))}, {})
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")].ljust(size)
    path = tmp_path / "x.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + header + bytes(8))
    assert open_container(path).format == "safetensors" and list(open_container(path).tensors) == ["x"]


@pytest.mark.parametrize("ending", [".part", ".incomplete", ".0a1b2c3d.unfinished", ".crdownload"])
def test_a_download_that_is_not_finished(tmp_path: Path, ending: str) -> None:
    whole, path = gguf_files.small_file(), tmp_path / f"model.gguf{ending}"
    path.write_bytes(whole[:-40])
    assert "not finished" in refused(path, None).remedy
    path.write_bytes(whole)  # complete, it is a file as any other
    assert read_gguf(path).tensors
    if ending.count(".") == 1:
        assert path.name in refused(tmp_path / "model.gguf", "no-file").remedy


def test_a_shard_that_is_still_coming(tmp_path: Path) -> None:
    folder = hf_builder.build(tmp_path / "hf", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.rename(shard.with_name(shard.name + ".incomplete"))
    assert "not finished" in refused(folder, "no-file", open_container).remedy


def test_a_folder_or_a_part_of_the_model(tmp_path: Path) -> None:
    """A folder of GGUF files, and the weights of a folder without the rest: what to give instead is said."""
    model_builder.build(tmp_path / "m-q4.gguf")
    assert "'m-q4.gguf'" in refused(tmp_path, "no-model", open_container).remedy
    folder = hf_builder.build(tmp_path / "hf")
    with pytest.raises(ModelError, match="folder that it lies in"):
        open_model(folder / "model.safetensors")


def test_dumps_and_whole_files_are_not_touched(tmp_path: Path) -> None:
    apr_builder.build(tmp_path / "m.apr")
    assert open_model(tmp_path / "m.apr").format == "apr"
    np.save(tmp_path / "x.npy", np.zeros(500))
    with pytest.raises(FormatError) as caught:
        open_container(tmp_path / "x.npy")
    assert caught.value.code == "bad-magic" and json.dumps(caught.value.remedy)
