"""One list of bad files, for GGUF and for APR: what one reader refuses, the other does, within the same bounds.

Each row has one kind of badness as a GGUF file and as an APR file, with the code of the refusal. The fuller lists of
each format are in ``test_gguf_hostile.py`` and ``test_apr_hostile.py``. One kind cannot be here: a key of the metadata
that occurs twice is refused in GGUF, but in APR, where upstream's own writer does it, the last value counts.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from assay.formats import AssayError, InputError, open_model
from assay.formats.containers.opening import open_container
from assay.formats.model_file import tensor_of
from tests import apr_builder, model_builder
from tests import apr_files as apr
from tests import gguf_files as gguf
from tests.formats.containers.refusal import refused

U64_MAX = 2**64 - 1
NAN = b"\0\x7e"


class Bad(NamedTuple):
    """One kind of badness: a file of each format, and the code with which it is refused."""

    gguf: gguf.File | bytes
    gguf_code: str
    apr: apr.File | bytes
    apr_code: str


def g(*tensors: gguf.Tensor, **fields: Any) -> gguf.File:
    return gguf.File(tensors=list(tensors), **fields)


def a(*tensors: apr.Tensor, metadata: Any = None, **fields: Any) -> apr.File:
    return apr.File({} if metadata is None else metadata, list(tensors), **fields)


def key(value: bytes) -> gguf.File:
    """One pair, and nothing behind it."""
    return gguf.File([gguf.pair("key", value)], alignment=1)


def nested(depth: int) -> Bad:
    levels = (gguf.u32(gguf.ARRAY) + gguf.u64(1)) * depth + gguf.array(gguf.U8, b"\1", 1)
    text = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    return Bad(key(gguf.u32(gguf.ARRAY) + levels), "nested-array", a(metadata=text), "bad-metadata")


def shaped(*dims: int, code: str = "bad-shape", gguf_type: int = gguf.T_F32, apr_type: int = apr.F32) -> Bad:
    """A tensor of these dims, in its own format's order; equal dims are the same in both."""
    one = gguf.Tensor(dims=dims[::-1], type=gguf_type, offset=0)
    return Bad(g(one, data=bytes(64)), code, a(apr.Tensor(dims=dims, type=apr_type, data=bytes(64))), code)


def placed(offset: int, code: str, apr_code: str = "") -> Bad:
    return Bad(g(gguf.Tensor(offset=offset)), code, a(apr.Tensor(offset=offset)), apr_code or code)


def named(name: str | bytes, code: str) -> Bad:
    return Bad(g(gguf.Tensor(name)), code, a(apr.Tensor(name)), "bad-name")


def typed(number: int) -> Bad:
    return Bad(g(gguf.Tensor(type=number)), "bad-tensor-type", a(apr.Tensor(type=number % 256)), "bad-tensor-type")


GOOD_GGUF, GOOD_APR = gguf.small_file(), apr.small_file()
SAME_GGUF = g(gguf.Tensor("a", offset=0), gguf.Tensor("b", offset=0))
PART_GGUF = g(gguf.Tensor("a", (64,), offset=0), gguf.Tensor("b", offset=64))

