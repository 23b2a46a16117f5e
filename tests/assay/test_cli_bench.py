"""``assay bench`` on the built-in model: every figure is there and is a measurement, whatever its size."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import cast

import pytest

from assay import peers, reference
from assay.accel.generate import MAX_SEQUENCES
from assay.benchmark import plot as bench_plot
from assay.benchmark.bench import MAX_BATCH, alternate, never_ending, ours, workloads_of
from assay.benchmark.machine import process_age
from assay.engines import generate, generate_batch, load
from assay.formats import InputError, NumericError, open_model
from assay.formats.contract.engine import Generation, Timings
from assay.goldens import BUILTIN
from tests.assay.command_line import assay, text_of
from tests.assay.peers.peer_stand_ins import StandIn

SMALL = ("-e", "reference", "--rounds", "1", "--prefill", "8", "--decode-at", "0,4", "--batch", "1,2")
LEAST = ("-e", "reference", "--rounds", "1", "--prefill", "4", "--decode-at", "", "--batch", "")


@pytest.mark.slow
def test_every_workload_is_measured() -> None:
    facts = assay("bench", *SMALL, "--rounds", "2", "--json").json
    names = ["prefill of 8", "decode at 0", "decode at 4", "batch of 1", "batch of 2"]
    assert [row["name"] for row in facts["results"]] == names
    for row in facts["results"]:
        speed = row["reference"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert len(speed["rounds"]) == 2
        assert "ratio" not in row and row["compile_s"] == 0
    assert facts["peak_rss_bytes"] >= facts["first_token"]["peak_rss_bytes"] > facts["file_bytes"]
    assert facts["file_bytes"] > facts["weight_bytes_per_token"] > 0
    assert 0 < facts["load_s"] < facts["first_token"]["since_open_s"]
    if process_age() is not None:
        assert facts["first_token"]["since_process_start_s"] > facts["first_token"]["since_open_s"]
    decode = facts["results"][1]
    read = decode["reference"]["median"] * facts["weight_bytes_per_token"]
    assert decode["bandwidth_share"] == pytest.approx(read / facts["read_bandwidth_bytes_s"])
    assert (facts["engine"]["arith"], facts["peer"], facts["left_out"]) == ("f32", None, [])
    assert (facts["complete"], facts["stopped"]) == (True, None) and "error" not in facts
    assert facts["batch"] == "one after another"  # the oracle has no batches


@pytest.mark.slow
def test_the_table_says_what_the_json_says() -> None:
    shown = assay("bench", *SMALL)
    assert shown.code == 0
    for word in ("prefill of 8", "decode at 0", "batch of 2", "reference tokens/s", "MB of weights a token",
                 "first token", "compile 0.0 s", "decodes its sequences one after another"):  # fmt: skip
        assert word in shown.out
    assert "ratio" not in shown.out
    assert [line.split(" (")[1] for line in shown.err.splitlines()] == [f"{i} of 5)" for i in range(1, 6)]


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_workloads_beyond_the_context_are_left_out_and_named(how: tuple[str, ...]) -> None:
    shown = assay("bench", *LEAST, "--prefill", "4,2048", "--decode-at", "4096", *how)
    left_out = [line for line in shown.err.splitlines() if "left out" in line]
    assert [line.split(" is")[0] for line in left_out] == ["assay: prefill of 2048", "assay: decode at 4096"]
    if how:
        facts = json.loads(shown.out)
        assert [row["size"] for row in facts["results"]] == [4]
        assert [(row["kind"], row["size"]) for row in facts["left_out"]] == [("prefill", 2048), ("decode", 4096)]


@pytest.mark.parametrize(
    "arguments",
    [["--prefill", "x"], ["--prefill", "0"], ["--prefill", "9" * 5000], ["--decode-at", "-1"], ["--batch", "0"],
     ["--batch", "17"], ["--rounds", "0"], ["--vs", "nothing"], ["--cache-type", "f16"],
     ["--plot", "a.jpg"], ["--plot", "no/such/a.png"]],
)  # fmt: skip
def test_bad_options_are_refused(arguments: list[str]) -> None:
    assert assay("bench", *LEAST, "--json", *arguments).is_refusal(2)


def test_engines_are_measured_in_turn_after_a_run_that_does_not_count() -> None:
    order: list[str] = []

    def engine(name: str, speeds: list[float]):
        def run() -> tuple[float, float]:
            order.append(name)
            return speeds[order.count(name) - 1], 0.25

        return run

    first, _, result = alternate({"a": engine("a", [1000, 2, 4, 6]), "b": engine("b", [1, 1, 1, 2])}, rounds=3)
    assert order == list("ab" * 4)
    assert result["a"] == {"median": 4, "low": 2, "high": 6, "rounds": [2, 4, 6]}
    assert result["ratio"] == {"median": 3, "low": 2, "high": 4, "rounds": [2, 4, 3]}
    assert result["compile_s"] == 2  # eight times a quarter
    assert first["a"]["rounds"] == [2] and first["ratio"]["rounds"] == [2] and first["compile_s"] == 1


def test_speeds_follow_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Timings(compile_s=9, prefill_s=2, decode_s=4, prefill_tokens=8, decode_tokens=6)
    monkeypatch.setattr(reference, "generate", lambda *_, **__: Generation(None, [], timings=replace(clock)))
    model = load(BUILTIN, engine="reference")
    (prefill, decode, batch), _ = workloads_of(model.file, [8], [0], [3])
    assert ours(model, prefill)() == (4, 9)
    assert ours(model, decode)() == (1.5, 9)
    assert ours(model, batch)() == (1.5, 27)  # 18 tokens in the 12 s that three take one after another


def test_a_decode_reads_its_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, generated = [], reference.generate

    def watched(*arguments, **options) -> Generation:
        answer = generated(*arguments, **options)
        read.append((answer.timings.prefill_tokens, answer.timings.decode_tokens))
        return answer

    monkeypatch.setattr(reference, "generate", watched)
    model = load(never_ending(open_model(BUILTIN)), engine="reference")
    (decode,), _ = workloads_of(model.file, [], [8], [])
    run = ours(model, decode)
    run()
    run()
    assert read == [(8, 31), (1, 31)]


def test_end_tokens_end_nothing() -> None:
    file = open_model(BUILTIN)
    ends = replace(file, vocabulary=replace(file.vocabulary, end_ids=frozenset(range(len(file.vocabulary)))))
    assert len(generate(load(ends, engine="reference"), [5], max_tokens=4).ids) == 1
    assert len(generate(load(never_ending(ends), engine="reference"), [5], max_tokens=4).ids) == 4


def test_a_batch_one_after_another_carries_the_clock_of_all() -> None:
    model = load(BUILTIN, engine="reference")
    prompts = [[5, 6, 7], [8, 9]]
    answers = generate_batch(model, prompts, max_tokens=3)
    assert [answer.ids for answer in answers] == [generate(model, ids, max_tokens=3).ids for ids in prompts]
    assert answers[0].timings.decode_s == answers[1].timings.decode_s > 0
    assert [answer.timings.prefill_tokens for answer in answers] == [3, 2]


def test_a_batch_is_the_engines_own_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    clock = Timings(decode_s=2, decode_tokens=31)

    def together(model, prompts, *, max_tokens: int) -> list[Generation]:
        asked.append((prompts, max_tokens))
        return [Generation(None, list(ids), timings=clock) for ids in prompts]

    monkeypatch.setattr(reference, "generate_batch", together, raising=False)
    facts = assay("bench", *LEAST, "--prefill", "", "--batch", "4", "--json").json
    assert facts["batch"] == "together"
    assert facts["results"][0]["reference"]["rounds"] == [4 * 31 / 2]
    prompts, max_tokens = asked[0]
    assert max_tokens == 32 and len(set(map(tuple, prompts))) == 4 and {len(ids) for ids in prompts} == {8}


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, how: Callable[[], object]) -> None:
    """Have something happen in the run after so many, of which the first of a workload is not measured."""
    runs, generated = [], reference.generate

    def watched(*arguments, **options) -> Generation:
        runs.append(None)
        if len(runs) == after + 2:  # one is the first token
            how()
        return generated(*arguments, **options)

    monkeypatch.setattr(reference, "generate", watched)


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def hang_up() -> None:
    signal.raise_signal(signal.SIGHUP)


def fail() -> None:
    raise NumericError("not a number", where="logits")


STOPS = {"interrupted": (interrupt, 130), "terminated": (terminate, 143), "hung up": (hang_up, 129),
         "an engine failed": (fail, 7)}  # fmt: skip
THREE = ("-e", "reference", "--rounds", "3", "--prefill", "4,8", "--decode-at", "0", "--batch", "")


@pytest.mark.parametrize("how", STOPS)
def test_what_was_measured_is_not_lost(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs of the first workload, then two of the second: one round of three counts."""
    event, code = STOPS[how]
    handler = signal.getsignal(signal.SIGTERM)
    stopping(monkeypatch, 6, event)
    found = assay("bench", *THREE, "--json")
    facts = json.loads(found.out)  # one document
    assert (found.code, facts["complete"], facts["stopped"]) == (code, False, how)
    assert [(row["name"], row["complete"], len(row["reference"]["rounds"])) for row in facts["results"]] == [
        ("prefill of 4", True, 3), ("prefill of 8", False, 1)]  # fmt: skip
    assert [(one["name"], one["reason"]) for one in facts["left_out"]] == [("decode at 0", how)]
    assert found.err.splitlines()[-1].startswith("assay: stopped: ")
    assert ("error" in facts) == (how == "an engine failed") and signal.getsignal(signal.SIGTERM) == handler
    assert facts["read_bandwidth_bytes_s"] is None and facts["peak_rss_bytes"] > 0


