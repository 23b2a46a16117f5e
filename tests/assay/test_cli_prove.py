"""``assay prove`` at the command line: its list, its errors, its tables and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assay.commands import prove
from assay.judging.proof import results
from assay.judging.proof.bench import Record
from tests.assay.command_line import assay


def record(mutant: str, arith: str, outcome: str, checks: list[str], verdict: str) -> Record:
    gate = {"verdict": verdict, "checks": checks, "site": None, "kill": outcome == "killed"}
    return Record(mutant, "RoPE", arith, outcome, None, 10, {"flips, prefill": gate}, ["prefill"],
                  {"kl_mean": 0.1, "kl_max": 0.2, "floors": 9.0}, {"golden text": ["text"]})  # fmt: skip


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """What a run gives: the command shows it, no engine is loaded."""
    found = [record("", "f32", "green", [], "NOISE"),
             record("neighbours are paired", "f32", "killed", ["tokens: x"], "BUG"),
             record("angles in f32", "f32", "survived", [], "NOISE")]  # fmt: skip
    monkeypatch.setattr(results, "run", lambda *arguments: iter(found))
    return found


def test_the_catalogue_is_listed() -> None:
    said = json.loads(assay("prove", "--list", "--tier", "full", "--json").out)
    assert len(said) > 200 and {"name", "family", "seam"} <= said[0].keys()
    assert "neighbours are paired" in assay("prove", "--list").out


@pytest.mark.parametrize(("options", "where"), [
    (("--tier", "none"), "--tier"), (("--arith", "f31"), "--arith"), (("--family", "none"), "--family"),
    (("--mutant", "none"), "--mutant"), (("--plot", "page.html"), "--plot"),
])  # fmt: skip
def test_what_there_is_not_is_refused(options: tuple[str, ...], where: str) -> None:
    done = assay("prove", *options)
    assert done.is_refusal(2) and where in done.err


def test_tables_page_and_picture(ran: list[Record], tmp_path: Path) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    done = assay("prove", "--arith", "f32", "--markdown", str(page), "--plot", str(picture), "--without", "tokens: x")
    assert done.code == 0 and "without tokens: x: 0 of 2, with it 1" in done.out
    assert "| angles in f32 |" in page.read_text() and picture.read_bytes()[:4] == b"\x89PNG"
    assert assay("prove", "--arith", "f32", "--without", "no check").is_refusal(2)
    said = assay("prove", "--arith", "f32", "--json").json
    assert said["caught"] == {"f32": {"caught": 1, "of": 2}} and len(said["records"]) == 3
    assert "flips, prefill" in assay("prove", "--mutant", "neighbours are paired").out


def test_a_lower_rate_and_a_false_alarm_fail(ran: list[Record], monkeypatch: pytest.MonkeyPatch,
                                             tmp_path: Path) -> None:  # fmt: skip
    recorded = tmp_path / "proven.json"
    monkeypatch.setattr(prove, "PROVEN", recorded)
    for caught, code in ((1, 0), (2, 8)):
        recorded.write_text(json.dumps({"merge": {"caught": caught, "of": 2}}))
        assert assay("prove").code == code
    recorded.write_text(json.dumps({"merge": {"caught": 1, "of": 2}}))
    ran[0].gates["flips, prefill"]["verdict"] = "BUG"
    done = assay("prove")
    assert done.code == 8 and "false alarm on the clean engine: f32: flips, prefill" in done.out

