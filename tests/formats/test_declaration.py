"""A declaration says what is rounded, refuses what is not a rounding, and comes back from JSON as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay.formats import InputError
from assay.formats.contract.declaration import MATRICES, Declaration

MIXED = Declaration({"q": "int8/256", "v": "f32", "down": ("f32", "int8/32")}, weights={"q": "bf16"}, cache="f16",
                    results="bf16", scores="bf16", accumulation="f64")  # fmt: skip


@pytest.mark.parametrize("one", [Declaration(), MIXED, Declaration("int8", "bf16", "bf16")])
def test_it_comes_back_from_json(one: Declaration) -> None:
    back = Declaration.from_json(json.loads(json.dumps(one.to_json())))
    assert back == one and hash(back) == hash(one) and back.key == one.key
    assert set(one.to_json()["activations"]) == set(MATRICES)


def test_short_and_long_forms_are_the_same() -> None:
    assert Declaration("bf16") == Declaration(dict.fromkeys(MATRICES, "bf16")) != Declaration()
    assert [Declaration({"q": "f16"}).activation(matrix, 3) for matrix in "qk"] == ["f16", "f32"]
    assert [MIXED.activation("down", layer) for layer in (0, 1)] == ["f32", "int8/32"]
    assert MIXED.weight("q", 0) == "bf16" and MIXED.weight("v", 1) == "as stored"


@pytest.mark.parametrize(("said", "named"), [
    ([], "not an object"), (None, "not an object"), ("f32", "not an object"),
    ({"activation": "f32"}, "no field 'activation'"), ({"activations": "fp8"}, "no type 'fp8'"),
    ({"activations": {"qkv": "f32"}}, "no matrix 'qkv'"), ({"activations": {"q": 8}}, "is an int"),
    ({"activations": {"q": ["f32", "int8/0"]}}, "no type 'int8/0'"), ({"activations": "int8/٣٢"}, "no type"),
    ({"weights": "int8/32"}, "no type 'int8/32'"), ({"activations": "as stored"}, "no type 'as stored'"),
    ({"cache": "q4"}, "is a str"), ({"cache": None}, "is None"), ({"results": "tf32"}, "is a str"),
    ({"accumulation": "f16"}, "is a str"), ({"scores": ["f32"]}, "is a list"),
    ({"activations": [["f32"]]}, "is a list"), ({"activations": {}, 3: 4}, "no field 3"),
])  # fmt: skip
def test_what_is_no_declaration_is_refused(said: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Declaration.from_json(said)


def test_a_list_has_a_type_for_each_layer() -> None:
    MIXED.check_layers(2)
    for declared, n_layers in ((MIXED, 3), (Declaration({"output": ["f32", "f32"]}), 2), (Declaration({"q": []}), 1)):
        with pytest.raises(InputError, match="types for the"):
            declared.check_layers(n_layers)


def test_what_it_forgives_is_said_in_words() -> None:
    assert MIXED.describe() == [
        "activations rounded to 8 bits in blocks of 256 before q",
        "activations rounded to 8 bits in blocks of 32 before down (1 of 2 layers)",
        "weights rounded to bf16 in q",
        "keys and values kept in f16",
        "every stage's result rounded to bf16",
        "attention scores computed in bf16",
    ]
    assert Declaration().describe() == ["f32 rounding, with sums added in any order"]