def test_a_stopped_table(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping(monkeypatch, 6, interrupt)
    found = assay("bench", *THREE)
    _, _, *rows = found.out.splitlines()
    assert rows[0].startswith("prefill of 4 ") and "rounds" not in rows[0]
    assert rows[1].startswith("prefill of 8 ") and rows[1].endswith("1 of 3 rounds") and rows[2].startswith("load ")
    assert "assay: decode at 0 is left out: interrupted" in found.err and found.code == 130


def test_rows_come_as_they_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second workload begins, the first row is out."""
    seen: list[str] = []
    stopping(monkeypatch, 4, lambda: seen.append(text_of(cast(TextIOWrapper, sys.stdout))))
    assert assay("bench", *THREE).code == 0
    assert seen[0].splitlines()[-1].startswith("prefill of 4 ") and seen[0].endswith("\n")


def test_a_stop_before_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to show: an error as in any command."""
    for after, event, code in ((-1, interrupt, 130), (-1, fail, 7), (0, fail, 7)):
        with monkeypatch.context() as patches:
            stopping(patches, after, event)
            assert assay("bench", *THREE, "--json").is_refusal(code)


def test_sigterm_before_the_first_row_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping(monkeypatch, -1, terminate)
    assert assay("bench", *THREE).is_refusal(143)


@pytest.mark.parametrize(("budget", "measured"), [("0", 1), ("1e9", 3)])
def test_a_budget(budget: str, measured: int) -> None:
    """It is looked at after each round; one is measured whatever it is."""
    found = assay("bench", *THREE, "--budget", budget, "--json")
    facts = json.loads(found.out)
    assert found.code == 0 and len(facts["results"]) == measured
    assert facts["complete"] == (measured == 3) and len(facts["left_out"]) == 3 - measured
    assert len(facts["results"][0]["reference"]["rounds"]) == (1 if measured == 1 else 3)
    assert {one["reason"] for one in facts["left_out"]} <= {"the budget is used up"}
    assert facts["read_bandwidth_bytes_s"] > 0


@pytest.mark.parametrize("budget", ["-1", "x", "nan"])
def test_a_budget_that_is_none(budget: str) -> None:
    assert assay("bench", *THREE, "--budget", budget).is_refusal(2)


def test_a_peer_that_dies_half_way_leaves_what_was_measured(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def dead(*_: object, **__: object) -> None:
        raise InputError("stand-in failed: gone", where="--vs")

    stopping(monkeypatch, 4, lambda: monkeypatch.setattr(peers.Peer, "generate", dead))
    picture = tmp_path / "speed.png"
    found = assay("bench", *THREE, "--vs", "stand-in", "--json", "--plot", str(picture))
    facts = json.loads(found.out)
    assert found.code == 2 and facts["stopped"] == "an engine failed" and facts["error"]["where"] == "--vs"
    assert [row["name"] for row in facts["results"]] == ["prefill of 4"]
    assert facts["results"][0]["ratio"]["rounds"] and facts["peer"]["name"] == "stand-in"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_largest_batch_is_the_fast_engines() -> None:
    assert MAX_SEQUENCES == MAX_BATCH


@pytest.mark.slow
def test_a_peer_is_measured_in_turn(stand_in: StandIn, tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    shown = assay("bench", *SMALL, "--rounds", "2", "--vs", "stand-in", "--json", "--plot", str(picture))
    facts = shown.json
    peer = [row["stand-in"]["median"] for row in facts["results"]]
    assert peer == [4000, 2000, 2000, 2000, 4000]  # the last: two sequences at once
    for row in facts["results"]:
        ratios = [a / b for a, b in zip(row["reference"]["rounds"], row["stand-in"]["rounds"], strict=True)]
        assert row["ratio"]["rounds"] == ratios and len(ratios) == 2
    assert (facts["peer"]["name"], facts["peer"]["arith"]) == ("stand-in", "f64")
    assert "pytest" in facts["peer"]["versions"]
    assert 0 < facts["peer"]["load_s"] < facts["peer"]["first_token_s"]
    assert len(facts["peer"]["peak_rss_bytes"]) == 2  # two processes
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_a_peer_gets_room_for_what_it_is_asked(stand_in: StandIn) -> None:
    assert assay("bench", *SMALL, "--vs", "stand-in", "--json").code == 0
    (single, _), (batched, asked) = stand_in.processes()
    assert single == [str(BUILTIN.resolve()), str(4 + 32 + 8), "1"]
    assert batched == [str(BUILTIN.resolve()), str(8 + 32 + 8), "2"]
    assert asked[-1]["prompt"][0] != asked[-1]["prompt"][1]


@pytest.mark.slow
def test_a_peer_that_reserves_nothing_is_loaded_once(stand_in: StandIn) -> None:
    stand_in.recipe(reserves=False)
    shown = assay("bench", *SMALL, "--vs", "stand-in")
    assert shown.code == 0 and "ratio" in shown.out and "beside stand-in in f64" in shown.out
    ((command, asked),) = stand_in.processes()
    assert command == [str(BUILTIN.resolve()), str(8 + 32 + 8), "2"]
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in asked)
    keep = [body["cache_prompt"] for body in asked]
    assert keep == [False] + 2 * [False] + 4 * [True] + 4 * [False]  # first token; prefill; two decodes; two batches


@pytest.mark.parametrize("bad", [["--vs", "nothing"], ["--plot", "a.jpg"]])
def test_what_cannot_be_done_is_said_before_the_model_is_opened(bad: list[str], tmp_path: Path) -> None:
    shown = assay("bench", str(tmp_path / "no.gguf"), *bad)
    assert shown.is_refusal(2) and bad[0] in shown.err


def test_a_picture_is_overwritten_only_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "speed.png"
    picture.write_text("mine")
    assert assay("bench", str(tmp_path / "no.gguf"), "--plot", str(picture)).is_refusal(2)
    assert picture.read_text() == "mine"
    assert assay("bench", *LEAST, "--plot", str(picture), "--force").code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [picture]
    monkeypatch.setattr(bench_plot, "find_spec", lambda name: None)
    refused = assay("bench", *LEAST, "--plot", str(picture), "--force")
    assert refused.is_refusal(2) and "pip install 'assay[report]'" in refused.err
