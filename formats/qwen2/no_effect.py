"""What a file may state beside a plain Qwen2 model without changing it: told from what does change it by the equations.

Every reader of a container asks here. What has no effect is let pass, with a warning where a number of the file is
ignored for it; what has one is refused as not supported, which is not a fault of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from assay.formats import blocks
from assay.formats.containers.apr_metadata import is_float
from assay.formats.containers.base import Container, TensorInfo
from assay.formats.containers.cursor import shown
from assay.formats.contract.config import Config
from assay.formats.errors import ModelError

PER_LAYER = frozenset({"n_heads", "n_kv_heads", "head_dim", "ffn_size"})
"""Fields of ``Config`` that a file may state once for each layer."""
FREQUENCIES = re.compile(r"(model\.)?(layers\.\d+\.(self_attn\.)?)?rotary_emb\.inv_freq"
                         r"|blk\.\d+\.attn_rot_embd(\.weight)?")  # fmt: skip
"""Hugging Face's and GGUF's names of the rotation's frequencies, where a file repeats them."""
FACTORS = "rope_freqs.weight"
"""GGUF's name for what each frequency of the rotation is divided by."""
ROUNDING = {"F32": (2.0**-20, 0.0), "F16": (2.0**-10, 2.0**-24), "BF16": (2.0**-8, 0.0)}
"""Of stored frequencies, (relative, absolute): an f32 power of theta is off by up to ln(theta) ulp, then comes the
type's own rounding; below 2**-14 f16 has steps of 2**-24."""


class Neutral(NamedTuple):
    """A number that other models have, and the values of it that change nothing."""

    what: str
    names: tuple[str, ...]
    """Keys of JSON, in APR and config.json."""
    gguf: str
    """GGUF's key after ``qwen2.``; "" if it has none."""
    values: tuple[float | bool, ...]


NEUTRAL = (
    Neutral("only part of each head is rotated", ("partial_rotary_factor",), "", (1.0,)),
    Neutral("its logits are scaled", ("logit_scale", "logits_scaling"), "logit_scale", (1.0, 0.0)),
    Neutral("its logits are capped", ("final_logit_softcapping",), "final_logit_softcapping", (0.0,)),
    Neutral("its attention is capped", ("attn_logit_softcapping",), "attn_logit_softcapping", (0.0,)),
    Neutral("its embedding is scaled", ("embedding_multiplier",), "embedding_scale", (1.0, 0.0)),
    Neutral("its residual stream is scaled", ("residual_multiplier",), "residual_scale", (1.0, 0.0)),
    Neutral("its attention sees what comes after", ("is_causal",), "attention.causal", (True,)),
    Neutral("it is a mixture of experts", ("num_experts", "num_local_experts"), "expert_count", (0,)),
)


def refused(complaint: str, where: str) -> ModelError:
    """The one shape of what is well-formed, and another model than the engines compute."""
    return ModelError(f"{complaint}, which is not supported", where=where,
                      remedy="The file may well be right; Assay does not run such a model")  # fmt: skip


def demand_neutral(stated: Mapping[str, Any], where: str, *, gguf: bool = False) -> None:
    """Raise ModelError if ``stated``, a file's metadata, has a value that would change a plain Qwen2 model."""
    for neutral in NEUTRAL:
        for key in (f"qwen2.{neutral.gguf}",) if gguf else neutral.names:
            value = stated.get(key)
            if value is not None and not (isinstance(value, int | float) and value in neutral.values):
                raise refused(f"{neutral.what} ({key} = {shown(str(value))})", where)


def uniform(values: Sequence[float], n_layers: int, key: str, where: str) -> float:
    """The one number that ``values``, one a layer, all are. Raises ModelError: too few, too many, different ones."""
    if len(values) != n_layers:
        raise ModelError(f"{key} has {len(values)} numbers for {n_layers} layers", where=where,
                         remedy="The two are not of one model; convert again from the original")  # fmt: skip
    if any(value != values[0] for value in values):
        raise refused(f"{key} differs from layer to layer", where)
    return values[0]


