"""Split GGUF, as the ``gguf`` package writes it: one model, and files that do not belong together are named."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

from assay.formats import FormatError, InputError, open_model
from assay.formats.containers.gguf import read_gguf
from assay.formats.containers.gguf_split import SplitGGUF
from assay.formats.containers.opening import open_container
from assay.formats.conversion.convert import convert
from assay.formats.inspection.byte_map import sections
from assay.formats.inspection.checks import validate
from assay.formats.inspection.diff import compare
from tests.assay.command_line import assay
from tests.formats.containers.refusal import refused
from tests.model_builder import Shape, build

SHAPE = Shape(n_layers=2, hidden=32, tied=False, types={"attn_q": ["BF16"], "ffn_up": ["F16", "F32"]})
U16, I32 = GGUFValueType.UINT16, GGUFValueType.INT32


def whole(folder: Path) -> Path:
    return build(folder / "whole.gguf", SHAPE, metadata={"tokenizer.chat_template": "{{ 1 }}"})


def split(folder: Path, n: int = 10, name: str = "m.gguf") -> list[Path]:
    """The same model in files of ``n`` tensors each, in order."""
    folder.mkdir(exist_ok=True)
    build(folder / name, SHAPE, metadata={"tokenizer.chat_template": "{{ 1 }}"}, split=n)
    return sorted(folder.glob(f"{glob.escape(name.removesuffix('.gguf'))}-0*.gguf"))


@pytest.mark.parametrize("n", [1, 7, 10, 26])
def test_all_files_are_one_model(tmp_path: Path, n: int) -> None:
    files, truth = split(tmp_path / "split", n), open_model(whole(tmp_path))
    model = open_model(files[0])
    assert len(files) == -(-27 // n) and model.files == tuple(files) and model.size == sum(
        file.stat().st_size for file in files)  # fmt: skip
    assert (model.config, model.vocabulary, model.chat_template) == (
        truth.config, replace(truth.vocabulary), truth.chat_template)  # fmt: skip
    assert model.tensors.keys() == truth.tensors.keys()
    for name, tensor in truth.tensors.items():
        np.testing.assert_array_equal(model.tensors[name].raw(), tensor.raw())
        np.testing.assert_array_equal(model.tensors[name].decode(), tensor.decode())
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert model.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert set(model.metadata) == set(truth.metadata)
    model.release()


def test_any_of_the_files_opens_them_all(tmp_path: Path) -> None:
    files = split(tmp_path)
    for file in files:
        model = open_model(file)
        assert model.path == files[0] and model.files == tuple(files)
    assert isinstance(open_container(files[1]), SplitGGUF)
    assert not isinstance(open_container(files[1], alone=True), SplitGGUF)


def test_odd_names_and_a_link_to_the_files(tmp_path: Path) -> None:
    """A name may hold what a pattern would take for its own; a cache of links keeps the names."""
    files = split(tmp_path / "split", name="[a] (b)*-00001-of-00009.gguf")
    links = tmp_path / "links"
    links.mkdir()
    for file in files:
        (links / file.name).symlink_to(file)
    assert len(open_model(links / files[2].name).files) == 3


def rewritten(file: Path, **keys: tuple[int, GGUFValueType]) -> None:
    """Another value in the place of a key of the split, in the same type."""
    raw = file.read_bytes()
    for key, (value, kind) in keys.items():
        name = f"split.{key.replace('_', '.')}".encode()
        at = raw.index(name) + len(name) + 4
        size = 2 if kind == U16 else 4
        raw = raw[:at] + value.to_bytes(size, "little") + raw[at + size :]
    file.write_bytes(raw)


def moved(files: list[Path], a: int, b: int) -> None:
    aside = files[a].with_suffix(".aside")
    files[a].rename(aside)
    files[b].rename(files[a])
    aside.rename(files[b])


def from_another(files: list[Path]) -> None:
    other = build(files[0].parent / "n.gguf", replace(SHAPE, n_layers=3), split=10)
    other.with_name(other.name.replace("00001-of", "00002-of")).replace(files[1])


SPOILS: dict[str, tuple[str, Callable[[list[Path]], object], str]] = {
    "a file missing": ("missing-shard", lambda files: files[1].unlink(), "1 of the 3 files"),
    "all others missing": ("missing-shard", lambda files: [file.unlink() for file in files[1:]], "2 of the 3 files"),
    "the last a directory": ("not-a-file", lambda files: (files[2].unlink(), files[2].mkdir()), "00003"),
    "the last a pointer": ("git-lfs-pointer", lambda files: files[2].write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"), "00003"),
    "the last cut": ("out-of-file", lambda files: files[2].write_bytes(files[2].read_bytes()[:-1000]), "00003"),
    "two exchanged": ("bad-split", lambda files: moved(files, 1, 2), "file 3 of 3"),
    "the first twice": ("bad-split", lambda files: shutil.copy(files[0], files[1]), "file 1 of 3"),
    "one twice": ("bad-split", lambda files: (shutil.copy(files[1], files[2]), rewritten(files[2], no=(2, U16))),
                  "is also in 'm-00002-of-00003.gguf'"),
    "a file of another split": ("bad-split", from_another, "file 2 of 4"),
    "a file that is not of a split": ("bad-split", lambda files: build(files[1], SHAPE), "not part of a split model"),
    "too few tensors": ("bad-split", lambda files: [
        rewritten(file, tensors_count=(28, I32)) for file in files], "28"),
    "another count of tensors in one": ("bad-split", lambda files: rewritten(files[1], tensors_count=(28, I32)),
                                        "split.tensors.count"),
    "another count in one": ("bad-split", lambda files: rewritten(files[2], count=(4, U16)), "file 3 of 4"),
    "number 0 of 0": ("bad-split", lambda files: rewritten(files[0], no=(65535, U16)), "65536 of 3"),
    "a thousand files and more": ("bad-split", lambda files: rewritten(files[0], count=(65535, U16)), "of 65535"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILS)
def test_files_that_do_not_belong_together(tmp_path: Path, case: str) -> None:
    code, spoil, culprit = SPOILS[case]
    files = split(tmp_path)
    spoil(files)
    assert culprit in str(refused(files[0], code, open_container))


@pytest.mark.parametrize("name", ["model.gguf", "m-00001-of-00003.gguf.bin", "m-1-of-3.gguf", "m-00002-of-00003.gguf",
                                  "m-00001-of-00002.gguf"])  # fmt: skip
def test_a_file_under_another_name_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    file = split(tmp_path / "split")[0]
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / name
    shutil.copy(file, path)
    error = refused(path, "bad-split", open_container)
    assert "1 of the 3" in str(error) or "1 of 3" in str(error)


@pytest.mark.parametrize("count", [0, 1])
def test_what_was_merged_again_is_one_file(tmp_path: Path, count: int) -> None:
    """gguf-split --merge leaves the keys, with a count of 0."""
    path = build(tmp_path / "m.gguf", SHAPE, metadata={
        "split.no": (0, U16), "split.count": (count, U16), "split.tensors.count": (27, I32)})  # fmt: skip
    assert open_model(path).files == (path,)


def test_conversions_merge_it(tmp_path: Path) -> None:
    files, truth = split(tmp_path / "split"), whole(tmp_path)
    convert(files[0], tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == truth.read_bytes()
    convert(files[1], tmp_path / "x.apr")
    convert(tmp_path / "x.apr", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == truth.read_bytes()
    convert(files[0], tmp_path / "hf")
    assert compare(open_container(files[0]), open_container(tmp_path / "hf")).only_a == ()


def test_no_file_of_the_source_is_overwritten(tmp_path: Path) -> None:
    files = split(tmp_path)
    before = [file.read_bytes() for file in files]
    for file in files:
        with pytest.raises(InputError, match="same file"):
            convert(files[0], file, force=True)
    assert [file.read_bytes() for file in files] == before


def test_looking_at_it(tmp_path: Path) -> None:
    files, truth = split(tmp_path / "split"), open_container(whole(tmp_path))
    container = open_container(files[0])
    assert compare(container, truth).same() and not compare(container, truth).diagnoses
    assert [section.name for section in sections(container)] == [file.name for file in files]
    assert sections(container)[-1].stop == container.size
    ours, theirs = (validate(one) for one in (container, truth))
    verdicts = [[(check.name, check.verdict) for check in report.checks] for report in (ours, theirs)]
    assert verdicts[0] == verdicts[1]
    raw = bytearray(files[1].read_bytes())
    second = read_gguf(files[1])
    raw[second.data_start - 1] ^= 1  # of the padding before its data
    files[1].write_bytes(raw)
    padding = next(check for check in validate(open_container(files[0])).checks if check.name == "structure.padding")
    assert padding.verdict == "WARN" and files[1].name in padding.culprits[0]


def test_the_command_line(tmp_path: Path) -> None:
    files = split(tmp_path)
    shown = json.loads(assay("inspect", str(files[1]), "--sha256", "--json").out)
    assert shown["runnable"] and shown["container"]["files"] == [file.name for file in files]
    assert shown["model"]["sha256"] == open_model(files[0]).sha256
    assert json.loads(assay("tensors", str(files[2]), "--json").out)["count"] == 27
    assert assay("diff", str(files[0]), str(files[1])).code == 0
    fields = json.loads(assay("hex", str(files[1]), "--json").out)
    assert fields["model"]["path"] == str(files[1]) and fields["fields"][0]["value"] == "GGUF"
    files[2].unlink()
    assert assay("inspect", str(files[0])).code == FormatError.exit_code
