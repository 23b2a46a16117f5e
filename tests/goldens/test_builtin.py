"""The built-in model and what is recorded of it: made as its maker says, and reproduced by both engines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accel
import reference
from formats import open_model
from formats.protocol import Generation
from goldens import BUILTIN, make_builtin, record

MAX_BYTES = 4 << 20
GOLDEN = json.loads(record.RECORD.read_text(encoding="utf-8"))


def test_its_maker_makes_it_again_byte_for_byte(tmp_path: Path) -> None:
    make_builtin.main(str(tmp_path / "again.gguf"))
    assert (tmp_path / "again.gguf").read_bytes() == BUILTIN.read_bytes()


def test_it_is_small_and_of_the_types_that_matter() -> None:
    file = open_model(BUILTIN)
    census = file.census()
    assert file.size == BUILTIN.stat().st_size < MAX_BYTES and not file.warnings
    assert census["Q4_K"] and census["Q6_K"] and set(census) == {"Q4_K", "Q6_K", "F32"}
    assert file.config.n_heads > file.config.n_kv_heads > 1 and file.config.tied
    assert file.chat_template and file.vocabulary.add_bos is False
    ends = {file.vocabulary.tokens[i] for i in file.vocabulary.end_ids}
    assert ends == {"<|im_end|>", "<|endoftext|>"}


def test_every_bias_and_gain_is_worth_finding() -> None:
    """A model whose biases were zero could not tell whether an engine adds them."""
    file = open_model(BUILTIN)
    for name, tensor in file.tensors.items():
        values = tensor.decode()
        assert np.isfinite(values).all()
        assert values.std() > 0.01, name


def test_the_record_is_of_this_model() -> None:
    assert GOLDEN["model_sha256"] == hashlib.sha256(BUILTIN.read_bytes()).hexdigest()


def test_the_oracle_records_the_same_again() -> None:
    again = record.record()
    for which in ("raw", "chat"):
        # Sums of f64 may be ordered otherwise elsewhere: 1e-16 times some thousand operations
        assert np.allclose(again[which].pop("margins"), GOLDEN[which]["margins"], rtol=0, atol=1e-9)
        golden = {key: value for key, value in GOLDEN[which].items() if key != "margins"}
        assert again[which] == golden


def test_margins_are_wide_enough_for_any_engine_in_f32() -> None:
    """Logits of f32 are off by some 1e-5 of a typical logit, here 1; a choice within that would be luck."""
    for which in ("raw", "chat"):
        assert min(GOLDEN[which]["margins"]) > 1e-3 and len(GOLDEN[which]["ids"]) == record.N_TOKENS


@pytest.mark.parametrize("which", ["raw", "chat"])
@pytest.mark.parametrize("engine", ["reference", "accel"])
def test_both_engines_say_what_is_recorded(
    engine: str, which: str, builtin_f32: Any, builtin_accel: Any
) -> None:
    package, model = (reference, builtin_f32) if engine == "reference" else (accel, builtin_accel)
    golden = GOLDEN[which]
    prompt = golden["prompt"] if which == "raw" else model.chat_prompt(golden["messages"])
    answer: Generation = package.generate(model, prompt, max_tokens=record.N_TOKENS)
    assert (answer.prompt, answer.prompt_ids) == (golden["prompt"], golden["prompt_ids"])
    assert (answer.ids, answer.text, answer.finish_reason) == (golden["ids"], golden["text"], golden["finish_reason"])
    assert np.allclose(answer.margins, golden["margins"], rtol=0, atol=1e-3)  # the smallest margin allowed above
