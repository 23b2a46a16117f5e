"""``assay tensors``, ``validate``, ``hex``, ``diff`` and ``inspect`` as typed: JSON, tables, exit codes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from assay.formats.containers.opening import open_container
from assay.goldens import BUILTIN
from tests import apr_builder
from tests.assay.command_line import assay
from tests.model_builder import Shape, build, tensors_of

UP = "blk.0.ffn_up.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A well-formed file that is not a Qwen2 model."""
    return build(tmp_path / "llama.gguf", metadata={"general.architecture": "llama"})


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    x = tensors_of(Shape())[UP][0].view(np.float32).copy()
    x[0, 0] = np.nan
    return build(tmp_path / "spoiled.gguf", tensors={UP: (x, "F32")})


def test_tensors_json_is_what_the_file_says() -> None:
    said = assay("tensors", "--stats", "--json").json
    reader = gguf.GGUFReader(BUILTIN)
    assert said["count"] == len(reader.tensors)
    for ours, theirs in zip(said["tensors"], reader.tensors, strict=True):
        assert ours["name"] == theirs.name
        assert ours["type"] == theirs.tensor_type.name
        assert ours["shape"] == [int(dim) for dim in reversed(theirs.shape)]
        assert (ours["offset"], ours["bytes"]) == (theirs.data_offset, theirs.n_bytes)
        assert ours["sha256"] == hashlib.sha256(theirs.data.tobytes()).hexdigest()
        assert ours["stats"]["n"] == theirs.n_elements
    assert said["model"] == {"path": str(BUILTIN), "format": "gguf", "bytes": BUILTIN.stat().st_size}


def test_tensors_without_stats_reads_no_weights() -> None:
    assert {"sha256", "stats"}.isdisjoint(assay("tensors", "--json").json["tensors"][0])


def test_tensors_by_name_and_order() -> None:
    def names(*arguments: str) -> list[str]:
        return [one["name"] for one in assay("tensors", *arguments, "--json").json["tensors"]]

    layer = names("--name", "blk.1.*")
    assert len(layer) == 12
    assert names("--name", "blk.1.*", "--sort", "name") == sorted(layer)
    sizes = assay("tensors", "--sort", "bytes", "--json").json["tensors"]
    assert [one["bytes"] for one in sizes] == sorted((one["bytes"] for one in sizes), reverse=True)
    widest = assay("tensors", "--sort", "std", "--json").json["tensors"]
    assert [one["stats"]["std"] for one in widest] == sorted((one["stats"]["std"] for one in widest), reverse=True)
    assert assay("tensors", "--name", "nosuch").is_refusal(2)
    assert assay("tensors", "--sort", "beauty", "--json").is_refusal(2)


def test_tensors_shows_tables(spoiled: Path) -> None:
    table = assay("tensors", str(spoiled), "--stats")
    assert (table.code, table.err) == (0, "")
    assert "1 NaN or Inf" in table.out
    (row,) = [line.split() for line in table.out.splitlines() if line.startswith(UP)]
    assert row[-2] == "1"
    said = assay("tensors", str(spoiled), "--stats", "--json").json["tensors"]
    stats = next(one for one in said if one["name"] == UP)["stats"]
    assert (stats["nan"], stats["inf"]) == (1, 0)
    assert "48 × 32" in assay("tensors", str(spoiled)).out


def test_json_stays_json_where_nothing_is_finite(tmp_path: Path) -> None:
    path = build(tmp_path / "nan.gguf", tensors={UP: (np.full((48, 32), np.nan, np.float32), "F32")})

    def no_constants(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    for command, *arguments in (("tensors", "--stats"), ("validate",), ("diff", "builtin"), ("hex", "--tensor", UP)):
        json.loads(assay(command, str(path), *arguments, "--json").out, parse_constant=no_constants)


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_validate_exit_codes(json_option: tuple[str, ...], spoiled: Path, llama: Path) -> None:
    for path, code in ((BUILTIN, 0), (spoiled, 3), (llama, 4)):
        said = assay("validate", str(path), *json_option)
        assert (said.code, said.err) == (code, "")
        if json_option:
            facts = json.loads(said.out)
            assert facts["exit_code"] == code
            assert facts["verdict"] == ("FAIL" if code else facts["verdict"])
            assert sum(facts["counts"].values()) == len(facts["checks"])
            keys = {"name", "verdict", "measured", "limit", "why", "culprits"}
            assert all(set(gate) == keys for gate in facts["checks"])


def test_validate_says_what_and_why(spoiled: Path) -> None:
    lines = assay("validate", str(spoiled)).out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("FAIL     values.finite"))
    assert lines[at + 1].strip() == f"{UP}: 1 NaN, 0 Inf"
    assert "argmax" in lines[at + 2]
    assert lines[-1].startswith("FAIL: ")
    assert "1 failed" in lines[-1]
    quiet, verbose = (len(assay("validate", *option).out.splitlines()) for option in ((), ("-v",)))
    assert verbose > quiet


