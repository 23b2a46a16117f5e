"""Every way through an engine is a cell; a fault on one way comes out as that axis's level."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from assay import engines
from assay.formats import InputError
from assay.formats.contract.engine import Prompt
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.judging import test_matrix as axes
from assay.parity.attribution import attribute
from tests.assay.command_line import assay

ONE = ("axes", "def f(x):\n    return", "--engines", "reference f32", "--runs", "2")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Keeps only some of the paths, for speed; how many cells there are then."""

    def keep(*paths: str) -> int:
        monkeypatch.setattr(axes, "WAYS", {path: axes.WAYS[path] for path in paths})
        return len(paths) * len(axes.PROMPTS) * 2

    return keep


def in_apr(model: Any) -> None:
    """A gain that is read too large from one container."""
    if model.file.format == "apr":
        right = model.weights.vector
        model.weights.vector = lambda name, dtype: right(name, dtype) * (1.01 if name == "blk.1.ffn_norm.weight" else 1)


def in_chat(model: Any) -> None:
    """A template engine that adds a line."""
    right = model.chat_prompt
    model.chat_prompt = lambda messages: Prompt(right(messages).text + "\n")


def far_away(model: Any) -> None:
    """Wrong from position 256 on."""
    right = model.decode
    model.decode = lambda token, cache: (lambda logits, cache: (np.roll(logits, 1) if len(cache.ids) > 256 else logits,
                                                                cache))(*right(token, cache))  # fmt: skip


def not_a_number(model: Any) -> None:
    """One by one only: logits that are none."""
    right = model.prefill

    def prefill(ids: Any, cache: Any = None) -> Any:
        if len(ids) == 1:
            model.forward([0], lambda stage, layer, x: x * np.nan)
        return right(ids, cache)

    model.prefill = prefill


FAULTS: list[tuple[Callable[[Any], None], list[dict[str, str]], tuple[str, ...]]] = [
    (in_apr, [{"container": "apr"}], ("stages", "prefill", "decode", "generate", "batch")),
    (in_chat, [{"prompt": "chat"}], ("stages, decoding", "prefill", "batch")),
    (far_away, [{"path": "long"}], ("decode", "long", "generate")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "blame", "paths"), FAULTS)
def test_a_fault_is_attributed(spoil: Callable[[Any], None], blame: list[dict[str, str]], paths: tuple[str, ...],
                               ways: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    right, n_cells = engines.load, ways(*paths)

    def load(file: Any, **options: Any) -> Any:
        model = right(file, **options)
        spoil(model)
        return model

    monkeypatch.setattr(engines, "load", load)  # the candidates' alone
    found = assay(*ONE, "--json")
    said = json.loads(found.out)
    assert found.code == DIFFERENT and said["blame"] == blame and not said["green"] and len(said["cells"]) == n_cells


def rotated(answers: list[Any]) -> list[Any]:
    return [*answers[1:], answers[0]]


@pytest.mark.slow
def test_a_batch_that_mixes_its_sequences_up(ways: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    right, n_cells = engines.generate_batch, ways("generate", "batch")
    monkeypatch.setattr(engines, "generate_batch", lambda *given, **named: rotated(right(*given, **named)))
    found = assay(*ONE)
    assert found.code == DIFFERENT and f"{n_cells // 2} of {n_cells} cells failed: path = batch" in found.out


def test_numbers_that_are_none_are_a_finding(ways: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    right = engines.load
    ways("stages", "decode")

    def load(file: Any, **options: Any) -> Any:
        model = right(file, **options)
        not_a_number(model)
        return model

    monkeypatch.setattr(engines, "load", load)
    said = json.loads(assay(*ONE, "--json").out)
    assert {cell["verdict"] for cell in said["cells"] if cell["path"] == "decode"} == {"BUG"}
    assert all(cell["verdict"] == "BIT-EQUAL" for cell in said["cells"] if cell["path"].startswith("stages"))


@pytest.mark.slow
def test_all_is_well_and_without_a_floor_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    n_cells = len(axes.WAYS) * len(axes.PROMPTS) * 2
    shown = assay(*ONE)
    assert shown.code == 0 and f"all {n_cells} cells are green" in shown.out
    monkeypatch.setattr("assay.judging.engines_under_test.precision", lambda *_: None)
    found = assay(*ONE, "--json")
    said = json.loads(found.out)
    assert found.code == UNDECIDED and not said["green"] and said["blame"] == attribute([]) == []
    assert assay(*ONE).code == UNDECIDED


def test_a_file_that_the_other_container_cannot_hold(ways: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the 0.5B's Q5_0 in APR: what was not judged is said, and is not a cell."""

    def cannot(source: Any, target: Any) -> None:
        raise InputError("1 tensor in Q5_0 cannot be stored as it is", where="convert")

    monkeypatch.setattr(axes, "convert", cannot)
    n_cells = ways("prefill") // 2
    shown, said = assay(*ONE), assay(*ONE, "--json").json
    assert shown.code == 0 and "no cells in apr: 1 tensor in Q5_0 cannot" in shown.out
    assert len(said["cells"]) == n_cells and said["missing"].startswith("no cells in apr")


@pytest.mark.parametrize("arguments", [
    ("axes", "--engines", "accel"), ("axes", "--engines", "nobody f32"), ("axes", "--engines", "reference bf16"),
    ("axes", ""), ("axes", "--engines", ""),
])  # fmt: skip
def test_requests_that_cannot_be_carried_out(arguments: tuple[str, ...]) -> None:
    assert assay(*arguments).is_refusal(2) and assay(*arguments, "--json").is_refusal(2)


def test_a_prompt_whose_stages_cannot_be_kept_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only the chat template makes it too long."""

    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded for a prompt that is too long")

    monkeypatch.setattr(axes, "both_containers", no_work)
    for text in ("a b c d " * 100, "a " * 110):
        assert assay("axes", text).is_refusal(2)


def test_a_conversation_is_a_prompt_too(ways: Callable[..., int]) -> None:
    """Raw is the rendered text: the same tokens as the conversation's, as nothing in it spells a control token."""
    ways("prefill")
    turns = [{"role": role, "content": text} for role, text in (("system", ""), ("user", "Hi"), ("assistant", "a"))]
    text = json.dumps({"messages": turns, "continue_final_message": True})
    said = assay("axes", "--messages", "-", *ONE[2:], "--json", stdin=text.encode()).json
    assert said["green"] and {cell["prompt"] for cell in said["cells"]} == set(axes.PROMPTS)
    assert len({cell["expected"] for cell in said["cells"]}) == 1, "the same positions in all"
    assert assay("axes", "Hi", "--messages", "-", stdin=text.encode()).is_refusal(2)
