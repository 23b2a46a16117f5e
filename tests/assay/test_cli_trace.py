"""``assay trace`` and ``assay parity --dump`` as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import assay.commands.trace as command
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.parity.dump import MANIFEST
from tests.assay.command_line import assay
from tests.planted import FAULTS, Planted

ORACLE = ("--engine", "reference")
TEXT = "def fib(n):\n    return"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dumps of one text: ``f32``, ``ggml`` of the oracle, ``accel``, and ``aprt`` of the oracle in f32."""
    folder = tmp_path_factory.mktemp("traces")
    for name, options in {"f32": (*ORACLE, "--arith", "f32"), "ggml": (*ORACLE, "--arith", "ggml"), "accel": (),
                          "aprt": (*ORACLE, "--layout", "aprt")}.items():  # fmt: skip
        assert assay("trace", TEXT, "--out", str(folder / name), *options).code == 0
    return folder


def ids_of(folder: Path) -> str:
    return ",".join(map(str, json.loads((folder / MANIFEST).read_text())["ids"]))


def edited(source: Path, target: Path, **changes: Any) -> str:
    """A copy of a dump with another manifest."""
    shutil.copytree(source, target)
    said = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps(said | changes))
    return str(target)


def test_a_trace_as_a_table_and_as_json(tmp_path: Path) -> None:
    shown = assay("trace", TEXT, *ORACLE, "--out", str(tmp_path / "a"))
    assert shown.code == 0 and "ffn_swiglu" in shown.out and "79 stages of" in shown.out
    said = assay("trace", "2+2?", "--chat", *ORACLE, "--arith", "f64", "--out", str(tmp_path / "b"), "--json").json
    assert "<|im_start|>" in said["prompt"] and len(said["stages"]) == 3 + 19 * 4 and said["engine"]["arith"] == "f64"
    stage = said["stages"][-1]
    x = np.load(tmp_path / "b" / "logits.npy")
    assert stage["stage"] == "logits" and stage["shape"] == list(x.shape) and stage["nan"] == stage["inf"] == 0
    assert stage["mean"] == pytest.approx(x.mean()) and stage["std"] == pytest.approx(x.std(ddof=1))
    assert (stage["min"], stage["max"]) == (x.min(), x.max())
    judged = assay("parity", "--dump", str(tmp_path / "b"), "2+2?", "--chat", "--json").json
    assert judged["verdict"] == "BIT-EQUAL"
    assert assay("parity", "--dump", str(tmp_path / "b"), "2+3?", "--chat", "--json").is_refusal(9)


@pytest.mark.parametrize(("name", "verdict"), [
    ("f32", "BIT-EQUAL"), ("aprt", "BIT-EQUAL"), ("ggml", "DRIFT"), ("accel", "DRIFT"),
])  # fmt: skip
def test_a_right_dump_is_green(name: str, verdict: str, traces: Path) -> None:
    said = assay("parity", "--dump", str(traces / name), "--json").json
    assert said["verdict"] == verdict and said["site"] is None and said["path"] == "dump"
    assert len(said["stages"]) == 3 + 19 * 4 and all(stage["over_floor"] < 4 for stage in said["stages"])
    assert said["flips"]["positions"] == len(said["ids"]) and said["logits"]["restored"] is None


def test_what_is_said_of_a_dump_and_its_page(traces: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown = assay("parity", "--dump", str(traces / "ggml"), "--report", str(page))
    assert shown.code == 0 and "DRIFT: 8-bit activations" in shown.out and "no engine was run" in shown.out
    assert page.read_text(encoding="utf-8").count('class="cell"') == 3 + 19 * 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["accel", "reference"])