def demand_plain_rotation(scaling: Mapping[str, Any], context_length: int, where: str, warnings: list[str]) -> None:
    """Raise ModelError unless the rope scaling, in the terms of config.json, leaves every frequency as it is.

    Of f = theta^(-2i/d) and the ``factor`` s the kinds make, in a context of at most n positions:

        default, none    f, whatever s is
        linear           f / s; also where a factor is given and no kind
        yarn             a mix of f and f / s; cos and sin are multiplied by ``attention_factor``, or 1 + 0.1 ln s
        llama3           a mix of f and f / s
        dynamic          f with theta times (s m / n - (s - 1))^(d / (d - 2)), m = max(positions, n): f again, as m = n

    So with s = 1 (and no other attention factor) all are plain; dynamic is always. Where the file says that the
    ``original_max_position_embeddings`` were others, s may not be what counts: that is refused, too. Source:
    transformers, modeling_rope_utils.py; llama.cpp, ggml_rope_yarn.
    """
    factor, kinds = scaling.get("factor"), [scaling.get(key) for key in ("type", "rope_type")]
    kinds = [kind for kind in kinds if kind is not None] or ["default" if factor is None else "linear"]
    one = is_float(factor) and factor == 1
    same = scaling.get("original_max_position_embeddings") in (None, context_length)
    plain = {"default": True, "none": True, "linear": one, "llama3": one, "yarn": one and same,
             "dynamic": is_float(factor) and same}  # fmt: skip
    by = "" if factor is None else f" by a factor of {shown(str(factor))}"
    said = f"{' and '.join(sorted({shown(str(kind)) for kind in kinds}))}{by}"
    if not all(isinstance(kind, str) and plain.get(kind, False) for kind in kinds):
        raise refused(f"rope scaling is set: {said}", where)
    if scaling.get("attention_factor") not in (None, 1):
        raise refused(f"rope scaling is set: attention scaled by {shown(str(scaling['attention_factor']))}", where)
    if not {"default", "none"}.issuperset(kinds) or (factor is not None and not one):
        warnings.append(f"rope scaling is stated, {said}: it changes nothing within the context, and is ignored")


def demand_full_attention(window: int | None, sliding: Sequence[bool], context_length: int, where: str,
                          warnings: list[str]) -> None:  # fmt: skip
    """Raise ModelError unless every layer sees all positions of the context.

    ``sliding`` tells of each layer whether it sees only the last ``window`` positions, its own among them.
    """
    if window is None or not any(sliding):
        return
    if window < context_length:
        raise refused(f"{sum(sliding)} of its {len(sliding)} layers attend to a sliding window of {window} positions, "
                      f"the context being {context_length}", where)  # fmt: skip
    warnings.append(f"a sliding window of {window} positions is stated: it holds the whole context, and is ignored")


def sliding_layers(kinds: Sequence[Any] | None, first: int, n_layers: int, where: str) -> list[bool]:
    """Of each layer whether it slides: as ``kinds`` (``layer_types``) name it, or if there are none, from ``first`` on.

    Raises ModelError for a kind that is neither full nor sliding attention, and for too few or too many.
    """
    if kinds is None:
        return [layer >= first for layer in range(n_layers)]
    if odd := [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]:
        raise refused(f"a layer's attention is {shown(str(odd[0]))}", where)
    if len(kinds) != n_layers:
        raise ModelError(f"layer_types has {len(kinds)} entries for {n_layers} layers", where=where,
                         remedy="The two are not of one model; fetch the folder again")  # fmt: skip
    return [kind == "sliding_attention" for kind in kinds]


def repeats_rotation(name: str) -> bool:
    """Whether a tensor of this name holds frequencies of the rotation, or their factors."""
    return name == FACTORS or FREQUENCIES.fullmatch(name) is not None


def without_rotation(container: Container, tensors: Mapping[str, TensorInfo], config: Config,
                     warnings: list[str]) -> dict[str, TensorInfo]:  # fmt: skip
    """``tensors`` without those that only repeat the rotation's frequencies, as old checkpoints do.

    Raises ModelError if one says otherwise than ``rope_theta``, beyond the rounding of its type.
    """
    repeated = {name: info for name, info in tensors.items() if repeats_rotation(name)}
    for name, info in repeated.items():
        pairs = np.arange(0, config.head_dim, 2) / config.head_dim
        expected = np.ones_like(pairs) if name == FACTORS else config.rope_theta**-pairs
        kind = container.row_type(info.name).name
        same = info.shape == expected.shape and kind in ROUNDING
        if same:
            found = blocks.dequantize(kind, container.rows(info.name))[0].astype(np.float64)
            relative, absolute = ROUNDING[kind]
            same = bool((np.abs(found - expected) <= relative * expected + absolute).all())
        if not same:
            raise refused(f"{shown(info.name)} has other frequencies of rotation than rope_theta gives",
                          str(container.path))  # fmt: skip
    if repeated:
        warnings.append(f"{len(repeated)} tensors repeat the frequencies that rope_theta gives, such as "
                        f"{shown(next(iter(repeated.values())).name)}: they are ignored")  # fmt: skip
    return {name: info for name, info in tensors.items() if name not in repeated}
