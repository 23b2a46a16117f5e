"""A second reader beside ours: quiet on right files of every container, and loud for whatever ours would misread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.formats import ModelFile, Tensor, open_model
from assay.goldens import BUILTIN
from assay.judging import independent
from assay.judging.independent import check, gguf_package, kept
from tests import apr_builder, hf_builder
from tests import apr_files as raw
from tests.model_builder import TOKENS, Shape, build

CONTAINERS = ("gguf", "apr", "hf")
SHAPE = Shape(n_layers=2, tied=False, n_padding=3, theta=5e5, eps=1e-5)
TEMPLATE = {"tokenizer.chat_template": "{{ messages[0].content }}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFile]:
    """One model in each container."""
    folder = tmp_path_factory.mktemp("containers")
    return {
        "gguf": open_model(build(folder / "m.gguf", SHAPE, metadata=TEMPLATE)),
        "apr": open_model(apr_builder.build(folder / "m.apr", SHAPE, metadata=TEMPLATE)),
        "hf": open_model(hf_builder.build(folder / "hf", SHAPE, dtype="F32")),
    }


@pytest.fixture(autouse=True)
def no_transformers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds to import, where it is installed; one test asks it."""
    if "torch" not in request.keywords:
        monkeypatch.setattr(independent.hf_by_transformers, "installed", lambda: False)


@pytest.mark.parametrize("container", CONTAINERS)
def test_right_files_are_quiet(files: dict[str, ModelFile], container: str) -> None:
    found = check(files[container], values=True)
    assert (found.differences, found.failed) == ((), ""), found.says
    assert found.facts >= 19 and found.tensors == len(files[container].tensors)
    assert found.values == sum(int(np.prod(t.shape)) for t in files[container].tensors.values())
    assert "read a second time" in found.says


@pytest.mark.parametrize("path", [BUILTIN, BUILTIN.with_suffix(".apr")])
def test_the_built_in_model_is_quiet(path: Path) -> None:
    found = check(open_model(path), values=True)
    assert (found.differences, found.failed, found.facts) == ((), "", 20)


ODD: dict[str, Callable[[Path], Path]] = {
    "every block type": lambda p: build(p / "m.gguf", Shape(2, 256, 4, 2, 64, 512, types={
        "attn_q": ["Q4_0", "Q4_1"], "attn_k": ["Q5_0", "Q5_1"], "attn_v": ["Q8_0", "Q2_K"], "ffn_up": ["Q3_K", "Q4_K"],
        "attn_output": ["Q5_K", "Q6_K"], "ffn_down": ["IQ4_NL", "IQ4_XS"], "ffn_gate": ["F16", "BF16"]})),
    "three files": lambda p: build(p / "m.gguf", SHAPE, split=9),
    "what need not be stated": lambda p: build(p / "m.gguf", metadata={
        "qwen2.attention.key_length": None, "qwen2.attention.value_length": None, "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.eot_token_id": 260, "tokenizer.ggml.add_bos_token": None}),
    "heads of each layer": lambda p: build(p / "m.gguf", SHAPE, metadata={"qwen2.attention.head_count_kv": [1, 1]}),
    "an APR of few keys": lambda p: apr_builder.build(p / "m.apr", metadata={
        "head_dim": ..., "vocab_size": ..., "tokenizer.token_type": ..., "tokenizer.pre_type": ...,
        "num_layers": None, "n_layer": 1, "model.hidden_size": 32, "hidden_size": None}),
    "APR's own types": lambda p: apr_builder.build(p / "m.apr", tensors={
        "blk.0.attn_q.weight": raw.Tensor("model.layers.0.self_attn.q_proj.weight", (32, 32), raw.APR_Q4,
                                           (b"\0\x30" + bytes(range(100, 116))) * 32),
        "blk.0.attn_k.weight": raw.Tensor("model.layers.0.self_attn.k_proj.weight", (16, 32), raw.APR_Q8,
                                           b"\0\0\0\x3c" + bytes(range(256)) * 2)}),
    "padded rows": lambda p: apr_builder.build(p / "m.apr", tensors={"blk.0.ffn_up.weight": apr_builder.padded_matrix(
        "model.layers.0.mlp.up_proj.weight", 48, 32, "Q4_K", 1)[0]}),
    "an output that is a copy": lambda p: copied(p / "m.apr"),
    "three shards": lambda p: hf_builder.build(p / "hf", SHAPE, shards=3),
    "rope parameters": lambda p: hf_builder.build(p / "hf", config={
        "rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": ...,
        "num_key_value_heads": None}, shape=Shape(n_kv_heads=2)),
}  # fmt: skip


