"""What the records of ``assay prove`` say: rates, sites, what a check is worth, rivals; and how records are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from assay.formats import InputError, open_model
from assay.goldens import BUILTIN
from assay.judging.proof import report, results, score
from assay.judging.proof.bench import Record
from assay.judging.proof.gates import gates, named
from assay.judging.proof.rivals import BY_LOGITS, GOLDEN, STD_RATIO, caught_by
from assay.parity.limits import Measure
from assay.parity.mutants import CATALOGUE, FAMILIES
from tests.real.null_comparisons import summary, upper_limit

FILE = open_model(BUILTIN)


def record(name: str, outcome: str = "killed", *, checks: tuple[str, ...] = ("a",), site: Any = ("ffn_up", 1),
           declared: Any = ("ffn_up", 1), floors: float | None = 10.0, **more: Any) -> Record:  # fmt: skip
    kill = outcome == "killed"
    one = {"verdict": "BUG" if kill else "NOISE", "checks": list(checks) if kill else [], "site": site, "kill": kill}
    return Record(name, "f", "f32", outcome, declared, more.get("bug"), {"g": one}, ["prefill"],
                  {"kl_mean": 1e-3, "kl_max": 1e-2, "floors": floors}, more.get("rivals", {}))  # fmt: skip


def test_what_a_check_is_worth_is_in_the_records() -> None:
    some = [record("one"), record("two", checks=("a", "b")), record("three", "survived"), record("four", "equivalent")]
    assert score.rate(some, score.killed) == score.Rate(2, 3)
    assert score.rate(some, score.killed_without("a")) == score.Rate(1, 3)
    assert score.rate(some, score.killed_without("b")) == score.Rate(2, 3)
    assert score.rate(some, score.killed_without("g")) == score.Rate(0, 3)
    assert score.checks_of(some) == ["a", "b"]


def test_sites_are_scored_by_stage_and_layer() -> None:
    last: Any = {"declared": ("final_norm", None), "site": ("logits", None)}
    some = [record("one"), record("two", site=("ffn_gate", 1)), record("three", site=("ffn_up", 2)),
            record("four", site=None), record("five", **last)]  # fmt: skip
    assert score.located(some) == (score.Rate(1, 4), score.Rate(3, 4))
    assert score.near(("ffn_residual", 0), ("attn_norm", 1)) and not score.near(("embedding", None), ("q_proj", 0))


def test_beyond_three_floors_is_by_size_or_discrete() -> None:
    assert score.beyond(record("a")) and score.beyond(record("b", floors=None))
    assert not score.beyond(record("c", floors=2.9)) and not score.beyond(record("d", "equivalent"))


def test_rivals_count_by_the_same_rule() -> None:
    clean = record("", "green", rivals={"cosine 0.98": ["prefill"], STD_RATIO: []})
    caught = record("a", rivals={"cosine 0.98": ["prefill"], STD_RATIO: ["stages"]}, bug=7)
    assert not score.rival_caught("cosine 0.98", clean)(caught), "it cries wolf on that input"
    assert score.rival_caught(STD_RATIO, clean)(caught)
    assert score.real_bugs([caught], {"f32": clean}) == [(7, "a", True, True)]


def test_each_rival_sees_what_it_is_made_for() -> None:
    rng = np.random.default_rng(0)
    truth = 4 * rng.standard_normal((6, 50))
    text = {"text": "yes"}
    quiet = caught_by({"prefill": truth + 1e-5, "greedy": text}, truth, "yes", (0.99, 1.01))
    assert not any(quiet.values())
    loud = caught_by({"prefill": -truth, "greedy": {"text": "no"}}, truth, "yes", (0.2, 1.0))
    assert all(loud[name] for name in (*BY_LOGITS, GOLDEN, STD_RATIO))
    assert caught_by({"prefill": truth, "greedy": text}, truth, "yes", (np.nan, np.nan))[STD_RATIO]
    assert all(caught_by({"prefill": "not numbers", "greedy": "not numbers"}, truth, "yes", None)[name]
               for name in (*BY_LOGITS, GOLDEN))  # fmt: skip


def test_tables_are_made_of_records_alone() -> None:
    clean = record("", "green", rivals={})
    said = report.facts([clean, record("a", bug=7), record("b", "survived"), record("c", "crashed", floors=None)])
    assert said["caught"] == {"f32": {"caught": 1, "of": 3}} and said["site_exact"] == {"caught": 1, "of": 1}
    page = report.markdown([clean, record("b", "survived")])
    assert "| b | f | f32 | survived | 0.001 | 0.01 | 10 | prefill |" in page


def test_records_are_kept_and_found_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert results.stored(out, FILE) == []
    first = record("a", floors=float("inf"))
    results.keep(out, first)
    with (out / results.FILE).open("a") as file:
        file.write('{"mutant": "cut o')
    (found,) = results.stored(out, FILE)
    assert found.mutant == "a" and found.declared == ("ffn_up", 1) and found.effect["floors"] is None
    (out / results.FACTS).write_text('{"model": "another"}')
    with pytest.raises(InputError, match="another version"):
        results.stored(out, FILE)


def test_the_merge_tier_has_every_family() -> None:
    merge = results.chosen("merge", (), (), False)
    assert {m.family for m in merge} == set(FAMILIES) and len(merge) < len(CATALOGUE) / 2
    assert results.chosen("merge", ("RoPE",), (), True)
    for family, name in ((("nothing",), ()), ((), ("nothing",))):
        with pytest.raises(InputError, match="nothing"):
            results.chosen("full", family, name, False)


def test_the_gates_are_those_of_the_commands() -> None:
    assert set(results.MERGE_GATES) <= set(gates(lambda judged, path: [1], "fast"))
    assert set(gates(lambda judged, path: [1], "ggml")) < set(gates(lambda judged, path: [1], "fast"))


def test_the_limit_of_false_alarms_is_the_rule_of_three() -> None:
    assert abs(upper_limit(0, 1000) - 3 / 1000) < 1e-5 and upper_limit(0, 2000) < 0.0015
    assert 0.005 < upper_limit(2, 1000) < 0.0063 and upper_limit(1, 1) == 1
    said = summary([{"what": "w", "name": "n", "verdict": "NOISE", "near": 1.2, "where": "here"}] * 10)
    assert said["alarms"] == 0 and said["worst"] == {"w: n": [1.2, 10]} and 0.25 < said["upper_95"] < 0.26


def test_checks_have_names_without_numbers() -> None:
    counted = SimpleNamespace(unexplained=(3, 9), p_value=1.0, observed=2, expected=0.1, noise=12.5, measures=())
    assert "tokens: flips unexplained" in named(counted)
    assert all(not any(c.isdigit() for c in check) for check in named(counted))
    counted.measures = (Measure("gain of leads", 5.0, 4.0), Measure("row", 3.0, 4.0))
    assert "tokens: gain of leads" in named(counted) and "tokens: row" not in named(counted)
