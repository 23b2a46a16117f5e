"""``assay bench`` on the built-in model: every figure is there and is a measurement, whatever its size."""

import pytest
from command_line import assay

from assay.bench import alternate


def test_every_workload_is_measured() -> None:
    facts = assay("bench", "--rounds", "2", "--prefill", "8", "--decode-at", "1,4", "-e", "reference", "--json").json
    assert [(row["kind"], row["tokens"]) for row in facts["results"]] == [("prefill", 8), ("decode", 1), ("decode", 4)]
    for row in facts["results"]:
        speed = row["reference"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert facts["peak_rss_bytes"] > facts["file_bytes"] > facts["weight_bytes_per_token"] > 0
    assert facts["engine"]["arith"] == "f32"


def test_workloads_beyond_the_context_are_left_out() -> None:
    facts = assay("bench", "--rounds", "1", "--prefill", "4,4096", "--decode-at", "", "-e", "reference", "--json").json
    assert [row["tokens"] for row in facts["results"]] == [4]


@pytest.mark.parametrize("arguments", [["--prefill", "x"], ["--prefill", "0"], ["--rounds", "0"], ["--vs", "nothing"]])
def test_bad_options_are_refused(arguments: list[str]) -> None:
    assert assay("bench", "-e", "reference", "--decode-at", "", "--json", *arguments).is_refusal(2)


def test_engines_are_measured_in_turn_after_a_run_that_does_not_count() -> None:
    order: list[str] = []

    def engine(name: str, speeds: list[float]):
        def run(ids, n):
            order.append(name)
            return {"decode_tok_s": speeds[order.count(name) - 1]}

        return run

    runs = {"a": engine("a", [1000, 2, 4, 6]), "b": engine("b", [1, 1, 1, 2])}
    result = alternate(runs, [1], 1, "decode_tok_s", rounds=3)
    assert order == list("ab" * 4)
    assert result["a"] == {"median": 4, "low": 2, "high": 6}
    assert result["ratio"] == 3  # of 2/1, 4/1, 6/2