CONTAINERS: dict[str, Bad] = {
    "empty file": Bad(b"", "empty-file", b"APR", "truncated"),
    "magic alone": Bad(b"GGUF", "truncated", b"APR\0", "truncated"),
    "magic of another file": Bad(g(magic=b"FUGG"), "bad-magic", a(magic=b"APRX"), "bad-magic"),
    "version 0": Bad(g(version=0), "bad-version", a(version=(0, 0)), "bad-version"),
    "version 1": Bad(g(version=1), "bad-version", a(version=(1, 0)), "bad-version"),
    "version of the future": Bad(g(version=4), "bad-version", a(version=(3, 0)), "bad-version"),
    "most tensors that the field can say": Bad(g(n_tensors=U64_MAX), "bad-count", a(n_tensors=2**32 - 1), "bad-count"),
    "one tensor more than there is": Bad(
        g(gguf.Tensor(), n_tensors=2, alignment=1, data=b""), "bad-count", a(apr.Tensor(), n_tensors=4), "bad-count"),
    "more tensors than any model": Bad(g(n_tensors=2**16 + 1, data=bytes(3 << 20)), "bad-count",
        a(n_tensors=2**16 + 1, data_offset=2 << 20, data=bytes(2 << 20)), "bad-count"),
    "most metadata that the field can say": Bad(
        g(n_pairs=U64_MAX), "bad-count", a(metadata_size=2**32 - 1), "metadata-too-large"),
    "metadata for which there is no room": Bad(
        key(gguf.array(gguf.F64, bytes(8), 2)), "bad-count", a(metadata_size=128), "bad-section"),
    "a few bytes that claim 5e8 records": Bad(
        g(n_pairs=500_000_000, alignment=1), "bad-count", a(n_tensors=500_000_000), "bad-count"),
    "a string that does not end": Bad(
        key(gguf.u32(gguf.STRING) + gguf.string("x", U64_MAX)), "bad-length", a(metadata=b'{"a":"x'), "bad-metadata"),
    "a string one byte too long": Bad(
        key(gguf.u32(gguf.STRING) + gguf.string("x", 2)), "bad-length", a(metadata=b'{"a":"}'), "bad-metadata"),
    "a key that does not end": Bad(
        gguf.File([gguf.pair("key", b"", U64_MAX)]), "bad-length", a(metadata=b'{"a'), "bad-metadata"),
    "an array that does not end": Bad(
        key(gguf.array(gguf.U8, b"\1", 2**63)), "bad-count", a(metadata=b'{"a":[1,'), "bad-metadata"),
    "nested 50 deep": nested(50), "nested 1,000 deep": nested(1000), "nested 50,000 deep": nested(50_000),
    "a value of no type": Bad(
        key(gguf.u32(13) + gguf.u32(1)), "bad-value-type", a(metadata=b'{"a":x}'), "bad-metadata"),
    "a key that is not text": Bad(gguf.File([gguf.pair(b"\xff", gguf.scalar(gguf.U8, 1))]), "bad-name",
        a(metadata=b'{"\xff":1}'), "bad-metadata"),
    "dims whose product wraps to 4": shaped(211106198978564, 4194305, 4194305),
    "two dims of 2**40": shaped(2**40, 2**40),
    "dims of -1": shaped(U64_MAX, U64_MAX),
    "bytes that wrap when padded": shaped(1, 1073741825, 1073741823, 4),
    "elements that fit, bytes that do not": shaped(2**61, gguf_type=gguf.T_I64, apr_type=apr.I64),
    "a zero dim beside absurd ones": shaped(0, 2**62, 2**62),
    "2**62 elements in 64 bytes": Bad(g(gguf.Tensor(dims=(2**60,)), data=bytes(64)), "out-of-file",
        a(apr.Tensor(dims=(2**60,), data=bytes(64))), "out-of-file"),
    "too many dims": Bad(g(gguf.Tensor(dims=[1] * 5)), "bad-shape", a(apr.Tensor(dims=[1] * 9)), "bad-shape"),
    "most dims that the field can say": Bad(
        g(gguf.Tensor(n_dims=2**32 - 1)), "bad-shape", a(apr.Tensor(n_dims=255)), "bad-shape"),
    "a data section that is misaligned": Bad(
        gguf.File([gguf.alignment_pair(13)], [gguf.Tensor()]), "bad-alignment",
        a(apr.Tensor(), data_offset=200), "misaligned"),
    "an alignment of 0": Bad(gguf.File([gguf.alignment_pair(0)]), "bad-alignment",
        a(apr.Tensor(), data_offset=0), "bad-section"),
    "an offset of -1": placed(U64_MAX, "misaligned"),
    "an offset of -64": placed(2**64 - 64, "out-of-file"),
    "an offset that is misaligned": placed(1, "misaligned"),
    "an offset far beyond the end": placed(2**62, "out-of-file"),
    "data one byte beyond the end": Bad(
        bytes(g(gguf.Tensor()))[:-1], "out-of-file", bytes(a(apr.Tensor(dims=(16,))))[:-5], "out-of-file"),
    "no data at all": Bad(
        g(gguf.Tensor(), data=b""), "out-of-file", a(apr.Tensor(), data=b"", footer=b""), "out-of-file"),
    "the same data twice": Bad(
        SAME_GGUF, "overlap", a(apr.Tensor("a"), apr.Tensor("b", offset=0)), "overlap"),
    "data that overlaps in part": Bad(
        PART_GGUF, "overlap", a(apr.Tensor("a", (64,)), apr.Tensor("b", offset=64)), "overlap"),
    "one tensor twice": Bad(g(gguf.Tensor(), gguf.Tensor()), "duplicate-tensor",
        a(apr.Tensor(), apr.Tensor()), "duplicate-tensor"),
    "a name of no bytes": named("", "bad-name"), "a name with NUL": named("a\0b", "bad-name"),
    "a name that is not text": named(b"\xff", "bad-name"), "a name too long": named("x" * 300, "bad-length"),
    "a name that does not end": Bad(g(gguf.Tensor("x", name_length=U64_MAX)), "bad-length",
        a(apr.Tensor("x", name_length=2**16 - 1)), "bad-name"),
    "names of many lines": Bad(g(*[gguf.Tensor("a\n\u2028\x1b[2J")] * 2), "duplicate-tensor",
        a(*[apr.Tensor("a\n\u2028\x1b[2J")] * 2), "duplicate-tensor"),
    "a tensor type that was withdrawn": typed(31), "a tensor type of the future": typed(2**32 - 1),
}  # fmt: skip