def test_hex_of_a_header() -> None:
    said = assay("hex", "--json", "--length", "24").json
    fields = {field["field"]: field for field in said["fields"]}
    assert list(fields) == ["header.magic", "header.version", "header.n_tensors", "header.n_kv"]
    assert bytes.fromhex("".join(field["bytes"] for field in said["fields"])) == BUILTIN.read_bytes()[:24]
    assert fields["header.n_tensors"]["value"] == len(gguf.GGUFReader(BUILTIN).tensors)
    lines = assay("hex", "--length", "24").out.splitlines()
    assert lines[1].split() == ["00000000", "47", "47", "55", "46", "header.magic", "GGUF"]


def test_hex_of_a_block() -> None:
    container = open_container(BUILTIN)
    info = next(info for info in container.tensors.values() if info.type.name == "Q4_K")
    said = assay("hex", "--tensor", info.name, "--block", "2", "--json").json
    start = info.offset + 2 * 144
    assert (said["offset"], said["length"]) == (start, 144)
    raw = bytes.fromhex("".join(field["bytes"] for field in said["fields"]))
    assert raw == BUILTIN.read_bytes()[start : start + 144]
    assert [field["field"] for field in said["fields"]] == ["d", "dmin", "scales", *["qs"] * 8]
    (block,) = said["blocks"]
    assert (block["index"], len(block["values"]), len(block["scales"]), len(block["mins"])) == (2, 256, 8, 8)
    table = assay("hex", "--tensor", info.name, "--block", "2").out
    assert "= e0..31" in table
    assert all(line == line.rstrip() for line in table.splitlines())


def test_hex_windows_that_do_not_exist() -> None:
    for arguments in (("--offset", "99999999"), ("--tensor", "nosuch"), ("--block", "0"), ("--length", "0"),
                      ("--tensor", UP, "--block", "999999"), ("--tensor", UP, "--offset", "9999999")):  # fmt: skip
        assert assay("hex", *arguments).is_refusal(2)
        assert assay("hex", *arguments, "--json").is_refusal(2)


def test_hex_at_the_last_byte() -> None:
    size = BUILTIN.stat().st_size
    said = assay("hex", "--offset", str(size - 1), "--json").json
    assert (said["offset"], said["length"]) == (size - 1, 1)
    assert said["fields"][-1]["bytes"] == BUILTIN.read_bytes()[-1:].hex()


def test_diff_exit_codes(tmp_path: Path) -> None:
    a = build(tmp_path / "a.gguf", metadata={"general.name": "test"})
    b = build(tmp_path / "b.gguf", metadata={"general.name": "other"})
    apr = apr_builder.build(tmp_path / "c.apr")
    assert assay("diff", str(a), str(a)).out.splitlines()[-1] == "same: every byte"
    for arguments, code in (((a, a), 0), ((a, b), 8), ((b, a), 8), ((a, b, "--values-only"), 0), ((a, apr), 0),
                            ((apr, a), 0), ((b, apr), 8), ((a, "builtin"), 8)):  # fmt: skip
        said = assay("diff", *map(str, arguments))
        assert (said.code, said.err) == (code, "")
        assert said.out.splitlines()[-1].startswith("same: " if code == 0 else "different: ")
        again = assay("diff", *map(str, arguments), "--json")
        facts = json.loads(again.out)
        assert (again.code, facts["same"], facts["exit_code"]) == (code, code == 0, code)


