"""The maker of files with a real shape and random weights, on a shape small enough to read here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import reference
from assay.formats import InputError, open_model
from assay.formats.containers.gguf import read_gguf
from assay.formats.contract.config import tensor_shapes
from assay.formats.contract.vocabulary import UNUSED
from assay.goldens import BUILTIN
from tests.real import make_shaped


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shaped.make("tiny", tmp_path_factory.mktemp("shaped") / "tiny.gguf", BUILTIN)


def test_it_is_a_model_of_the_shape_asked_for(tiny: Path) -> None:
    read_gguf(tiny, strict=True)  # packed in order, padded to the end, nothing left over
    file = open_model(tiny)
    shape = make_shaped.SHAPES["tiny"]._asdict()
    assert {field: getattr(file.config, field) for field in shape} == shape
    assert not file.warnings


def test_its_tokenizer_is_that_of_the_source_padded_to_the_rows(tiny: Path) -> None:
    made, source = open_model(tiny), open_model(BUILTIN)
    n = len(source.vocabulary)
    assert made.vocabulary.tokens[:n] == source.vocabulary.tokens
    assert made.vocabulary.merges == source.vocabulary.merges
    assert made.vocabulary.end_ids == source.vocabulary.end_ids
    assert made.chat_template == source.chat_template
    assert len(made.vocabulary) == made.config.n_vocab > n
    assert set(made.vocabulary.kinds[n:]) == {UNUSED}


def test_every_matrix_has_the_deviation_meant_and_no_mean(tiny: Path) -> None:
    for name, tensor in open_model(tiny).tensors.items():
        values = tensor.decode()
        if values.ndim == 2:
            # The mean of a group of 32 is itself random, with three quarters of the whole deviation. The smallest
            # matrix has 1,024 groups: standard errors of 0.75 / 32 for the mean and half as much for the deviation.
            assert abs(values.mean()) < 5 * 0.75 / 32 * make_shaped.STD, name
            assert values.std() == pytest.approx(make_shaped.STD, rel=5 * 0.5 / 32), name


def test_the_oracle_reads_it(tiny: Path) -> None:
    logits = reference.load(tiny, arith="f32").forward([1, 2, 3, 300])
    assert np.isfinite(logits).all()
    assert (logits[:-1] != logits[1:]).any(1).all()
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize(
    ("shape", "published"),  # Q4_K_M of bartowski/ and ThomasBaruzier/Qwen2.5-{7B,14B}-Instruct-GGUF, Hugging Face
    [("7b", 4_683_073_632), ("14b", 8_988_110_944)],
)
def test_the_mix_of_types_has_the_size_of_the_real_one(shape: str, published: int) -> None:
    """Whole files are published; what is not weights, 152,064 tokens and their merges mostly, takes 5.95 MB."""
    config = make_shaped.config_of(make_shaped.SHAPES[shape])
    weights = sum(make_shaped.nbytes(name, config) for name in tensor_shapes(config))
    assert 5_940_000 < published - weights < 5_980_000


def test_half_the_layers_get_better_types_in_7b() -> None:
    config = make_shaped.config_of(make_shaped.SHAPES["7b"])
    for role in ("attn_v", "ffn_down"):
        types = [make_shaped.type_of(f"blk.{layer}.{role}.weight", config) for layer in range(28)]
        better = [layer for layer, kind in enumerate(types) if kind == "Q6_K"]
        assert better == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]
    assert make_shaped.type_of("output.weight", config) == "Q6_K"
    assert make_shaped.type_of("token_embd.weight", config) == "Q4_K"
    tied = make_shaped.config_of(make_shaped.SHAPES["3b"])
    assert make_shaped.type_of("token_embd.weight", tied) == "Q6_K"


def test_rows_that_are_no_whole_blocks_fall_back() -> None:
    config = make_shaped.config_of(make_shaped.SHAPES["0.5b"])
    assert make_shaped.type_of("blk.0.attn_v.weight", config) == "Q8_0"
    assert make_shaped.type_of("blk.0.attn_q.weight", config) == "Q5_0"
    assert make_shaped.type_of("blk.0.ffn_down.weight", config) == "Q6_K"


def test_it_is_made_the_same_again_and_never_overwritten(tiny: Path, tmp_path: Path) -> None:
    again = make_shaped.make("tiny", tmp_path / "again.gguf", BUILTIN)
    assert digest(again) == digest(tiny)
    with pytest.raises(InputError, match="exists already"):
        make_shaped.make("tiny", again, BUILTIN)
    assert digest(again) == digest(tiny)


def test_a_vocabulary_that_does_not_fit_is_refused_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = make_shaped.SHAPES["tiny"]._replace(n_vocab=256)
    monkeypatch.setitem(make_shaped.SHAPES, "cramped", cramped)
    with pytest.raises(InputError, match="vocabulary of 2048 exceeds the 256 rows"):
        make_shaped.make("cramped", tmp_path / "out.gguf", BUILTIN)
    with pytest.raises(InputError, match="no shape 'vast'"):
        make_shaped.make("vast", tmp_path / "out.gguf", BUILTIN)
    with pytest.raises(InputError, match="no such folder"):
        make_shaped.make("tiny", tmp_path / "none" / "out.gguf", BUILTIN)
    assert not list(tmp_path.iterdir())


def test_half_a_file_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        assert [path.name for path in tmp_path.iterdir()] == ["out.gguf.part"]
        raise KeyboardInterrupt

    monkeypatch.setattr(make_shaped, "data_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shaped.make("tiny", tmp_path / "out.gguf", BUILTIN)
    assert not list(tmp_path.iterdir())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