def of_both(row: Bad) -> list[tuple[str, bytes, str]]:
    return [("gguf", bytes(row.gguf), row.gguf_code), ("apr", bytes(row.apr), row.apr_code)]


CASES = [
    pytest.param(content, code, id=f"{format}, {kind}")
    for kind, row in CONTAINERS.items() for format, content, code in of_both(row)
]  # fmt: skip


@pytest.mark.parametrize(("content", "code"), CASES)
def test_refused(tmp_path, content, code):
    """In one line, within a second and 64 MB; by the reader that the first bytes choose."""
    path = tmp_path / "hostile"
    path.write_bytes(content)
    refused(path, code, open_container)


@pytest.mark.parametrize("good", [GOOD_GGUF, GOOD_APR], ids=["gguf", "apr"])
def test_cut_anywhere(tmp_path, good):
    """No prefix is whole but, in APR, the one that lacks all of the footer."""
    path = tmp_path / "cut"
    path.write_bytes(good)
    open_container(path, strict=True)
    for length in reversed(range(len(good))):
        os.truncate(path, length)
        with pytest.raises(AssayError):
            open_container(path, strict=True)


@pytest.mark.parametrize("good", [GOOD_GGUF, GOOD_APR], ids=["gguf", "apr"])
def test_what_is_no_file(tmp_path, good):
    """A pipe, a device and a folder, also behind a link; and a file that another process cuts short."""
    os.mkfifo(tmp_path / "pipe")
    for name, target in {"a": tmp_path / "pipe", "b": "/dev/zero", "d": tmp_path / "nowhere"}.items():
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError):  # the request is wrong, no bytes were looked at
            open_container(tmp_path / name)
    path = tmp_path / "model"
    path.write_bytes(good)
    container = open_container(path)
    os.truncate(path, 100)
    for name in container.tensors:
        with pytest.raises(AssayError, match="file-changed"):
            container.raw(name)


