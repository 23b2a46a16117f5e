"""The real models from container to container: same bytes, same metadata, same greedy ids from either engine."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import assay.accel.tokenizer
import assay.reference.tokenizer
from assay.formats import InputError, open_model
from assay.formats.conversion.convert import convert
from assay.parity.corpus import SAMPLES

pytestmark = pytest.mark.real
PROMPT, N_TOKENS = "def fib(n):", 4


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def there_and_back(real_15b: Path, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The 1.5B to APR and back: both censuses."""
    return convert(real_15b, scratch / "1.5b.apr"), convert(scratch / "1.5b.apr", scratch / "1.5b.gguf")


def verdicts(census: dict[str, Any]) -> Counter[str]:
    return Counter(record["verdict"] for record in census["tensors"])


def ids(path: Path, engine: str, arith: str) -> list[int]:
    """Greedy ids, by the command in a process of its own: its memory is gone when it ends."""
    command = [sys.executable, "-m", "assay", "run", PROMPT, "-m", path, "-e", engine, "--arith", arith,
               "-n", str(N_TOKENS), "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["ids"]


def test_gguf_to_apr_to_gguf_is_the_same_file(real_15b: Path, scratch: Path, there_and_back: Any) -> None:
    for census in there_and_back:
        assert verdicts(census) == {"same bytes": 339}
        assert all(r["source"]["sha256"] == r["target"]["sha256"] for r in census["tensors"])
        assert census["source"]["vocabulary"] == census["target"]["vocabulary"]
        assert {record["fate"] for record in census["metadata"]} <= {"carried", "kept aside"}
    assert filecmp.cmp(real_15b, scratch / "1.5b.gguf", shallow=False)


@pytest.mark.parametrize(("engine", "arith"), [
    ("accel", "fast"), pytest.param("accel", "f32", marks=pytest.mark.real_slow),
    pytest.param("reference", "f32", marks=pytest.mark.real_slow),
])  # fmt: skip
def test_same_greedy_ids_from_either_container(real_15b: Path, scratch: Path, there_and_back: Any, engine: str,
                                               arith: str) -> None:  # fmt: skip
    first = ids(real_15b, engine, arith)
    assert len(first) == N_TOKENS and ids(scratch / "1.5b.apr", engine, arith) == first


@pytest.mark.real_slow
def test_half_billion_is_refused_by_apr_and_exact_as_f32(real_05b: Path, scratch: Path) -> None:
    target = scratch / "0.5b.apr"
    with pytest.raises(InputError) as caught:
        convert(real_05b, target)
    assert "133 tensors in Q5_0 and 13 tensors in Q8_0" in str(caught.value) and not target.exists()
    census = convert(real_05b, target, treatment="F32")
    assert verdicts(census) == {"same values": 146, "same bytes": 145}
    ours, theirs = open_model(target), open_model(real_05b)
    for name in ("blk.0.attn_q.weight", "blk.23.ffn_up.weight", "output.weight"):  # the census, once more, by hand
        for start in range(0, ours.tensors[name].n_rows, 10_000):
            stop = min(start + 10_000, ours.tensors[name].n_rows)
            a, b = (model.tensors[name].rows(start, stop) for model in (ours, theirs))
            np.testing.assert_array_equal(a, b, name)
    assert ids(target, "accel", "f32") == ids(real_05b, "accel", "f32")
    target.unlink()


@pytest.mark.real_slow
def test_half_billion_as_a_folder(real_05b: Path, scratch: Path) -> None:
    """In F16 shards: rounded by as much as the census says, the same tokenizer as the library's, both engines agree."""
    folder = scratch / "0.5b"
    census = convert(real_05b, folder, to="hf", treatment="F16", shard_bytes=400_000_000)
    rounded = [record for record in census["tensors"] if record["verdict"] == "rounded"]
    assert rounded and max(record["rms_relative_error"] for record in rounded) < 2**-11  # half a unit of 11 bits
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = open_model(folder)
    assert model.vocabulary.tokens == open_model(real_05b).vocabulary.tokens
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for module in (assay.reference.tokenizer, assay.accel.tokenizer):
        ours = module.Tokenizer(model.vocabulary)
        for text in SAMPLES.values():
            assert ours.encode(text) == library.encode(text).ids, text
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float16"
    assert ids(folder, "accel", "f32") == ids(folder, "reference", "f32")
