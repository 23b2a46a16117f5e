"""Both tokenizers on the vocabulary of Qwen2.5-Coder, against llama.cpp, which shares code with neither.

llama.cpp has no normaliser, so it is compared with ``nfc=False``. It is asked through the tokenize route of
its own server, bound to a free local port.
"""

from __future__ import annotations

import json
import random
import unicodedata
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import xllamacpp

import assay.accel.tokenizer
import assay.reference.tokenizer
from assay.formats import open_model
from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import CONTROL, Vocabulary
from tests.tokenizer_corpus import SAMPLES, mixed_text

pytestmark = pytest.mark.real

Twins = tuple[assay.reference.tokenizer.Tokenizer, assay.accel.tokenizer.Tokenizer]
LlamaCpp = Callable[[str, bool], list[int]]


@pytest.fixture(scope="module")
def vocabulary(real_05b: Path) -> Vocabulary:
    return open_model(real_05b).vocabulary


@pytest.fixture(scope="module")
def raw(vocabulary: Vocabulary) -> Twins:
    twins = assay.reference.tokenizer, assay.accel.tokenizer
    return twins[0].Tokenizer(vocabulary, nfc=False), twins[1].Tokenizer(vocabulary, nfc=False)


@pytest.fixture(scope="module")
def normalising(vocabulary: Vocabulary) -> Twins:
    return assay.reference.tokenizer.Tokenizer(vocabulary), assay.accel.tokenizer.Tokenizer(vocabulary)


@pytest.fixture(scope="module")
def llama_cpp(real_05b: Path) -> LlamaCpp:
    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = str(real_05b)
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.port, params.hostnames = 0, ["127.0.0.1"]
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]

    def tokenize(text: str, special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        request = urllib.request.Request(f"{server.listening_address}/tokenize", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]

    return tokenize


@pytest.mark.parametrize(("text", "ids"), [
    (" quorum", [922, 33006]),
    ("   Title", [256, 10869]),
    ("/roadmaps", [14, 8546, 17640]),
    (" !!!", [32870]),
    ("2?<|im_end|>", [17, 30, 151645]),
    (".<|im_end|>", [13, 151645]),
    ("What is 2+2?", [3838, 374, 220, 17, 10, 17, 30]),
    ("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
     [151644, 872, 198, 3838, 374, 220, 17, 10, 17, 30, 151645, 198, 151644, 77091, 198]),
])  # fmt: skip
def test_golden_ids(text: str, ids: list[int], normalising: Twins, raw: Twins, llama_cpp: LlamaCpp) -> None:
    for tokenizer in (*normalising, *raw):
        assert tokenizer.encode(text) == ids
    assert llama_cpp(text, True) == ids


def test_a_control_token_in_literal_text_is_spelled_out(normalising: Twins) -> None:
    for tokenizer in normalising:
        assert tokenizer.encode(Prompt("<|im_start|>", ((0, 12),))) == [27, 91, 318, 4906, 91, 29]


@pytest.mark.parametrize("special", [False, True])
def test_mixed_text_has_the_ids_of_llama_cpp(special: bool, raw: Twins, llama_cpp: LlamaCpp) -> None:
    text = mixed_text(100_000)
    for piece in (*SAMPLES.values(), *(text[at : at + 400] for at in range(0, len(text), 400)), text):
        expected = llama_cpp(piece, special)
        for tokenizer in raw:
            assert tokenizer.encode(piece, special=special) == expected


def test_mixed_text_under_nfc(normalising: Twins, raw: Twins, llama_cpp: LlamaCpp) -> None:
    """llama.cpp, handed text in normal form, bears witness for NFC, too."""
    oracle, fast = normalising
    text = mixed_text(100_000, seed=2)
    assert oracle.encode(text) == fast.encode(text)
    expected = llama_cpp(unicodedata.normalize("NFC", text), False)
    assert oracle.encode(text, special=False) == fast.encode(text, special=False) == expected


@pytest.mark.real_slow
def test_every_assigned_character_has_the_ids_of_llama_cpp(raw: Twins, llama_cpp: LlamaCpp) -> None:
    """Each between letters, digits, blanks and quotes; of the 137,468 private-use characters two."""
    assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    assigned += ["\ue000", "\U0010fffd"]
    for at in range(0, len(assigned), 512):
        text = "\n\n".join(f"x{c}y 1{c}2  {c}{c}\n'{c} ({c})" for c in assigned[at : at + 512])
        expected = llama_cpp(text, True)
        for tokenizer in raw:
            assert tokenizer.encode(text) == expected, f"in U+{ord(assigned[at]):04X} and the 511 after"


def test_every_token_decodes_alike(vocabulary: Vocabulary, normalising: Twins) -> None:
    oracle, fast = normalising
    ids = list(range(len(vocabulary)))
    assert [oracle.bytes_of(i) for i in ids] == [fast.bytes_of(i) for i in ids]
    random.Random(0).shuffle(ids)  # cuts UTF-8 characters apart everywhere
    text = oracle.decode(ids)
    assert fast.decode(ids) == text
    for tokenizer in normalising:
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_control_tokens_are_one_id_and_text_survives(vocabulary: Vocabulary, raw: Twins) -> None:
    for tokenizer in raw:
        for i in vocabulary.ids_of_kind(CONTROL):
            assert tokenizer.encode(vocabulary.tokens[i]) == [i]
        text = mixed_text(20_000, seed=3)
        assert tokenizer.decode(tokenizer.encode(text)) == text