def copied(path: Path) -> Path:
    """An APR file whose output matrix is the embedding once more, as an import writes it."""
    rows = np.arange(len(TOKENS) * 32, dtype=np.float32)
    both = {name: raw.Tensor(apr_builder.hf_name(name), (len(TOKENS), 32), raw.F32, rows.tobytes())
            for name in ("token_embd.weight", "output.weight")}  # fmt: skip
    return apr_builder.build(path, metadata={"tied_embeddings": True}, tensors=both)


@pytest.mark.parametrize("made", ODD)
def test_odd_files_are_quiet_too(made: str, tmp_path: Path) -> None:
    file = open_model(ODD[made](tmp_path))
    found = check(file, values=True)
    assert (found.differences, found.failed) == ((), ""), found.says
    assert found.tensors == len(file.tensors)


def config(**changes: Callable[[Any], Any]) -> Callable[[ModelFile], ModelFile]:
    return lambda f: replace(f, config=replace(f.config, **{k: v(getattr(f.config, k)) for k, v in changes.items()}))


def vocabulary(**changes: Callable[[Any], Any]) -> Callable[[ModelFile], ModelFile]:
    return lambda f: replace(f, vocabulary=replace(f.vocabulary, **{
        key: change(getattr(f.vocabulary, key)) for key, change in changes.items()}))  # fmt: skip


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[ModelFile], ModelFile]:
    return lambda f: replace(f, tensors={**f.tensors, name: change(f.tensors[name])})


def put(at: int, value: Any) -> Callable[[Any], Any]:
    return lambda items: [*items[:at], value, *items[at + 1 :]]


def one_row_on(t: Tensor) -> Tensor:
    """Read from a wrong place: a row too far, in a circle."""
    return replace(t, read=lambda rows: np.roll(t.read(slice(None)), -1, 0)[rows])


