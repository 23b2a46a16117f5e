"""Which tensor gets which type: against the published files' own types, and the rules at their edges."""

import gguf
import pytest

from assay.formats import InputError
from assay.formats.contract.config import Config, tensor_shapes
from assay.formats.quantizers.quantization_mix import ALIASES, MIXES, chosen_types, named

PUBLISHED = {
    "0.5b": {0, 1, 3, 6, 7, 8, 9, 10, 13, 16, 19, 21},
    "1.5b": {0, 1, 5, 6, 7, 8, 9, 10, 13, 16, 19, 21, 24, 27},
}
"""Layers whose attn_v and ffn_down have more bits in the published Qwen2.5-Coder Q4_K_M files, read out of these."""


def shapes(n_layers: int, hidden: int, ffn: int, *, tied: bool = False) -> dict[str, tuple[int, ...]]:
    config = Config(n_layers=n_layers, hidden_size=hidden, n_heads=hidden // 64, n_kv_heads=2, head_dim=64,
                    ffn_size=ffn, n_vocab=1000, context_length=512, rms_norm_eps=1e-6, rope_theta=1e6,
                    tied=tied)  # fmt: skip
    return tensor_shapes(config)


def layers_of(types: dict[str, str], role: str, kind: str) -> set[int]:
    return {int(name.split(".")[1]) for name, chosen in types.items() if f".{role}." in name and chosen == kind}


def test_the_published_half_billion() -> None:
    types = chosen_types(shapes(24, 896, 4864), "Q4_K_M", by_name=True)
    assert layers_of(types, "ffn_down", "Q6_K") == layers_of(types, "attn_v", "Q8_0") == PUBLISHED["0.5b"]
    others = set(range(24)) - PUBLISHED["0.5b"]
    assert layers_of(types, "ffn_down", "Q4_K") == layers_of(types, "attn_v", "Q5_0") == others
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q5_0", "Q8_0")
    for role in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert types[f"blk.7.{role}.weight"] == "Q5_0"
    assert len(types) == 24 * 7 + 2  # every matrix, no vector


def test_the_published_one_and_a_half_billion() -> None:
    types = chosen_types(shapes(28, 1536, 8960), "Q4_K_M", by_name=True)
    assert layers_of(types, "ffn_down", "Q6_K") == layers_of(types, "attn_v", "Q6_K") == PUBLISHED["1.5b"]
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_K", "Q6_K")


def test_layers_are_counted_by_number() -> None:
    types = chosen_types(shapes(24, 256, 512), "Q4_K_M")
    assert layers_of(types, "attn_v", "Q6_K") == {0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23}


def test_small_models_have_no_eighth() -> None:
    assert layers_of(chosen_types(shapes(2, 256, 512), "Q4_K_M"), "ffn_down", "Q6_K") == {1}
    assert layers_of(chosen_types(shapes(4, 256, 512), "Q5_K_M"), "attn_v", "Q6_K") == {2, 3}


def test_a_tied_embedding_is_the_output_too() -> None:
    for mix, kind in [("Q4_K_M", "Q6_K"), ("Q6_K", "Q6_K"), ("Q4_0", "Q6_K"), ("Q8_0", "Q8_0"), ("F16", "F16")]:
        assert chosen_types(shapes(2, 256, 512, tied=True), mix)["token_embd.weight"] == kind
    assert chosen_types(shapes(2, 256, 512), "Q4_0")["token_embd.weight"] == "Q4_0"
    assert chosen_types(shapes(2, 896, 4864, tied=True), "Q4_0")["token_embd.weight"] == "Q8_0"  # Q6_K does not fit


def test_the_small_mixes() -> None:
    small = chosen_types(shapes(24, 256, 512), "Q4_K_S")
    assert layers_of(small, "attn_v", "Q5_K") == {0, 1, 2, 3}
    assert layers_of(small, "ffn_down", "Q5_K") == {0, 1, 2}
    assert set(chosen_types(shapes(24, 256, 512), "Q5_K_S").values()) == {"Q5_K", "Q6_K"}  # Q6_K: the output alone


def test_rows_that_are_no_whole_blocks() -> None:
    assert set(chosen_types(shapes(2, 896, 4864), "Q5_K_S", pure=True).values()) == {"Q5_1", "Q5_K"}
    assert set(chosen_types(shapes(2, 896, 4864), "Q6_K").values()) == {"Q8_0", "Q6_K"}
    for mix in ("Q4_K_M", "Q8_0", "Q4_0", "Q6_K"):
        assert chosen_types({"blk.0.attn_q.weight": (64, 48)}, mix) == {"blk.0.attn_q.weight": "F16"}


def test_norms_biases_and_vectors_are_left_alone() -> None:
    kept = {"blk.0.attn_q_norm.weight": (2, 256), "blk.0.attn_q.bias": (2, 256), "output_norm.weight": (256,)}
    for mix in MIXES:
        assert chosen_types(kept, mix) == {}


def test_pure_favours_nothing() -> None:
    assert set(chosen_types(shapes(24, 256, 512, tied=True), "Q4_K_M", pure=True).values()) == {"Q4_K"}


def test_names() -> None:
    assert (named("q4_k"), named("Q5_K"), named("f16")) == ("Q4_K_M", "Q5_K_M", "F16")
    with pytest.raises(InputError, match="no quantization mix 'Q4_L'"):
        named("Q4_L")


def test_file_types_are_those_of_the_gguf_package() -> None:
    theirs = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value for kind in gguf.LlamaFileType}
    assert {name: mix.file_type for name, mix in MIXES.items()} == {name: theirs[name] for name in MIXES}
    assert set(ALIASES.values()) < set(MIXES)
