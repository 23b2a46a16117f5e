"""Which tensor gets which type: llama.cpp's quantization mixes ("Q4_K_M" and the like), for models shaped like Qwen2.

    mix                  matrices   and with more bits
    F32 F16 BF16         its own    -
    Q4_0 Q4_1 Q5_0 Q5_1  its own    output: Q6_K
    Q8_0                 Q8_0       -
    Q4_K_S               Q4_K       output: Q6_K; attn_v of layers 0..3 and ffn_down of the first eighth: Q5_K
    Q4_K_M (Q4_K)        Q4_K       output: Q6_K; attn_v and ffn_down of favoured layers: Q6_K
    Q5_K_S               Q5_K       output: Q6_K
    Q5_K_M (Q5_K)        Q5_K       output: Q6_K; attn_v and ffn_down of favoured layers: Q6_K
    Q6_K                 Q6_K       -

Norms, biases and other vectors stay as they are. "Output" is the matrix that makes the logits: output.weight, or
token_embd.weight where there is none. A row that is not a whole number of a type's blocks gets the type's fallback.
Source: llama_tensor_get_type and llama_tensor_get_type_impl, src/llama-quant.cpp, ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.contract.arguments import checked
from assay.formats.errors import InputError


class Mix(NamedTuple):
    """``base`` is the type of most matrices, ``file_type`` the number that general.file_type gives the mix."""

    base: str
    file_type: int


MIXES: dict[str, Mix] = {
    "F32": Mix("F32", 0), "F16": Mix("F16", 1), "BF16": Mix("BF16", 32),
    "Q4_0": Mix("Q4_0", 2), "Q4_1": Mix("Q4_1", 3), "Q5_0": Mix("Q5_0", 8), "Q5_1": Mix("Q5_1", 9),
    "Q8_0": Mix("Q8_0", 7), "Q4_K_S": Mix("Q4_K", 14), "Q4_K_M": Mix("Q4_K", 15),
    "Q5_K_S": Mix("Q5_K", 16), "Q5_K_M": Mix("Q5_K", 17), "Q6_K": Mix("Q6_K", 18),
}  # fmt: skip
BY_LAYER = ("Q4_K_S", "Q4_K_M", "Q5_K_M")
"""Those in which some layers get more bits than others."""
ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""For rows that are not multiples of 256; F16 for rows that are not multiples of 32 either (llama.cpp refuses some)."""
FLOATS = ("F32", "F16", "BF16")


def named(mix: str) -> str:
    """The mix's own name: upper case, aliases resolved. Raises InputError if there is none of this name."""
    name = ALIASES.get(mix.upper(), mix.upper())
    if name not in MIXES:
        raise InputError(f"there is no quantization mix {mix!r}", where="--type",
                         remedy=f"Use {', '.join([*MIXES, *ALIASES])}")  # fmt: skip
    return name


@checked
def chosen_types(shapes: Mapping[str, tuple[int, ...]], mix: str, *, pure: bool = False,
                 by_name: bool = False) -> dict[str, str]:  # fmt: skip
    """The type of every tensor that the quantization mix quantises, by name; a tensor that keeps its own is not in it.

    ``shapes`` are those of the whole model, row-major: how many layers there are, and whether the output has a
    matrix of its own, is seen from the names. ``pure``: every matrix gets the base type, if its rows allow it.
    ``by_name``: layers are counted in the order of their names, 0, 1, 10, 11, ..., 2, 20, ..., as llama.cpp did until
    it sorted tensors by layer; the published Qwen2.5-Coder files were made so.
    """
    mix = named(mix)
    tied = "output.weight" not in shapes
    numbers = {layer for name in shapes if (layer := layer_of(name)) is not None}
    layers = sorted(numbers, key=str if by_name else int)
    places = {layer: place for place, layer in enumerate(layers)}
    types = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and name.endswith("weight") and not name.endswith("_norm.weight"):
            wanted = MIXES[mix].base
            if wanted not in FLOATS and not pure:
                wanted = favoured(mix, name, shape[-1], places, tied)
            types[name] = fitting(wanted, shape[-1])
    return types


def favoured(mix: str, name: str, row: int, places: Mapping[int, int], tied: bool) -> str:
    """The type that the mix wants for a matrix, whether or not its rows allow it; ``places`` orders the layers."""
    base = MIXES[mix].base
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q8_0" if base == "Q8_0" or row % BY_NAME[base].block_elements else "Q6_K"
    layer = layer_of(name)
    is_value, is_down = ".attn_v." in name, ".ffn_down." in name
    if layer is None or not (is_value or is_down):
        return base
    place, n_layers = places[layer], len(places)
    if mix in ("Q4_K_M", "Q5_K_M") and more_bits(place, n_layers):
        return "Q6_K"
    if mix == "Q4_K_S" and place < (4 if is_value else n_layers // 8):
        return "Q5_K"
    return base


def more_bits(place: int, n_layers: int) -> bool:
    """Whether the layer at this place is favoured: in the first or the last eighth, or every third between them."""
    eighth = n_layers // 8
    return place < eighth or place >= 7 * n_layers // 8 or (place - eighth) % 3 == 2


def fitting(wanted: str, row: int) -> str:
    """``wanted``, or what stands in for it where rows of ``row`` elements are not whole blocks of it."""
    for name in (wanted, FALLBACKS.get(wanted, "F16"), "F16"):
        if row % BY_NAME[name].block_elements == 0:
            return name
    raise AssertionError("every row is whole F16 blocks of one element")


def layer_of(name: str) -> int | None:
    """``"blk.7.ffn_down.weight"`` -> 7; None for a tensor of no layer."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None
