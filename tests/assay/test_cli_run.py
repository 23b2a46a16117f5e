"""``assay run``: every option, and what it does to the text and to the JSON."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from assay import load
from assay.formats import InputError, open_model
from assay.goldens import BUILTIN
from tests.assay.command_line import assay, oracle

PROMPT = "def fib(n):"
ORACLE = ("--engine", "reference", "-n", "8")
SAMPLED = ("--temperature", "2")

TURNS = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def test_json_has_the_promised_keys() -> None:
    said = oracle(PROMPT)
    promised = {"model", "engine", "arith", "prompt", "prompt_ids", "ids", "text", "finish_reason", "margins"}
    assert set(said) == promised | {"timings", "fingerprint", "sampling", "stopped_by", "logprobs"}
    assert list(said["model"]) == ["path", "format", "architecture", "name", "warnings"]
    assert list(said["timings"]) == ["open_s", "compile_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"]
    assert said["model"]["path"] == str(BUILTIN)
    assert (said["model"]["format"], said["model"]["architecture"]) == ("gguf", "qwen2")
    assert (said["engine"], said["arith"], said["prompt"]) == ("reference", "f32", PROMPT)
    assert len(said["ids"]) == len(said["margins"]) == len(said["logprobs"]) == 8
    assert all(margin >= 0 for margin in said["margins"])
    assert said["finish_reason"] == "length"
    timings = said["timings"]
    assert timings["compile_s"] == 0 < min(timings[k] for k in timings if k != "compile_s")


def test_both_engines_say_the_same_and_nothing_else_is_printed() -> None:
    one_token = "a"  # a longer prompt would cost a program more to compile
    fast = assay("run", one_token, "-n", "8", "--engine", "accel", "--arith", "f32", "--json").json
    slow = oracle(one_token)
    assert (fast["engine"], fast["arith"]) == ("accel", "f32")
    same = ("model", "prompt", "prompt_ids", "ids", "text", "finish_reason", "stopped_by", "sampling")
    assert {key: fast[key] for key in same} == {key: slow[key] for key in same}
    assert set(fast) == set(slow)
    # f32 sums of at most 512 products in another order: 512 * 2^-24 = 3e-5 of logits of size 1, twice, with room.
    assert fast["margins"] == pytest.approx(slow["margins"], abs=1e-3)


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_standard_output_is_the_text(how: str) -> None:
    said = assay("run", PROMPT, *ORACLE, how)
    assert (said.code, said.out, said.err) == (0, oracle(PROMPT)["text"] + "\n", "")


def test_one_token_has_no_decode_speed() -> None:
    said = oracle(PROMPT, "--max-tokens", "1")
    assert len(said["ids"]) == 1
    assert said["timings"]["decode_tok_s"] in (None, 0)


def test_ids_instead_of_text() -> None:
    by_text = oracle(PROMPT)
    by_ids = oracle("--ids", ",".join(map(str, by_text["prompt_ids"])))
    assert by_ids["prompt"] is None
    assert (by_ids["prompt_ids"], by_ids["ids"]) == (by_text["prompt_ids"], by_text["ids"])


def test_prompt_file_keeps_its_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("a\r\nb\n é\n".encode())
    assert oracle("--prompt-file", str(file))["prompt"] == "a\r\nb\n é\n"


def test_a_dash_reads_standard_input() -> None:
    said = oracle("-", stdin="piped\r\né".encode())
    assert said["prompt"] == "piped\r\né"
    assert assay("run", "-", *ORACLE, stdin=b"\xff").is_refusal(2)
    assert assay("run", "-", *ORACLE).is_refusal(2), "an empty prompt has no token to start from"


@pytest.mark.parametrize(
    ("options", "system"), [((), QWEN), (("--system", "Be brief."), "Be brief."), (("--system", ""), "")]
)
def test_chat_renders_the_template_once(options: tuple[str, ...], system: str) -> None:
    said = oracle("Hi", "--chat", *options)
    assert said["prompt"] == TURNS.format(system, "Hi")
    vocabulary = open_model(BUILTIN).vocabulary
    assert [vocabulary.tokens[i] for i in said["prompt_ids"] if vocabulary.kinds[i] == 3].count("<|im_start|>") == 3


def test_chat_content_cannot_end_its_turn() -> None:
    said = oracle("<|im_end|>", "--chat")
    end = open_model(BUILTIN).vocabulary.tokens.index("<|im_end|>")
    assert said["prompt"] == TURNS.format(QWEN, "<|im_end|>")
    assert said["prompt_ids"].count(end) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a", "--ids", "1"),
        ("a", "--prompt-file", "README.md"),
        ("--ids", "1", "--prompt-file", "README.md"),
        ("a", "--system", "Be brief."),
        ("--chat", "--ids", "1,2"),
        ("--ids", "1,x"),
        ("--ids", ""),
        ("--ids", "1,,2"),
        ("--ids", "9" * 5000),
        ("--ids", "999999999"),
        ("--ids=-1",),
        ("",),
        ("a", "-n", "0"),
        ("a", "-n", "99999999"),
        ("a", "--temperature", "-1"),
        ("a", "--temperature", "nan"),
        ("a", "--top-k", "-1"),
        ("a", "--top-p", "0"),
        ("a", "--min-p", "2"),
        ("a", "--repeat-penalty", "0"),
        ("a", "--seed", "-1"),
        ("a", "--seed", str(1 << 64)),
        ("a", "--logprobs", "-1"),
        ("a", "--logprobs", "101"),
        ("a", "--arith", "f16"),
        ("a", "--engine", "abacus"),
        ("a", "--top-k", "many"),
        ("a", "--nosuch"),
        ("\udcff",),
    ],
)
def test_requests_that_cannot_be_carried_out(arguments: tuple[str, ...]) -> None:
    assert assay("run", *ORACLE, *arguments).is_refusal(2)
    assert assay("run", "--json", *ORACLE, *arguments).is_refusal(2)


def test_prompt_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"caf\xe9")
    for path in (tmp_path / "missing", tmp_path, latin, latin / "below", tmp_path / ("x" * 300)):
        refusal = assay("run", *ORACLE, "--prompt-file", str(path))
        assert refusal.is_refusal(2)
        assert str(path) in refusal.err
    assert "byte 3" in assay("run", *ORACLE, "-f", str(latin)).err


def test_a_prompt_without_end_is_not_read_to_the_end() -> None:
    refusal = assay("run", *ORACLE, "--prompt-file", "/dev/zero")
    assert refusal.is_refusal(2)
    assert "longer than" in refusal.err


def test_stop_cuts_the_text_at_the_earliest() -> None:
    text = oracle(PROMPT)["text"]
    early, late = text[2:4], text[-3:-1]
    said = oracle(PROMPT, "--stop", late, "--stop", early, "--stop", "never said")
    assert said["text"] == text[: text.index(early)]
    assert (said["finish_reason"], said["stopped_by"]) == ("stop", early)
    assert assay("run", PROMPT, *ORACLE, "--stop", early).out == said["text"] + "\n"


def test_an_end_token_stops_and_is_not_shown(tmp_path: Path) -> None:
    free = oracle(PROMPT)
    end = free["ids"][1]
    head, tail = BUILTIN.read_bytes().split(b"tokenizer.ggml.eos_token_id")
    model = tmp_path / "model.gguf"  # u32 type, u32 id
    model.write_bytes(head + b"tokenizer.ggml.eos_token_id" + tail[:4] + end.to_bytes(4, "little") + tail[8:])
    said = oracle(PROMPT, "--model", str(model))
    assert said["ids"] == free["ids"][:2]
    assert free["text"].startswith(said["text"])
    assert said["text"] == assay("run", PROMPT, "-e", "reference", "-n", "1").out[:-1]
    assert (said["finish_reason"], said["stopped_by"]) == ("stop", open_model(BUILTIN).vocabulary.tokens[end])
    assert said["model"]["path"] == str(model)


def test_logprobs_are_of_the_raw_logits_best_first() -> None:
    assert "top_logprobs" not in oracle(PROMPT)
    said = oracle(PROMPT, "--logprobs", "3")
    assert len(said["top_logprobs"]) == len(said["ids"])
    for token, logprob, margin, best in zip(
        said["ids"], said["logprobs"], said["margins"], said["top_logprobs"], strict=True
    ):
        assert best[0] == [token, logprob]
        assert best[0][1] > best[1][1] > best[2][1]
        assert best[0][1] - best[1][1] == pytest.approx(margin, abs=1e-12)  # f64 of values below 2^6: ulp 1e-14


@pytest.mark.parametrize("arguments", [
    ("a", "--logprobs", "3"), ("a", "--stop", ""), ("a", "--stop", "x", "--stop", ""), ("a", "--chat", "--no-special"),
    ("--ids", "1,2", "--no-special"), ("--ids", "1,2", "--no-nfc"), ("a", "--cache-type", "f32"),
    ("a", "--cache-type", "bf16"),
])  # fmt: skip
def test_an_option_that_does_nothing_is_refused(arguments: tuple[str, ...]) -> None:
    refusal = assay("run", *ORACLE, *arguments)
    assert refusal.is_refusal(2)
    option = next(part for part in reversed(arguments) if part.startswith("--") and part not in ("--ids", "--chat"))
    assert option in refusal.err


def test_the_fast_engine_keeps_no_decoded_weights() -> None:
    assert assay("run", "a", "--cache-weights").is_refusal(2)
    assert assay("chat", "--cache-weights", stdin=b"a").is_refusal(2)
    with pytest.raises(InputError, match="cache-weights"):
        load("builtin", cache_weights=True)


@pytest.mark.parametrize(("arguments", "idle"), [
    (("--top-k", "5"), "--top-k"), (("--top-p", "0.9", "--min-p", "0.1"), "--top-p, --min-p"),
    (("--seed", "7"), "--seed"),
    (("--seed", "0", "--top-p", "1"), ""), (("--repeat-penalty", "1.2"), ""), (("--seed", "7", "--temp", "1"), ""),
])  # fmt: skip
def test_settings_of_draws_that_are_not_made_are_warned_of(arguments: tuple[str, ...], idle: str) -> None:
    """People leave them set and change the temperature only."""
    for command, stdin in (("run", b""), ("chat", b"a")):
        said = assay(command, *(["a"] if command == "run" else []), *ORACLE, "-n", "1", *arguments, stdin=stdin)
        assert said.code == 0
        assert said.err == (f"assay: warning: {idle}: no effect at temperature 0, where the likeliest token is taken\n"
                            if idle else "")  # fmt: skip


def test_an_option_whose_wish_is_fulfilled_anyway_may_be_given() -> None:
    assert oracle("a", "--no-stream", "-n", "1")["ids"] == oracle("a", "-n", "1")["ids"]


@pytest.mark.slow
def test_what_a_seed_promises() -> None:
    """The same ids on the same engine in the same arithmetic. In another one only the draws are the same."""
    said = [oracle(PROMPT, *SAMPLED, "--seed", seed, "--arith", arith)["ids"]
            for arith in ("f32", "f32", "ggml") for seed in map(str, range(8))]  # fmt: skip
    first, again, rounded = said[:8], said[8:16], said[16:]
    assert first == again
    assert first != rounded
    help_text = " ".join(assay("run", "--help").out.replace("│", " ").split())
    assert "one engine, arithmetic, machine and version" in help_text and "either engine" not in help_text


def test_a_seed_is_a_text() -> None:
    first, again, other = (oracle(PROMPT, *SAMPLED, "--seed", seed) for seed in ("1", "1", "2"))
    assert first["ids"] == again["ids"] != other["ids"]
    assert first["sampling"]["seed"] == 1
    greedy = [assay("run", PROMPT, *ORACLE, "--seed", seed) for seed in ("1", "2")]
    assert greedy[0].out == greedy[1].out, "greedy draws nothing"
    assert greedy[0].err == "assay: warning: --seed: no effect at temperature 0, where the likeliest token is taken\n"


@pytest.mark.parametrize("narrow", [("--top-k", "1"), ("--top-p", "1e-6"), ("--min-p", "1")])
def test_filters_that_leave_one_token_are_greedy(narrow: tuple[str, str]) -> None:
    greedy = oracle(PROMPT)["ids"]
    assert oracle(PROMPT, *SAMPLED)["ids"] != greedy
    assert oracle(PROMPT, *SAMPLED, *narrow)["ids"] == greedy


def test_a_heavy_repeat_penalty_forbids_repeats() -> None:
    said = oracle(PROMPT, "--repeat-penalty", "1000")
    seen = said["prompt_ids"] + said["ids"]
    assert len(set(said["ids"])) == len(said["ids"])
    assert len(set(seen)) == len(set(said["prompt_ids"])) + len(said["ids"])


def test_no_special_makes_control_tokens_text() -> None:
    vocabulary = open_model(BUILTIN).vocabulary
    end = vocabulary.tokens.index("<|im_end|>")
    assert oracle("<|im_end|>")["prompt_ids"] == [end]
    spelled = oracle("<|im_end|>", "--no-special")["prompt_ids"]
    assert len(spelled) > 1
    assert end not in spelled


def test_no_nfc_leaves_text_as_it_is() -> None:
    composed, decomposed = "é", unicodedata.normalize("NFD", "é")
    ids = oracle(composed)["prompt_ids"]
    assert oracle(decomposed)["prompt_ids"] == ids
    assert oracle(decomposed, "--no-nfc")["prompt_ids"] != ids


def test_caching_weights_changes_nothing() -> None:
    plain, cached = oracle(PROMPT), oracle(PROMPT, "--cache-weights")
    assert (plain["ids"], plain["margins"]) == (cached["ids"], cached["margins"])


def test_the_arithmetic_is_named_and_matters() -> None:
    margins = {}
    for name in ("f64", "f32", "ggml"):
        said = oracle(PROMPT, "--arith", name)
        assert said["arith"] == name
        margins[name] = said["margins"]
    assert margins["f64"] != margins["f32"] != margins["ggml"] != margins["f64"]


def test_an_unknown_arithmetic_is_told_the_known_ones() -> None:
    assert all(name in assay("run", "a", *ORACLE, "--arith", "f16").err for name in ("f64", "f32", "ggml"))
    refusal = assay("run", "a", "--engine", "accel", "--arith", "f64")
    assert refusal.is_refusal(2)
    assert "f32" in refusal.err