TOKENS, KINDS = model_builder.TOKENS, model_builder.KINDS
LIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no architecture": ({"general.architecture": None}, {"architecture": ...}),
    "another architecture": ({"general.architecture": "llama"}, {"architecture": "llama"}),
    "an architecture of many lines": ({"general.architecture": "\n\x1b[2J" * 999}, {"architecture": "\n\x1b[2J" * 999}),
    "no layers": ({"qwen2.block_count": 0}, {"num_layers": 0}),
    "2**31 layers": ({"qwen2.block_count": 2**31}, {"num_layers": 2**31}),
    "more layers than there are": ({"qwen2.block_count": 2}, {"num_layers": 2}),
    "layers as text": ({"qwen2.block_count": "1"}, {"num_layers": "1"}),
    "layers as true": ({"qwen2.block_count": True}, {"num_layers": True}),
    "no heads": ({"qwen2.attention.head_count": 0}, {"num_heads": 0}),
    "no key/value heads": ({"qwen2.attention.head_count_kv": 0}, {"num_kv_heads": 0}),
    "heads of odd width": ({"qwen2.attention.key_length": 15}, {"head_dim": 15}),
    "hidden size that is not the matrices'": ({"qwen2.embedding_length": 64}, {"hidden_size": 64}),
    "a base of 0": ({"qwen2.rope.freq_base": 0.0}, {"rope_theta": 0.0}),
    "a base that is not a number": ({"qwen2.rope.freq_base": float("nan")}, {"rope_theta": float("nan")}),
    "an epsilon of 0": ({"qwen2.attention.layer_norm_rms_epsilon": 0.0}, {"rms_norm_eps": 0.0}),
    "no context": ({"qwen2.context_length": None}, {"max_position_embeddings": ...}),
    "no tokens": ({"tokenizer.ggml.tokens": None}, {"tokenizer.vocabulary": ...}),
    "tokens as numbers": ({"tokenizer.ggml.tokens": KINDS}, {"tokenizer.vocabulary": KINDS}),
    "a token twice": ({"tokenizer.ggml.tokens": ["a", *TOKENS[1:]]}, {"tokenizer.vocabulary": ["a", *TOKENS[1:]]}),
    "more tokens than rows": ({"tokenizer.ggml.tokens": [*TOKENS, "new"], "tokenizer.ggml.token_type": [*KINDS, 1]},
        {"tokenizer.vocabulary": [*TOKENS, "new"], "tokenizer.token_type": [*KINDS, 1], "tokenizer.vocab_size": ...}),
    "a kind too few": ({"tokenizer.ggml.token_type": KINDS[:-1]}, {"tokenizer.token_type": KINDS[:-1]}),
    "no merges": ({"tokenizer.ggml.merges": None}, {"tokenizer.merges": ...}),
    "a merge of one": ({"tokenizer.ggml.merges": ["th"]}, {"tokenizer.merges": ["th"]}),
    "a merge of many lines": ({"tokenizer.ggml.merges": ["\n" * 9999]}, {"tokenizer.merges": ["\n" * 9999]}),
    "an end beyond the vocabulary": ({"tokenizer.ggml.eos_token_id": 2**32 - 1}, {"tokenizer.eos_token_id": 2**32 - 1}),
    "another tokenizer": ({"tokenizer.ggml.model": "llama"}, {"tokenizer.model": "llama"}),
}  # fmt: skip
"""Metadata of well-formed files that are not models: GGUF's, APR's."""


def refused_as_a_model(path: Path) -> AssayError:
    with pytest.raises(AssayError) as caught:
        open_model(path)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 2000 and caught.value.remedy, text[:200]
    return caught.value


@pytest.mark.parametrize("kind", LIES)
def test_metadata_that_lies_is_refused_in_both(tmp_path, kind):
    in_gguf, in_apr = LIES[kind]
    refused_as_a_model(model_builder.build(tmp_path / "x.gguf", metadata=in_gguf))
    refused_as_a_model(apr_builder.build(tmp_path / "x.apr", metadata=in_apr))


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**4299, -1e300])
@pytest.mark.parametrize("name", ["num_layers", "hidden_size", "head_dim", "rope_theta", "tokenizer.eos_token_id",
                                  "tokenizer.vocab_size", "rms_norm_eps"])  # fmt: skip
def test_numbers_that_only_json_can_say(tmp_path, name, number):
    """An integer that no float can hold; a float that no f32 can."""
    refused_as_a_model(apr_builder.build(tmp_path / "x.apr", metadata={name: number}))


def test_a_tensor_too_many_is_named_in_one_line_in_both(tmp_path):
    name, zeros = "a\n\u2028b", apr.Tensor("a\n\u2028b", (8,), data=bytes(32))
    rows = model_builder.tensors_of(model_builder.Shape())["output_norm.weight"]
    assert "\\n" in str(refused_as_a_model(model_builder.build(tmp_path / "x.gguf", tensors={name: rows})))
    assert "\\n" in str(refused_as_a_model(apr_builder.build(tmp_path / "x.apr", tensors={name: zeros})))


@pytest.mark.parametrize("data", [NAN, struct.pack("<e", float("inf"))])
def test_a_scale_that_is_no_number_is_refused_in_both(tmp_path, data):
    """Q6_K, whose scale is at the end of its block."""
    (tmp_path / "x.gguf").write_bytes(bytes(g(gguf.Tensor("t", (256,), 14), data=bytes(208) + data + bytes(14))))
    (tmp_path / "x.apr").write_bytes(bytes(a(apr.Tensor("t", (1, 256), apr.Q6_K, bytes(208) + data))))
    for name in ("x.gguf", "x.apr"):
        container = open_container(tmp_path / name)
        with pytest.raises(AssayError, match="non-finite"):
            tensor_of(container, container.tensors["t"]).decode()
