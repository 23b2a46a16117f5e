"""``assay parity``, ``flips`` and ``bisect`` as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.commands.comparison import flips_line
from assay.formats.errors import DIFFERENT, UNDECIDED
from assay.parity.flips import Account
from assay.reference import chat as reference_chat
from assay.reference import linear
from tests.assay.command_line import assay

ORACLE = ("--engine", "reference", "--arith", "ggml")
TEXT = "def fib(n):\n    return"


def test_parity_as_a_table_and_as_json() -> None:
    shown = assay("parity", *ORACLE)
    assert shown.code == 0 and "DRIFT: 8-bit activations" in shown.out and "ffn_swiglu" in shown.out
    said = assay("parity", "What is 2+2?", "--chat", *ORACLE, "--json").json
    assert said["verdict"] == "DRIFT" and said["site"] is None and len(said["model"]["sha256"]) == 64
    assert len(said["stages"]) == 3 + 19 * 4 and all(stage["over_floor"] < 4 for stage in said["stages"])
    assert said["flips"]["positions"] == len(said["ids"]) and said["flips"]["unexplained"] == []


@pytest.mark.slow
def test_flips_of_a_text_longer_than_a_window() -> None:
    said = assay("flips", TEXT * 60, *ORACLE, "--runs", "2", "--json").json
    assert said["verdict"] == "DRIFT" and said["positions"] == len(said["margins"]) == len(said["sigmas"]) > 256
    assert said["observed"] == sum(one["flipped"] for one in said["positions_in_doubt"])
    shown = assay("flips", TEXT, *ORACLE)
    assert shown.code == 0 and "flipped" in shown.out


def test_an_odd_number_of_noisy_runs_makes_a_floor_too() -> None:
    said = assay("flips", TEXT, *ORACLE, "--runs", "3", "--json").json
    assert said["verdict"] == "DRIFT" and min(said["sigmas"]) > 0


def test_a_generation_that_takes_another_way_than_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The incident: every forward pass agrees, and what is written does not."""
    said = assay("flips", TEXT, *ORACLE, "--free", "24", "--json").json
    assert said["verdict"] == "DRIFT" and 0 < said["free_run"]["tokens"] <= 24 and said["free_run"]["unexplained"] == 0
    assert said["statistics"]["mean_kld"] == said["kl_mean"] > 0
    shown = assay("flips", TEXT, *ORACLE, "--free", "24")
    assert shown.code == 0 and "writing by itself: parted from the truth at 0" in shown.out
    monkeypatch.setattr("assay.judging.judge.generation", lambda _: lambda ids, n: ([198] * n, []))
    assert assay("flips", TEXT, *ORACLE).code == 0
    shown = assay("flips", TEXT, *ORACLE, "--free", "24")
    assert shown.code == DIFFERENT and "flips unexplained when writing by itself" in shown.out
    assert "BUG: " in shown.out and repr("\n") in shown.out
    assert assay("flips", TEXT, *ORACLE, "--free", "256").is_refusal(2)


def test_forced_ids_need_no_tokenizer() -> None:
    said = assay("bisect", "--ids", "5,6,7,8", *ORACLE, "--json").json
    assert said["verdict"] == "DRIFT" and said["wrong"] == [] and said["candidate_forwards"] <= 6


def test_a_fault_is_named_and_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations a tenth too large before they are rounded to 8 bits: in the ggml arithmetic only."""
    right = linear.quantize_activations
    monkeypatch.setattr(linear, "quantize_activations", lambda x, weights: right(1.1 * x, weights))
    found = assay("bisect", *ORACLE, "--json")
    assert found.code == DIFFERENT and json.loads(found.out)["wrong"][0]["stage"] == "q_proj"
    shown = assay("parity", *ORACLE)
    assert shown.code == DIFFERENT and "BUG at q_proj of layer 0" in shown.out
    assert "wrong stage" in assay("bisect", *ORACLE).out


def test_an_engine_that_says_nothing_of_its_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.judging.engines_under_test.precision", lambda *_: None)
    for command in ("parity", "bisect", "flips"):
        found = assay(command, TEXT, *ORACLE)
        assert found.code == UNDECIDED and "UNCALIBRATED" in found.out
        assert json.loads(assay(command, TEXT, *ORACLE, "--json").out)["verdict"] == "UNCALIBRATED"


def test_logits_that_are_no_numbers_have_a_site_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinity in the rounding to 8 bits: the ggml arithmetic's logits are NaN, the site is where it began."""
    right = linear.quantize_activations
    monkeypatch.setattr(linear, "quantize_activations", lambda x, weights: right(x + np.inf, weights))
    for command in ("parity", "bisect"):
        found = assay(command, TEXT, *ORACLE)
        assert found.code == DIFFERENT and "q_proj" in found.out
        assert json.loads(assay(command, TEXT, *ORACLE, "--json").out)["verdict"] == "BUG"
    assert assay("flips", TEXT, *ORACLE).is_refusal(7)


@pytest.mark.parametrize("arguments", [
    ("parity", "--path", "sideways"), ("parity", "--tier", "half"),
    ("bisect", "x", "--ids", "1"), ("flips",), ("flips", "x", "--runs", "1"),
    ("parity", "--ids", "1,2", "--chat"), ("parity", TEXT * 400), ("parity", "--ids", "99999999"), ("parity", ""),
    ("parity", "--ids", "a"),
])  # fmt: skip
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_requests_that_cannot_be_carried_out(arguments: tuple[str, ...], as_json: tuple[str, ...]) -> None:
    assert assay(*arguments, *(ORACLE if arguments != ("flips",) else ()), *as_json).is_refusal(2)


def test_two_templates_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    render = reference_chat.render

    def otherwise(messages: Any, *rest: Any, **named: Any) -> Any:
        calls.append(messages)
        prompt = render(messages, *rest, **named)
        return prompt if len(calls) == 1 else type(prompt)(prompt.text + "\n", prompt.literal)

    monkeypatch.setattr(reference_chat, "render", otherwise)
    assert assay("parity", "hi", "--chat", *ORACLE, "--json").is_refusal(9)


def test_a_page_is_written_and_not_overwritten_unasked(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert assay("parity", TEXT, *ORACLE, "--report", str(target)).code == 0
    html = target.read_text(encoding="utf-8")
    assert "DRIFT" in html and html.count('class="cell"') == 3 + 19 * 4 and "assay parity" in html
    assert assay("parity", TEXT, *ORACLE, "--report", str(target)).is_refusal(2)
    assert assay("parity", TEXT, *ORACLE, "--report", str(target), "--force").code == 0
    assert assay("parity", TEXT, *ORACLE, "--report", str(tmp_path / "none" / "page.html")).is_refusal(2)


def test_the_divergence_of_an_engine_that_names_few_tokens_is_said_to_be_a_bound() -> None:
    counted = Account(8, 0.1, 0, 0.9, (), 1.0, 1.0, 1.2e-4, 3e-5)
    assert "; KL 1.20e-04 ± 3e-05 nats, " in flips_line(counted)
    assert "; KL at least 1.20e-04 ± 3e-05 nats, " in flips_line(counted._replace(kl_is_bound=True))
    assert "; KL too small" in flips_line(counted._replace(kl_is_bound=True, kl_mean=0.0, kl_error=0.0))
    assert "; KL 0.00e+00 ± 0e+00 nats, " in flips_line(counted._replace(kl_mean=0.0, kl_error=0.0))
