"""The APR writer: the bytes of an independent builder, read back as they were, and refusals of what cannot be held."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from assay.formats import InputError
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.apr import read_apr
from assay.formats.containers.apr_types import APR_Q4, APR_Q8, CODES
from assay.formats.containers.apr_writer import write_apr
from assay.formats.containers.base import Stored, stored
from assay.formats.containers.opening import open_container
from assay.goldens import BUILTIN
from tests import apr_files as raw

METADATA = {"name": "ä😀", "license": None, "hidden_size": 896, "rope_theta": 1e6, "tied_embeddings": True,
            "tokenizer.vocabulary": ["a", "Ġb", '"', "\n"], "quantization": {"bits": 4}}  # fmt: skip


def of(name: str, code: int, shape: tuple[int, ...]) -> tuple[Stored, raw.Tensor]:
    """The same tensor for the writer and for the builder."""
    theirs = raw.Tensor(name, shape, code)
    data = np.frombuffer(theirs.content(), np.uint8)
    return Stored(name, CODES[code], shape, lambda: data), theirs


def test_it_writes_the_bytes_of_the_builder(tmp_path):
    """Every type; names that sort otherwise as text than as bytes; rows that need padding, and none."""
    pairs = [of(f"t{code}", code, (3, 100)) for code in CODES]
    pairs += [of("\uffff", 0, (16,)), of("\U00010000", 0, ()), of("ä", 12, (0, 5)), of("b", 14, (2, 2, 256))]
    path = tmp_path / "m.apr"
    write_apr(path, METADATA, [ours for ours, _ in pairs])
    in_order = sorted((theirs for _, theirs in pairs), key=lambda t: str(t.name).encode())
    assert path.read_bytes() == bytes(raw.File(METADATA, in_order))
    apr = read_apr(path, strict=True)
    assert dict(apr.metadata) == METADATA and not apr.warnings


@pytest.mark.parametrize("size", range(40, 110))
def test_every_length_of_metadata_is_padded(tmp_path, size):
    path = tmp_path / "m.apr"
    write_apr(path, {"a": "x" * size}, [], force=True)
    assert path.read_bytes() == bytes(raw.File({"a": "x" * size}))


def test_what_was_read_comes_out_byte_for_byte(tmp_path):
    gguf = open_container(BUILTIN)
    metadata = {key: gguf.metadata[key] for key in gguf.metadata}  # NumPy's arrays included
    write_apr(tmp_path / "a.apr", metadata, [stored(gguf, name) for name in gguf.tensors])
    apr = read_apr(tmp_path / "a.apr", strict=True)
    assert all(np.array_equal(apr.raw(name), gguf.raw(name)) for name in gguf.tensors)
    assert {name: info.shape for name, info in apr.tensors.items()} == {n: i.shape for n, i in gguf.tensors.items()}
    write_apr(tmp_path / "b.apr", apr.metadata, [stored(apr, name) for name in apr.tensors])
    assert (tmp_path / "b.apr").read_bytes() == (tmp_path / "a.apr").read_bytes()


def given(kind: Any, *shape: int, name: str = "t", nbytes: int = 0) -> Stored:
    return Stored(name, kind, shape, lambda: np.zeros(nbytes, np.uint8))


F32 = BY_NAME["F32"]
REFUSED: dict[str, tuple[dict[str, Any], list[Stored], str]] = {
    **{f"a type that APR has no code for, {kind}": ({}, [given(BY_NAME[kind], 256)], f"no type {kind}")
       for kind in ("Q4_0", "Q5_0", "Q8_0", "Q5_K", "Q4_1", "IQ4_NL", "I16")},
    "name too long": ({}, [given(F32, 1, name="n" * 257)], "1 to 256 bytes"),
    "no name": ({}, [given(F32, 1, name="")], "1 to 256 bytes"),
    "NUL in a name": ({}, [given(F32, 1, name="a\0b")], "1 to 256 bytes"),
    "same name twice": ({}, [given(F32, 1, nbytes=4), given(F32, 1, nbytes=4)], "two tensors"),
    "9 axes": ({}, [given(F32, *[1] * 9, nbytes=4)], "9 axes"),
    "rows packed flat": ({}, [given(BY_NAME["Q4_K"], 2, 128, nbytes=144)], "takes 288 bytes, not 144"),
    "APR_Q8 without scale": ({}, [given(APR_Q8, 8, nbytes=8)], "takes 12 bytes, not 8"),
    "APR_Q4 cut": ({}, [given(APR_Q4, 33, nbytes=18)], "takes 36 bytes, not 18"),
    "NaN": ({"a": float("nan")}, [], "metadata"),
    "infinity in an array": ({"a": np.array([1, np.inf])}, [], "metadata"),
    "bytes": ({"a": b"x"}, [], "metadata"),
    "half a surrogate pair": ({"a": "\ud800"}, [], "metadata"),
    "itself": ({}, [], "metadata"),
    "too deep": ({"a": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}, [], "metadata"),
    "too large": ({"a": "x" * (16 << 20)}, [], "larger or deeper"),
    "too many": ({"a": [0] * (1 << 20) + [0, 0]}, [], "larger or deeper"),
}  # fmt: skip
REFUSED["itself"][0]["a"] = REFUSED["itself"][0]


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_cannot_hold_is_refused(tmp_path, case):
    metadata, tensors, complaint = REFUSED[case]
    with pytest.raises(InputError) as caught:
        write_apr(tmp_path / "m.apr", metadata, tensors)
    assert complaint in str(caught.value) and str(caught.value).isprintable() and caught.value.remedy
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "m.apr"
    write_apr(path, {"name": "a"}, [])
    with pytest.raises(InputError, match="--force"):
        write_apr(path, {"name": "b"}, [])
    write_apr(path, {"name": "b"}, [], force=True)
    assert open_container(path).metadata["name"] == "b"


def test_flags_and_progress(tmp_path):
    seen: list[tuple[int, int]] = []
    write_apr(tmp_path / "m.apr", {}, [of("a", 0, (1,))[0], of("b", 14, (1,))[0]], flags=0x0220,
              progress=lambda done, total, label: seen.append((done, total)))  # fmt: skip
    assert seen == [(4, 214), (214, 214)]
    assert read_apr(tmp_path / "m.apr").header.flags == 0x0620