def test_diff_names_the_accident(tmp_path: Path) -> None:
    x = tensors_of(Shape())[UP][0].view(np.float32)
    a, b = build(tmp_path / "a.gguf"), build(tmp_path / "b.gguf", tensors={UP: (-x, "F32")})
    said = assay("diff", str(a), str(b))
    assert said.code == 8
    assert "sign flipped: B = -A" in said.out
    (pair,) = json.loads(assay("diff", str(a), str(b), "--json").out)["differing"]
    assert pair["name"] == UP
    assert pair["diagnoses"][0]["code"] == "sign-flipped"
    assert pair["values"]["cosine"] == pytest.approx(-1)
    assert assay("diff", str(a), str(b), "--values-only", "--tolerance", "2.001").code == 0
    assert assay("diff", str(a), str(b), "--tolerance", "nan").is_refusal(2)


def test_diff_lists_all_only_when_asked(tmp_path: Path) -> None:
    a, b = (build(tmp_path / f"{seed}.gguf", Shape(n_layers=3), seed=seed) for seed in (0, 1))
    cut, whole = assay("diff", str(a), str(b)).out, assay("diff", str(a), str(b), "--all").out
    assert "more (--all shows them)" in cut
    assert "more (--all shows them)" not in whole
    assert all(name in whole for name in open_container(a).tensors)


def test_inspect_of_a_file_that_is_no_model(llama: Path) -> None:
    facts = assay("inspect", str(llama), "--json").json
    assert facts["runnable"] is False
    assert "llama" in facts["refusal"]["what"]
    assert facts["model"]["architecture"] == "llama"
    assert facts["tensors"]["count"] == 14
    assert "config" not in facts
    said = assay("inspect", str(llama))
    assert said.code == 0
    assert "not a model that Assay can run: architecture 'llama'" in said.out
    assert assay("inspect", "--json").json["runnable"] is True


def test_inspect_sections_and_keys() -> None:
    facts = assay("inspect", "--keys", "--json").json
    sections = facts["container"]["sections"]
    assert [section["name"] for section in sections][:3] == ["header", "metadata", "tensor infos"]
    assert (sections[0]["start"], sections[-1]["stop"]) == (0, BUILTIN.stat().st_size)
    reader = gguf.GGUFReader(BUILTIN)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert list(facts["metadata"]) == keys
    tokens = facts["metadata"]["tokenizer.ggml.tokens"]
    assert tokens["type"] == "array of string"
    assert tokens["count"] == len(reader.fields["tokenizer.ggml.tokens"].contents())
    assert facts["metadata"]["qwen2.rope.freq_base"] == {"type": "float32", "value": 1e4}
    table = assay("inspect", "--keys").out
    assert all(key in table for key in keys)


def test_inspect_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = build(tmp_path / "odd.gguf", metadata={"a.key": "once-text"})
    path.write_bytes(path.read_bytes().replace(b"once-text", b"\xff\xfe-text!!"))
    said = assay("inspect", str(path), "--keys", "--json").json
    assert "not valid UTF-8" in said["metadata"]["a.key"]["error"]
    assert assay("inspect", str(path), "--keys").code == 0
    assert assay("tensors", str(path), "--stats").code == 0
    assert assay("validate", str(path)).code == 0
    assert assay("diff", str(path), "builtin").code == 8
    assert assay("hex", str(path)).code == 0


def test_names_out_of_a_file_are_not_markup(tmp_path: Path) -> None:
    name = "[red]x[/b] :smile:"
    path = str(build(tmp_path / "odd.gguf", tensors={name: (np.ones(8, np.float32), "F32")}))
    for arguments in (("tensors",), ("tensors", "--stats"), ("validate",), ("hex", "--tensor", name)):
        assert name in assay(arguments[0], path, *arguments[1:]).out
    assert name in assay("diff", path, "builtin", "--all").out


def test_an_apr_file_is_looked_at_in_the_same_way(tmp_path: Path) -> None:
    path = str(apr_builder.build(tmp_path / "model.apr", Shape(n_layers=4)))
    assert assay("inspect", path, "--json").json["container"]["sections"][-1]["name"] == "footer"
    assert assay("tensors", path, "--stats", "--json").json["count"] == 50
    assert assay("validate", path).code == 0
    assert assay("hex", path, "--json").json["fields"][0]["value"] == "APR\\0"