@pytest.mark.parametrize("name", ["one row of a matrix with its sign turned", "two heads exchanged", "an infinity"])
def test_a_fault_in_a_dump_is_named(name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that is traced computes something else at one place."""
    site, change = FAULTS[name]
    loading = command.options.open_engine

    def spoiled(*arguments: Any, **named: Any) -> Any:
        loaded = loading(*arguments, **named)
        loaded.forward = Planted(SimpleNamespace(forward=loaded.forward), site, change).forward
        return loaded

    monkeypatch.setattr(command.options, "open_engine", spoiled)
    out = str(tmp_path / "d")
    traced = assay("trace", TEXT, "--engine", engine, "--arith", "f32", "--out", out, "--json").json
    assert any(stage["inf"] for stage in traced["stages"]) == (name == "an infinity")
    found = assay("parity", "--dump", out, "--json")
    said = json.loads(found.out)
    assert found.code == DIFFERENT and said["verdict"] == "BUG" and said["site"] == list(site)
    wrong = [stage for stage in said["stages"] if stage["over_floor"] == "inf" or stage["over_floor"] > 4]
    assert [(stage["stage"], stage["layer"]) for stage in wrong] == [site]
    shown = assay("parity", "--dump", out)
    assert shown.code == DIFFERENT and f"BUG at {site[0]} of layer {site[1]}" in shown.out


def test_a_dump_of_another_tool(traces: Path, tmp_path: Path) -> None:
    theirs, ids = tmp_path / "theirs", ids_of(traces / "aprt")
    shutil.copytree(traces / "aprt", theirs)
    (theirs / MANIFEST).unlink()
    assert assay("parity", "--dump", str(theirs), "--json").is_refusal(2)
    assert assay("parity", "--dump", str(theirs), "--ids", ids).code == UNDECIDED
    for sample in ((TEXT,), ("--ids", ids)):
        said = assay("parity", *sample, "--dump", str(theirs), "--arith", "f32", "--json").json
        assert said["verdict"] == "BIT-EQUAL" and len(said["stages"]) == 3 + 19 * 4 and "not name" in said["path"]
    compared = assay("trace", "--compare", str(theirs), str(traces / "f32"), "--ids", ids, "--json").json
    assert compared["equal"] and len(compared["stages"]) == 3 + 19 * 4 and len(compared["not_compared"]) == 2
    for path in (theirs / "lm_head.bin", *theirs.glob("layer-*/qkv_*.bin")):
        path.unlink()
    said = assay("parity", "--ids", ids, "--dump", str(theirs), "--arith", "f32", "--json").json
    assert said["verdict"] == "NOISE" and said["flips"] is None and len(said["stages"]) == 2 + 13 * 4
    assert assay("parity", "--ids", ids, "--dump", str(theirs), "--arith", "f32").code == 0
    shown = assay("trace", "--compare", str(theirs), str(traces / "f32"), "--ids", ids)
    assert "25 stages that only" in shown.out


def test_two_dumps_are_compared(traces: Path) -> None:
    a, b = str(traces / "ggml"), str(traces / "f32")
    shown = assay("trace", "--compare", a, b)
    assert shown.code == 0 and "ffn_swiglu" in shown.out and "not a verdict" in shown.out
    said = assay("trace", "--compare", a, b, "--json").json
    assert not said["equal"] and said["finite"] and said["not_compared"] == [] and len(said["stages"]) == 3 + 19 * 4
    assert said["stages"][0]["equal"] and 1e-4 < said["stages"][-1]["relative_l2"] < 0.1
    same = assay("trace", "--compare", b, str(traces / "aprt"))
    assert same.code == 0 and "equal, bit for bit" in same.out


def test_numbers_in_one_dump_only(traces: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "d"
    shutil.copytree(traces / "f32", spoiled)
    x = np.load(spoiled / "layer-2" / "ffn_out.npy")
    x[1, 2] = np.nan
    np.save(spoiled / "layer-2" / "ffn_out.npy", x)
    shown = assay("trace", "--compare", str(traces / "f32"), str(spoiled))
    assert shown.code == DIFFERENT and "ffn_out of layer 2" in shown.out


def test_different_samples_are_no_comparison(traces: Path, tmp_path: Path) -> None:
    a = traces / "f32"
    said = json.loads((a / MANIFEST).read_text())
    other = edited(a, tmp_path / "ids", ids=[*said["ids"][:-1], 5])
    weights = edited(a, tmp_path / "weights", weights="0" * 64)
    text = edited(a, tmp_path / "text", prompt={"text": "other", "literal": []})
    for folder in (other, weights, text):
        assert assay("trace", "--compare", str(a), folder, "--json").is_refusal(9)
        assert assay("parity", "--dump", folder, "--json").is_refusal(9)
    assert assay("parity", "other", "--dump", str(a)).is_refusal(9)
    assert assay("trace", "--compare", str(a), str(a), "--ids", "1,2").is_refusal(9)
    forced = edited(a, tmp_path / "forced", prompt=None)
    assert assay("trace", "--compare", str(a), forced).code == 0


@pytest.mark.parametrize(("code", "arguments"), [
    (2, ("trace", TEXT)), (2, ("trace", TEXT, "--ids", "1", "--out", "OUT")), (2, ("trace", "--out", "DUMP")),
    (2, ("trace", "--ids", "99999999", "--out", "OUT")), (2, ("trace", "--layout", "pickle", "--out", "OUT")),
    (2, ("trace", "--compare", "DUMP", "DUMP", "--out", "OUT")), (2, ("trace", "--compare", "DUMP", "OUT")),
    (2, ("trace", "--engine", "llama.cpp", "--out", "OUT")), (2, ("trace", "--compare", "DUMP")),
    (2, ("parity", "--dump", "OUT")), (2, ("parity", "--dump", "DUMP", "--engine", "reference")),
    (2, ("parity", "--dump", "DUMP", "--path", "decode")), (2, ("parity", "--dump", "DUMP", "--arith", "f32")),
    (2, ("parity", "--dump", "DUMP", "--chat")), (2, ("parity", "--dump", "DUMP", TEXT, "--ids", "1")),
])  # fmt: skip
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_requests_that_cannot_be_carried_out(code: int, arguments: tuple[str, ...], as_json: tuple[str, ...],
                                             traces: Path, tmp_path: Path) -> None:  # fmt: skip
    names = {"DUMP": str(traces / "f32"), "OUT": str(tmp_path / "out")}
    assert assay(*(names.get(one, one) for one in arguments), *as_json).is_refusal(code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["accel", "reference"])
def test_a_full_disk_is_no_fault_of_the_engine(engine: str, one_layer: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("assay.parity.recorder.Recorder._put", full)
    traced = assay("trace", TEXT, "-m", str(one_layer), "--engine", engine, "--out", str(tmp_path / "d"))
    assert traced.is_refusal(2) and "disk is full" in traced.err and not list(tmp_path.iterdir())


def test_a_dump_of_more_tokens_than_are_kept(tmp_path: Path) -> None:
    assert assay("trace", "--ids", "5" + ",6" * 128, *ORACLE, "--out", str(tmp_path / "d")).code == 0
    assert assay("parity", "--dump", str(tmp_path / "d")).is_refusal(2)


def test_damaged_dumps_are_refused(traces: Path, tmp_path: Path) -> None:
    shutil.copytree(traces / "f32", tmp_path / "d")
    path = tmp_path / "d" / "layer-3" / "attention.npy"
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (("parity", "--dump", str(tmp_path / "d")),
                      ("trace", "--compare", str(traces / "f32"), str(tmp_path / "d"))):  # fmt: skip
        assert assay(*arguments).is_refusal(3) and assay(*arguments, "--json").is_refusal(3)
