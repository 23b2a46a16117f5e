"""Dumps: what is written is what is read, and what is damaged or hostile is refused by name."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.formats.errors import FormatError, InputError
from assay.judging.engines_under_test import UnderTest
from assay.parity import aprt, stages
from assay.parity.dump import LAYOUTS, MANIFEST, Dump, file_of, read
from assay.parity.recorder import recording
from assay.parity.sample import Sample
from tests.planted import IDS

WEIGHTS = "0123456789abcdef" * 4
ENGINE = {"engine": "reference", "arith": "f32"}


def dumped(folder: Path, engine: Any, layout: str = "npy", text: str | None = None, **options: Any) -> Dump:
    sample = Sample(text, tuple(IDS), WEIGHTS)
    literal = () if text is None else ((0, 1), (2, len(text)))
    with recording(folder, sample, literal, ENGINE, layout=layout, **options) as tap:
        engine.forward(IDS, tap)
    return read(folder)


@pytest.mark.parametrize("role", ["truth", "candidate"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_is_what_was_shown(role: str, layout: str, judged: UnderTest, tmp_path: Path) -> None:
    engine = getattr(judged, role)
    found, shown = dumped(tmp_path / "d", engine, layout, "<a> b"), stages.capture(engine, IDS)
    assert list(found) == list(shown) and found.ids == tuple(IDS) and found.fingerprint() == ENGINE
    assert found.prompt is not None and found.prompt.text == "<a> b" and found.prompt.literal == ((0, 1), (2, 5))
    assert found.sample == Sample("<a> b", tuple(IDS), WEIGHTS)
    for key, x in shown.items():
        expected = x if layout == "npy" else x.astype(np.float32)
        assert found[key].dtype == expected.dtype and found[key].shape == x.shape
        assert found[key].tobytes() == expected.tobytes()
    assert np.array_equal(found.forward(IDS), found["logits", None])
    assert os.listdir(tmp_path) == ["d"]


def test_numpy_reads_the_files_too(judged: UnderTest, tmp_path: Path) -> None:
    found = dumped(tmp_path / "d", judged.truth)
    for stage, layer in found:
        theirs = np.load(tmp_path / "d" / file_of(stage, layer, "npy"), allow_pickle=False)
        assert np.array_equal(theirs, found[stage, layer])


def test_aprt_is_laid_out_as_the_other_tools_have_it(judged: UnderTest, tmp_path: Path) -> None:
    shown = stages.capture(judged.candidate, IDS)
    dumped(tmp_path / "d", judged.candidate, "aprt")
    raw = (tmp_path / "d" / "layer-2" / "qkv_matmul.bin").read_bytes()
    parts = [shown[f"{which}_proj", 2].reshape(len(IDS), -1) for which in "qkv"]
    row = sum(part.shape[1] for part in parts)
    assert raw[:12] == b"APRT" + struct.pack("<II", 2, row * len(IDS)) and len(raw) == 12 + 4 * row * len(IDS)
    found = np.frombuffer(raw[12:], "<f4").reshape(len(IDS), row)
    assert np.array_equal(found[5], np.concatenate([part[5] for part in parts]))
    assert (tmp_path / "d" / "lm_head.bin").read_bytes()[:8] == b"APRT\xff\xff\xff\xff"
    names = {path.stem for path in (tmp_path / "d").rglob("*.bin")}
    assert names == set(aprt.HOLDS) and len(names) == 18


def test_nan_bits_survive(judged: UnderTest, tmp_path: Path) -> None:
    odd = np.full((len(IDS), 4), np.nan, np.float32)
    odd.view(np.uint32)[:, 1] = 0xFFC12345
    odd[:, 2] = -np.inf
    for layout in LAYOUTS:
        with recording(tmp_path / layout, Sample(None, tuple(IDS), WEIGHTS), (), ENGINE, layout=layout) as tap:
            assert tap("embedding", None, odd) is odd
        assert read(tmp_path / layout)["embedding", None].tobytes() == odd.tobytes()
        assert (tap.values["embedding", None].nan, tap.values["embedding", None].inf) == (3 * len(IDS), len(IDS))


def test_a_dump_of_another_tool_needs_ids_and_a_model(judged: UnderTest, tmp_path: Path) -> None:
    ours = dumped(tmp_path / "d", judged.candidate, "aprt")
    (tmp_path / "d" / MANIFEST).unlink()
    residual = tmp_path / "d" / "layer-1" / "post_ffn_residual.bin"
    residual.rename(residual.with_name("layer_output.bin"))
    (tmp_path / "d" / "layer-1" / "of_no_known_name.bin").write_bytes(b"?")
    with pytest.raises(InputError, match="--ids"):
        read(tmp_path / "d")
    theirs = read(tmp_path / "d", IDS, judged.file.config)
    assert set(theirs) == set(ours) and theirs.weights is None and theirs.prompt is None
    shown = stages.capture(judged.candidate, IDS)
    assert all(np.array_equal(theirs[key].reshape(shown[key].shape), shown[key]) for key in shown)
    with pytest.raises(FormatError, match="bad-count"):
        read(tmp_path / "d", IDS[:7], judged.file.config)


def cut(raw: bytes) -> bytes:
    return raw[:-1]


APRT_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "bad-magic": lambda raw: b"APRX" + raw[4:],
    "bad-layer": lambda raw: raw[:4] + struct.pack("<I", 2) + raw[8:],
    "truncated": cut,
    "bad-size": lambda raw: raw + b"\0",
    "truncated ": lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:],
    "truncated  ": lambda raw: raw[:11],
    "bad-count": lambda raw: raw[:8] + struct.pack("<I", 13) + raw[12 : 12 + 52],
    "bad-count ": lambda raw: raw[:8] + bytes(4),
    "bad-shape": lambda raw: raw[:8] + struct.pack("<I", 12) + raw[12 : 12 + 48],
}


@pytest.mark.parametrize("code", APRT_DAMAGE)
@pytest.mark.parametrize("manifest", [True, False])
def test_damaged_aprt(code: str, manifest: bool, judged: UnderTest, tmp_path: Path) -> None:
    dumped(tmp_path / "d", judged.candidate, "aprt")
    path = tmp_path / "d" / "layer-1" / "qkv_bias.bin"
    path.write_bytes(APRT_DAMAGE[code](path.read_bytes()))
    if not manifest:
        (tmp_path / "d" / MANIFEST).unlink()
    with pytest.raises(FormatError) as refused:
        read(tmp_path / "d", IDS, judged.file.config)["k_bias", 1]
    assert refused.value.code == code.strip() and str(path) in str(refused.value)


def claims(shape: str) -> Callable[[bytes], bytes]:
    """A header that claims another shape, of the same length."""

    def change(raw: bytes) -> bytes:
        end = 10 + int.from_bytes(raw[8:10], "little")
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        return raw[:10] + text.encode().ljust(end - 11) + b"\n" + raw[end:]

    return change


NPY_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": cut,
    "bad-size": lambda raw: raw + b"\0",
    "bad-npy": lambda raw: b"\x93NUMPX" + raw[6:],
    "bad-npy of another shape": claims("(12, 999999999999)"),
    "bad-npy of objects": lambda raw: raw.replace(b"'<f4'", b"'|O' "),
    "bad-npy in columns": lambda raw: raw.replace(b"False", b"True "),
    "bad-npy without an end": lambda raw: raw[:40],
    "empty-file": lambda raw: b"",
}


@pytest.mark.parametrize("code", NPY_DAMAGE)
def test_damaged_npy(code: str, judged: UnderTest, tmp_path: Path) -> None:
    dumped(tmp_path / "d", judged.candidate)
    path = tmp_path / "d" / "layer-1" / "ffn_up.npy"
    path.write_bytes(NPY_DAMAGE[code](path.read_bytes()))
    with pytest.raises(FormatError) as refused:
        read(tmp_path / "d")["ffn_up", 1]
    assert refused.value.code == code.split()[0]


def first(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda said: said["stages"][0].__setitem__(key, value)


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format": lambda said: said.pop("format"),
    "format version": lambda said: said.update(version=2),
    "layout": lambda said: said.update(layout=["npy"]),
    "ids": lambda said: said.update(ids=[True]),
    "ids negative": lambda said: said.update(ids=[-1]),
    "ids none": lambda said: said.update(ids=[]),
    "weights": lambda said: said.update(weights="abc"),
    "engine": lambda said: said.update(engine=[]),
    "engine int8": lambda said: said["engine"].update(int8_up_to="many"),
    "prompt": lambda said: said.update(prompt="text"),
    "prompt.literal": lambda said: said.update(prompt={"text": "abc", "literal": [[0, 4]]}),
    "prompt.literal overlapping": lambda said: said.update(prompt={"text": "abc", "literal": [[0, 2], [1, 3]]}),
    "stages": lambda said: said.update(stages=[]),
    "stages[0]": lambda said: said.update(stages=[7]),
    "stages[0].stage": first("stage", "../../etc/passwd"),
    "stages[0].stage unhashable": first("stage", []),
    "stages[0].layer": first("layer", 0),
    "stages[1].layer": lambda said: said["stages"][1].update(layer=-1),
    "stages[1].layer missing": lambda said: said["stages"][1].update(layer=None),
    "stages[0].shape": first("shape", [11, 256]),
    "stages[0].shape flat": first("shape", [12]),
    "stages[0].shape empty": first("shape", [12, 0]),
    "stages[0].shape huge": first("shape", [12, 1 << 40]),
    "stages[0].dtype": first("dtype", "|O"),
    "stages[0].file": first("file", "../embedding.npy"),
    "stages[0].file absolute": first("file", "/etc/passwd"),
    "stages[1]": lambda said: said["stages"].insert(0, said["stages"][0]),
}


@pytest.mark.parametrize("field", HOSTILE)
def test_hostile_manifests(field: str, judged: UnderTest, tmp_path: Path) -> None:
    dumped(tmp_path / "d", judged.candidate)
    path = tmp_path / "d" / MANIFEST
    said = json.loads(path.read_text())
    HOSTILE[field](said)
    path.write_text(json.dumps(said))
    with pytest.raises(FormatError, match="bad-manifest") as refused:
        read(tmp_path / "d")
    assert refused.value.field == field.split()[0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"ids": [1], "ids": [2]}', '{"ids": NaN}', "[" * 5000, "\udcff"])
def test_a_manifest_that_is_no_json(text: str, judged: UnderTest, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text, errors="surrogateescape")
    with pytest.raises(FormatError, match="bad-json" if text else "empty-file"):
        read(tmp_path)


def test_files_that_are_missing_or_no_files(judged: UnderTest, tmp_path: Path) -> None:
    found = dumped(tmp_path / "d", judged.candidate)
    (tmp_path / "d" / "logits.npy").unlink()
    with pytest.raises(FormatError, match="no-file"):
        found["logits", None]
    os.mkfifo(tmp_path / "d" / "logits.npy")
    with pytest.raises(FormatError, match="not-a-file"):
        found["logits", None]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="no-stages"):
        read(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere")


def test_only_a_dump_is_replaced_and_only_if_asked(judged: UnderTest, tmp_path: Path) -> None:
    dumped(tmp_path / "d", judged.candidate)
    with pytest.raises(InputError, match="--force"):
        dumped(tmp_path / "d", judged.candidate)
    assert dumped(tmp_path / "d", judged.truth, "aprt", force=True).layout == "aprt"
    assert not list((tmp_path / "d").rglob("*.npy"))
    assert dumped(tmp_path / "d", judged.truth, force=True)["logits", None].dtype == np.float64
    (tmp_path / "d" / "layer-0" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not part of a dump"):
        dumped(tmp_path / "d", judged.truth, force=True)
    assert (tmp_path / "d" / "layer-0" / "thesis.tex").read_text() == "mine"
    (tmp_path / "d" / "layer-0" / "thesis.tex").unlink()
    (tmp_path / "d" / "layer-1" / "embedding.npy").mkdir()
    with pytest.raises(InputError, match="not part of a dump"):
        dumped(tmp_path / "d", judged.truth, force=True)


def test_what_goes_wrong_leaves_nothing(judged: UnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumped(tmp_path / "d", judged.candidate)

    class Interrupted(Exception):
        pass

    def interrupted(stage: str, layer: int | None, activation: Any) -> Any:
        raise Interrupted

    sample = Sample(None, tuple(IDS), WEIGHTS)
    with pytest.raises(Interrupted), recording(tmp_path / "d", sample, (), ENGINE, force=True) as tap:
        tap("embedding", None, np.zeros((len(IDS), 2), np.float32))
        judged.candidate.forward(IDS, interrupted)
    assert len(read(tmp_path / "d")) == 3 + 19 * 4

    sync, calls = os.fsync, []

    def full_for_a_moment(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr("assay.parity.recorder.os.fsync", full_for_a_moment)
    with pytest.raises(InputError, match="disk is full"):
        dumped(tmp_path / "d", judged.truth, force=True)
    assert os.listdir(tmp_path) == ["d"] and read(tmp_path / "d")["logits", None].dtype == np.float32
    with pytest.raises(InputError, match="cannot be written"):
        dumped(tmp_path / "no" / "d", judged.truth)
    with pytest.raises(InputError, match="layout"):
        dumped(tmp_path / "e", judged.truth, "pickle")