def one_bit(t: Tensor) -> Tensor:
    """A bit of a weight in the middle."""

    def read(rows: slice) -> np.ndarray:
        whole = np.array(t.read(slice(None)))
        whole[t.n_rows // 2, 4] ^= 1
        return whole[rows]

    return replace(t, read=read)


MISREAD: dict[str, tuple[Callable[[ModelFile], ModelFile], str]] = {
    "theta": (config(rope_theta=lambda x: 100 * x), "rope_theta"),
    "eps": (config(rms_norm_eps=lambda x: 100 * x), "rms_norm_eps"),
    "one ulp of theta": (config(rope_theta=lambda x: float(np.nextafter(np.float32(x), np.float32(0)))), "rope_theta"),
    "key and value heads": (config(n_kv_heads=lambda x: 2), "n_kv_heads"),
    "head_dim": (config(head_dim=lambda x: 8), "head_dim"),
    "layers": (config(n_layers=lambda x: x - 1), "n_layers"),
    "context": (config(context_length=lambda x: x + 1), "context_length"),
    "tied": (config(tied=lambda x: not x), "tied"),
    "end ids": (vocabulary(end_ids=lambda x: x - {259}), "end_ids"),
    "eos": (vocabulary(eos_id=lambda x: 259), "eos_id"),
    "a token": (vocabulary(tokens=put(257, "teh")), "token 257"),
    "tokens exchanged": (vocabulary(tokens=lambda x: [*x[:255], x[256], x[255], *x[257:]]), "token 255"),
    "a token lost": (vocabulary(tokens=lambda x: x[:-1]), "token 2"),
    "a kind": (vocabulary(kinds=put(260, 1)), "kind of token 260"),
    "a merge": (vocabulary(merges=put(1, "t he")), "merge 1"),
    "the order of merges": (vocabulary(merges=lambda x: x[::-1]), "merge 0"),
    "bos": (vocabulary(add_bos=lambda x: True), "add_bos"),
    "the template": (lambda f: replace(f, chat_template=(f.chat_template or "") + "\n"), "chat_template from"),
    "an offset": (tensor("blk.1.attn_k.weight", one_row_on), "tensor blk.1.attn_k.weight, row 0"),
    "a shape": (tensor("blk.1.attn_k.weight", lambda t: replace(t, shape=t.shape[::-1])), "tensor blk.1.attn_k.weight"),
    "a bias lost": (lambda f: replace(f, tensors={k: v for k, v in f.tensors.items() if k != "blk.0.attn_q.bias"}),
                    "tensor blk.0.attn_q.bias"),
    "names exchanged": (lambda f: replace(f, tensors={
        **f.tensors, "blk.0.ffn_gate.weight": f.tensors["blk.0.ffn_up.weight"],
        "blk.0.ffn_up.weight": f.tensors["blk.0.ffn_gate.weight"]}), "tensor blk.0.ffn_up.weight, row 0"),
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("fault", MISREAD)
def test_what_ours_misreads_is_named(files: dict[str, ModelFile], container: str, fault: str) -> None:
    change, fact = MISREAD[fault]
    found = check(change(files[container]))
    assert found.failed == "" and [one for one in found.differences if one.fact.startswith(fact)], found.says
    assert len(found.differences) <= 2 and next(iter(found.differences)).fact in found.says


@pytest.mark.parametrize("container", CONTAINERS)
def test_one_bit_of_one_weight_is_seen_where_weights_are_compared(files: dict[str, ModelFile], container: str) -> None:
    wrong = tensor("blk.1.ffn_down.weight", one_bit)(files[container])
    assert not check(wrong).differences
    (one,) = check(wrong, values=True).differences
    assert one.fact == "weight [16, 1] of blk.1.ffn_down.weight" and one.ours != one.theirs


def test_a_decoder_that_is_wrong_in_every_engine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.formats import blocks

    right = blocks.dequantize
    monkeypatch.setattr(blocks, "dequantize", lambda kind, rows: right(kind, rows) * (1 + 1e-6 * (kind == "Q6_K")))
    found = check(open_model(BUILTIN), values=True)
    assert len(found.differences) == 5 and all("weight [" in one.fact for one in found.differences)


def test_the_package_is_not_asked_for_what_would_cost_gigabytes(
    files: dict[str, ModelFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_package, "MOST_ITEMS", 100)
    found = check(files["gguf"])
    assert "544 elements" in found.failed and "was not read a second time" in found.says


@pytest.mark.torch
def test_transformers_is_asked_about_a_folder(files: dict[str, ModelFile], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for file in (files["hf"], open_model(ODD["rope parameters"](tmp_path))):
        found = check(file, values=True)
        assert (found.differences, found.failed) == ((), "") and "transformers" in found.reader, found.says
    found = check(config(rope_theta=lambda x: 100 * x)(files["hf"]), values=True)
    assert [one.theirs for one in found.differences] == ["500000", "500000"]


def test_whatever_a_second_reader_raises_is_a_reason(
    files: dict[str, ModelFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise ZeroDivisionError("no\nluck")

    monkeypatch.setattr(independent.apr_by_spec, "read", breaks)
    assert check(files["apr"]).failed == "ZeroDivisionError: no luck"


def test_a_large_files_reading_is_kept_and_never_accuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once; found again for the same bytes; what differs is read anew, so a spoiled one does no harm."""
    monkeypatch.setenv("ASSAY_FLOORS", "on")
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(independent, "KEPT_FROM", 100)
    calls: list[Any] = []
    read = gguf_package.read
    monkeypatch.setattr(independent.gguf_package, "read", lambda *given: (calls.append(given), read(*given))[1])
    file = open_model(build(tmp_path / "m.gguf", SHAPE))
    first = check(file, values=True)
    assert check(file, values=True) == first and not first.differences and len(calls) == 1
    wrong = replace(file, config=replace(file.config, rope_theta=1e4))
    assert check(wrong).differences[0].fact == "rope_theta" and len(calls) == 2
    (path,) = (tmp_path / "home" / "readings").iterdir()
    stored = kept.known(file)
    assert stored is not None
    kept.keep(file, stored._replace(facts={**stored.facts, "rope_theta": 1.0}))
    assert not check(file).differences and len(calls) == 3
    path.write_bytes(b"no gzip")
    assert not check(file).differences and len(calls) == 4
    monkeypatch.setenv("ASSAY_FLOORS", "off")
    assert kept.kept_at(file) is None


def test_a_fault_in_our_reader_of_each_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not a record changed afterwards: the function that reads theta for everybody."""
    from assay.formats.qwen2 import from_apr, from_gguf, from_hf

    right = from_gguf._floating
    monkeypatch.setattr(from_gguf, "_floating", lambda *given: right(*given) * (100 if "theta" in given[-1] else 1))
    for module in (from_apr, from_hf):
        monkeypatch.setattr(module, "Config", lambda make=module.Config, **values: make(
            **{**values, "rope_theta": 100 * values["rope_theta"]}))  # fmt: skip
    for path in (build(tmp_path / "m.gguf"), apr_builder.build(tmp_path / "m.apr"), hf_builder.build(tmp_path / "hf")):
        found = check(open_model(path))
        assert found.differences == (("rope_theta", "100000000", "1000000"),), json.dumps(found)
