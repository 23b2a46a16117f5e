"""``assay quantize``: types, bytes, metadata, refusals."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from assay.formats import open_model
from assay.formats.containers.gguf import read_gguf
from assay.formats.quantizers import quantize
from tests import apr_builder
from tests.assay.command_line import assay
from tests.model_builder import Shape, build

SHAPE = Shape(n_layers=2, hidden=256, head_dim=128, ffn=256, tied=False)


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    return build(tmp_path / "floats.gguf", SHAPE)


def test_a_float_model_becomes_q4_k_m(floats: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    report = assay("quantize", str(floats), str(target), "--json").json
    source, made = open_model(floats), open_model(target)
    assert (report["type"], report["pure"]) == ("Q4_K_M", False)
    assert report["source"]["types"] == source.census() == {"F32": 27}
    assert report["target"]["types"] == made.census() == {"F32": 11, "Q4_K": 13, "Q6_K": 3}
    assert report["target"]["weights"] == sum(t.nbytes for t in made.tensors.values())
    assert list(made.tensors) == list(source.tensors) == [row["name"] for row in report["tensors"]]
    for row in report["tensors"]:
        old, new = source.tensors[row["name"]], made.tensors[row["name"]]
        assert (row["from"], row["to"], tuple(row["shape"])) == (old.type.name, new.type.name, new.shape)
        assert np.array_equal(new.raw(), quantize(new.type.name, old.rows(0, old.n_rows)))
        lost = np.linalg.norm(new.decode() - old.decode()) / np.linalg.norm(old.decode())
        if old.type == new.type:
            assert row["relative_rms"] is None
            assert lost == 0
        else:
            assert row["relative_rms"] == pytest.approx(lost, rel=1e-3)  # norms in f32 here


def test_metadata_is_carried_over_in_its_own_types(floats: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    assert assay("quantize", str(floats), str(target), "--type", "q8_0").code == 0
    before, after = read_gguf(floats).metadata, gguf.GGUFReader(target)
    assert after.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    assert after.fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION
    kept = read_gguf(target).metadata
    assert set(kept) == {*before, "general.file_type", "general.quantization_version"}
    assert all(kept.type_of(key) == before.type_of(key) and np.array_equal(kept[key], before[key]) for key in before)


def test_the_target_runs(floats: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    assert assay("quantize", str(floats), str(target), "-t", "Q5_K").code == 0
    said = assay("run", "a", "-m", str(target), "--engine", "reference", "-n", "2", "--json").json
    assert said["model"]["path"] == str(target)


def test_pure_and_its_table(floats: Path, tmp_path: Path) -> None:
    said = assay("quantize", str(floats), str(tmp_path / "pure.gguf"), "--type", "Q4_K", "--pure")
    assert (said.code, said.err) == (0, "")
    assert open_model(tmp_path / "pure.gguf").census() == {"Q4_K": 16, "F32": 11}
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if line.startswith("│")]
    assert [row[:3] for row in rows] == [["16", "F32", "Q4_K"], ["11", "F32", "F32"]]
    assert "MB of weights" in said.out


def test_by_name_counts_layers_by_their_names(tmp_path: Path) -> None:
    many = build(tmp_path / "many.gguf", Shape(n_layers=11, hidden=256, head_dim=128, ffn=256))
    for option, favoured in (("--no-by-name", {0, 3, 6, 9, 10}), ("--by-name", {0, 2, 5, 8, 9})):
        arguments = () if option == "--no-by-name" else (option,)
        report = assay("quantize", str(many), str(tmp_path / "m.gguf"), "--force", "--json", *arguments).json
        values = [t for t in report["tensors"] if "attn_v.weight" in t["name"]]
        more = {int(t["name"].split(".")[1]) for t in values if t["to"] == "Q6_K"}
        assert more == favoured


def test_what_is_quantised_is_not_quantised_again_unasked(floats: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert assay("quantize", str(floats), str(first)).code == 0
    refused = assay("quantize", str(first), str(second), "--type", "Q8_0", "--json")
    assert refused.is_refusal(2)
    assert "16 tensors are quantised already" in refused.err
    assert not second.exists()
    assert assay("quantize", str(first), str(second)).code == 0  # nothing changes its type
    assert second.read_bytes() == first.read_bytes()
    assert assay("quantize", str(first), str(second), "--type", "Q8_0", "--requantize", "--force").code == 0
    assert open_model(second).census() == {"Q8_0": 16, "F32": 11}


def test_nothing_is_overwritten_unasked_and_nothing_left_behind(floats: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    target.write_text("mine")
    assert assay("quantize", str(floats), str(target)).is_refusal(2)
    assert target.read_text() == "mine"
    assert assay("quantize", str(floats), str(target), "--force").code == 0
    assert open_model(target).census()["Q4_K"] == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == ["floats.gguf", "small.gguf"]


def test_refusals(floats: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "small.gguf")
    assert assay("quantize", str(floats), target, "--type", "Q4_L").is_refusal(2)
    assert assay("quantize", str(tmp_path / "none.gguf"), target).is_refusal(2)
    assert assay("quantize", str(floats), str(tmp_path / "no" / "folder.gguf")).is_refusal(2)
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"no model at all")
    assert assay("quantize", str(junk), target).is_refusal(3)


def test_a_bad_value_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    weights = (np.random.default_rng(0).standard_normal((256, 256)) * 0.1).astype(np.float32)
    weights[9, 7] = 1e30
    spoiled = build(tmp_path / "bad.gguf", SHAPE, tensors={"blk.1.attn_q.weight": (weights, "F32")})
    target = tmp_path / "small.gguf"
    refused = assay("quantize", str(spoiled), str(target))
    assert refused.is_refusal(7)
    assert "tensor 'blk.1.attn_q.weight'[9, 7]" in refused.err
    assert not target.exists()


def test_an_apr_file_is_to_be_converted_first(tmp_path: Path) -> None:
    source = apr_builder.build(tmp_path / "m.apr", SHAPE)
    refused = assay("quantize", str(source), str(tmp_path / "small.gguf"), "--json")
    assert refused.is_refusal(2)
    assert "assay convert" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.apr"]


@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_the_source_is_never_the_target(command: str, floats: Path, tmp_path: Path) -> None:
    """By its name, another spelling of it, a symbolic link or a hard link; whatever --force permits."""
    before = floats.read_bytes()
    soft, hard, folder = tmp_path / "soft.gguf", tmp_path / "hard.gguf", tmp_path / "there"
    soft.symlink_to(floats)
    hard.hardlink_to(floats)
    folder.symlink_to(tmp_path)
    for source, target in ((floats, floats), (floats, soft), (floats, hard), (soft, floats), (hard, soft),
                           (floats, folder / floats.name), (folder / floats.name, soft)):  # fmt: skip
        assert assay(command, str(source), str(target), "--force").is_refusal(2)
        assert floats.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]
