"""The built-in model and what is recorded of it: of the types that matter, and reproduced by both engines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from assay.formats import open_model
from assay.formats.containers.base import stored
from assay.formats.containers.opening import open_container
from assay.formats.contract.engine import Generation
from assay.goldens import BUILTIN, BUILTIN_APR
from assay.goldens.training import make_builtin, record
from assay.goldens.training import train as train_builtin

MAX_BYTES = 6_000_000  # of both files together: the wheel carries them
GOLDEN = json.loads(record.RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [BUILTIN, BUILTIN_APR], ids=lambda path: path.suffix)
def test_it_is_small_and_of_the_types_that_matter(path: Path) -> None:
    file = open_model(path)
    assert not file.warnings and BUILTIN.stat().st_size + BUILTIN_APR.stat().st_size < MAX_BYTES
    config = file.config
    assert [size % 256 for size in (config.hidden_size, config.ffn_size, config.n_heads * config.head_dim)] == [0] * 3
    assert config.n_heads > config.n_kv_heads > 1 and config.tied
    for name, tensor in file.tensors.items():
        assert tensor.type.name in (("Q4_K", "Q6_K") if len(tensor.shape) == 2 else ("F32",)), name
    assert file.chat_template and file.vocabulary.add_bos is False
    ends = {file.vocabulary.tokens[i] for i in file.vocabulary.end_ids}
    assert ends == {"<|im_end|>", "<|endoftext|>"}


def test_its_types_are_those_of_a_q4_k_m_file() -> None:
    """What llama.cpp gives four layers: better types for the last two, and for the embedding that makes the logits."""
    kinds = {name: tensor.type.name for name, tensor in open_model(BUILTIN).tensors.items()}
    better = {name for name, kind in kinds.items() if kind == "Q6_K"}
    roles = ("attn_v", "ffn_down")
    assert better == {"token_embd.weight", *(f"blk.{i}.{role}.weight" for i in (2, 3) for role in roles)}


def test_every_matrix_bias_and_gain_is_worth_finding() -> None:
    """A model whose biases were zero could not tell whether an engine adds them."""
    file = open_model(BUILTIN)
    for name, tensor in file.tensors.items():
        values = tensor.decode()
        assert np.isfinite(values).all()
        assert values.std() > 0.01, name


def test_both_containers_hold_the_same_model() -> None:
    one, other = open_model(BUILTIN), open_model(BUILTIN_APR)
    assert (one.name, one.config, one.vocabulary, one.chat_template) == (
        other.name, other.config, other.vocabulary, other.chat_template)  # fmt: skip
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert (tensor.type.name, tensor.shape) == (other.tensors[name].type.name, other.tensors[name].shape)
        assert np.array_equal(tensor.raw(slice(None)), other.tensors[name].raw(slice(None))), name


def test_its_maker_writes_it_again_byte_for_byte(tmp_path: Path) -> None:
    """From its own tensors and vocabulary: the trained weights themselves are not kept."""
    container, words = open_container(BUILTIN), open_model(BUILTIN).vocabulary
    tensors = [stored(container, name) for name in container.tensors]
    make_builtin.write(tmp_path, tensors, {"tokens": words.tokens, "kinds": words.kinds, "merges": words.merges})
    for path in (BUILTIN, BUILTIN_APR):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_its_maker_quantises_to_the_file_s_types() -> None:
    rng = np.random.default_rng(0)
    shapes = train_builtin.shapes()
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    file = open_model(BUILTIN)
    made = make_builtin.quantised(weights)
    assert {one.name: (one.type.name, one.shape) for one in made} == {
        name: (tensor.type.name, tensor.shape) for name, tensor in file.tensors.items()}  # fmt: skip
    again = make_builtin.quantised(weights)
    for a, b in zip(made, again, strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(a.read(), b.read(), strict=True)), a.name


def test_the_record_is_of_these_files() -> None:
    for path, key in ((BUILTIN, "model_sha256"), (BUILTIN_APR, "apr_sha256")):
        assert GOLDEN[key] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_oracle_records_the_same_again() -> None:
    again = record.record()
    for which in ("raw", "chat"):
        # Sums of f64 may be ordered otherwise elsewhere: 1e-16 times some thousand operations
        assert np.allclose(again[which].pop("margins"), GOLDEN[which]["margins"], rtol=0, atol=1e-9)
        golden = {key: value for key, value in GOLDEN[which].items() if key != "margins"}
        assert again[which] == golden


def test_margins_are_wide_enough_for_any_engine_in_f32() -> None:
    """Logits of f32 are off by some 1e-6 of a typical logit, here 10; a choice within that would be luck."""
    for which in ("raw", "chat"):
        assert min(GOLDEN[which]["margins"]) > 1e-3 and len(GOLDEN[which]["ids"]) > 8


def test_what_it_says_makes_sense() -> None:
    """The function it completes computes Fibonacci numbers, the question is answered, and both texts end."""
    raw, chat = GOLDEN["raw"], GOLDEN["chat"]
    assert raw["finish_reason"] == chat["finish_reason"] == "stop"
    names: dict[str, Any] = {}
    exec(raw["prompt"] + raw["text"], names)
    assert [names["fib"](n) for n in range(10)] == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    assert chat["text"] == "2 + 2 equals 4."


@pytest.mark.parametrize("which", ["raw", "chat"])
@pytest.mark.parametrize("engine", ["reference", "accel"])
def test_both_engines_say_what_is_recorded(
    engine: str, which: str, builtin_f32: Any, builtin_accel: Any
) -> None:
    package, model = (reference, builtin_f32) if engine == "reference" else (accel, builtin_accel)
    says_what_is_recorded(package, model, which)


@pytest.mark.parametrize("package", [reference, accel], ids=lambda package: package.__name__)
def test_both_engines_say_the_same_of_the_other_container(package: Any) -> None:
    says_what_is_recorded(package, package.load(BUILTIN_APR, arith="f32"), "chat")


def says_what_is_recorded(package: Any, model: Any, which: str) -> None:
    golden = GOLDEN[which]
    prompt = golden["prompt"] if which == "raw" else model.chat_prompt(golden["messages"])
    answer: Generation = package.generate(model, prompt, max_tokens=record.N_TOKENS)
    assert (answer.prompt, answer.prompt_ids) == (golden["prompt"], golden["prompt_ids"])
    assert (answer.ids, answer.text, answer.finish_reason) == (golden["ids"], golden["text"], golden["finish_reason"])
    assert np.allclose(answer.margins, golden["margins"], rtol=0, atol=1e-3)  # the smallest margin allowed above
