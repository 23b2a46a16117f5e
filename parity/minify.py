"""The smallest proof that a stage is wrong: one number, computed by a short script that needs NumPy and nothing else.

Of the whole model the script keeps what one element of one activation depends on: the true input at one position, and
of the weights one row of a matrix, one gain or one bias. It computes the stage's equation in f64, holds the candidate's
number against it, and exits with 1 if they differ by more than the floor allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from assay.formats import ModelFile, NumericError
from assay.parity.distance import distance, over
from assay.parity.floor import TOLERANCE_FACTOR, Floor
from assay.parity.precision import Key, Tapped
from assay.parity.sample import place

PRODUCTS = {"q_proj": ("attn_norm", "attn_q"), "k_proj": ("attn_norm", "attn_k"), "v_proj": ("attn_norm", "attn_v"),
            "attn_out": ("attention", "attn_output"), "ffn_gate": ("ffn_norm", "ffn_gate"),
            "ffn_up": ("ffn_norm", "ffn_up"), "ffn_out": ("ffn_swiglu", "ffn_down")}  # fmt: skip
"""The input of each matrix product of a layer, and its matrix."""


class Fault(NamedTuple):
    """One wrong number."""

    site: Key
    position: int
    channel: int
    """Of the activation's elements at the position, heads side by side."""
    wrong: float
    """What the candidate computed there from the true input."""
    limit: float
    """The largest absolute error that is still right: ``TOLERANCE_FACTOR`` floors."""


class Repro(NamedTuple):
    """A script, and the arrays that it loads from a ``.npz`` beside it that has its name."""

    script: str
    arrays: dict[str, np.ndarray]


class Equation(NamedTuple):
    """One element of a stage: the inputs, each with a note on what it is, and the lines that compute ``right``."""

    inputs: Mapping[str, tuple[Any, str]]
    lines: Sequence[str]


def alone(candidate: Tapped, ids: Sequence[int], truth: Mapping[Key, np.ndarray], site: Key) -> np.ndarray:
    """What ``candidate`` computes at ``site`` when every stage before it is the true one, f64 [n_tokens, size]."""
    shown: list[np.ndarray] = []

    def tap(stage: str, layer: int | None, activation: Any) -> Any:
        if (stage, layer) == site:
            shown.append(np.array(activation, np.float64).reshape(len(ids), -1))
        return truth[stage, layer].astype(activation.dtype).reshape(activation.shape)

    with suppress(NumericError):  # logits that are not numbers, after they were shown
        candidate.forward(ids, tap)
    return shown[0]


def worst(site: Key, found: np.ndarray, truth: np.ndarray, floor: Floor) -> Fault | None:
    """The element of ``found`` furthest from the truth in units of its position's root mean square, NaN first.

    Whichever magnitude is beyond the site's ``floor``, this element is: the largest error of a position is at least the
    root mean square of them all, and the worst position at least as bad as the whole. None where no magnitude is: an
    error that shows only where many are averaged is not in any one number.
    """
    x, t = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (found, truth))
    rms = np.sqrt(np.square(t).mean(1, keepdims=True))
    with np.errstate(invalid="ignore"):
        error = np.where(np.isfinite(x), over(np.abs(x - t), rms), np.inf)
    position, channel = (int(i) for i in np.unravel_index(error.argmax(), error.shape))
    measured = distance(found, truth)
    beyond = [limit for m, limit in floor.magnitudes().items() if not getattr(measured, m) <= TOLERANCE_FACTOR * limit]
    if not beyond:
        return None
    limit = TOLERANCE_FACTOR * max(beyond) * float(rms[position, 0])
    return Fault(site, position, channel, float(x[position, channel]), limit)


def repro_of(file: ModelFile, ids: Sequence[int], truth: Mapping[Key, np.ndarray], fault: Fault, origin: str) -> Repro:
    """The script that shows ``fault``; ``origin`` (any text) says in it whose number is wrong.

    ``truth``: the true activation of every stage of ``ids``.
    """
    (stage, layer), position, channel, wrong, limit = fault
    equation = equation_of(file, ids, truth, fault)
    loaded = [f'{name} = data["{name}"]  # {note}' for name, (_, note) in equation.inputs.items()]
    script = f'''"""{place(stage, layer)} is wrong at position {position}, channel {channel}. Needs only NumPy.

Exit code 1 if WRONG is further from what the equation gives than FLOORS floors, else 0.
"""

import sys
from pathlib import Path

import numpy as np

# {origin!a}
# SHA-256 of the model: {file.sha256}
STAGE, LAYER, POSITION, CHANNEL = {stage!r}, {layer!r}, {position}, {channel}
WRONG = {literal(wrong)}  # what the engine computed from the true input
FLOOR, FLOORS = {literal(limit / TOLERANCE_FACTOR)}, {TOLERANCE_FACTOR:g}  # of rounding; so many are allowed

data = np.load(Path(__file__).with_suffix(".npz"))
{chr(10).join(loaded)}

{chr(10).join(equation.lines)}

error = abs(WRONG - float(right))
floors = error / FLOOR if FLOOR else float("inf") if error else 0.0
print(f"stage {{STAGE}}, layer {{LAYER}}, position {{POSITION}}, channel {{CHANNEL}}")
print(f"right {{float(right)!r}}")
print(f"wrong {{WRONG!r}}")
print(f"difference {{error:.3g}}: {{floors:.3g}} floors, {{FLOORS:g}} are allowed")
sys.exit(0 if floors <= FLOORS else 1)
'''
    return Repro(script, {name: np.asarray(array) for name, (array, _) in equation.inputs.items()})


def literal(x: float) -> str:
    """A float as Python reads it, to the last bit."""
    return repr(x) if np.isfinite(x) else f'float("{x}")'


def equation_of(file: ModelFile, ids: Sequence[int], truth: Mapping[Key, np.ndarray], fault: Fault) -> Equation:
    """The equation of one element. Everything that is loaded is f64, weights decoded."""
    (stage, layer), position, channel = fault.site, fault.position, fault.channel
    config = file.config

    def activation(of: str, layer: int | None = layer) -> np.ndarray:
        return np.asarray(truth[of, layer], np.float64).reshape(len(ids), -1)

    def element(of: str, layer: int | None = layer, channel: int = channel) -> tuple[Any, str]:
        return activation(of, layer)[position, channel], f"true {place(of, layer)}, channel {channel}"

    def row_in(of: str, layer: int | None = layer) -> tuple[Any, str]:
        return activation(of, layer)[position], f"true {place(of, layer)}, all channels"

    def weights(name: str, row: int) -> tuple[Any, str]:
        return file.tensors[name].rows(row, row + 1)[0].astype(np.float64), f"row {row} of {name}"

    def weight(name: str) -> tuple[Any, str]:
        return np.float64(file.tensors[name].decode()[channel]), f"element {channel} of {name}"

    def stream() -> Key:
        """The residual stream that enters the layer, or leaves the last."""
        above = config.n_layers if layer is None else layer
        return ("ffn_residual", above - 1) if above else ("embedding", None)

    if stage == "embedding":
        return Equation({"row": weights("token_embd.weight", ids[position])}, ["right = row[CHANNEL]"])
    if stage == "logits":
        name = "token_embd.weight" if config.tied else "output.weight"
        return Equation({"x": row_in("final_norm"), "row": weights(name, channel)}, ["right = row @ x"])
    if stage in PRODUCTS:
        before, name = PRODUCTS[stage]
        row = weights(f"blk.{layer}.{name}.weight", channel)
        return Equation({"x": row_in(before), "row": row}, ["right = row @ x"])
    if stage.endswith("_norm"):
        x = row_in("attn_residual") if stage == "ffn_norm" else row_in(*stream())
        gain = weight("output_norm.weight" if layer is None else f"blk.{layer}.{stage}.weight")
        lines = [f"eps = {config.rms_norm_eps!r}", "right = x[CHANNEL] / np.sqrt(np.mean(x**2) + eps) * gain"]
        return Equation({"x": x, "gain": gain}, lines)
    if stage.endswith("_bias"):
        bias = weight(f"blk.{layer}.attn_{stage[0]}.bias")
        return Equation({"x": element(f"{stage[0]}_proj"), "bias": bias}, ["right = x + bias"])
    if stage.endswith("_rope"):
        half, before = config.head_dim // 2, f"{stage[0]}_bias"
        i = channel % config.head_dim
        first = channel - i + i % half
        turned = "a * np.cos(angle) - b * np.sin(angle)" if i < half else "b * np.cos(angle) + a * np.sin(angle)"
        pair = {"a": element(before, channel=first), "b": element(before, channel=first + half)}
        return Equation(pair, [f"theta, i, head_dim = {config.rope_theta!r}, {i % half}, {config.head_dim}",
                               "angle = POSITION * theta ** (-2 * i / head_dim)", f"right = {turned}"])  # fmt: skip
    if stage == "attention":
        return attended(activation("q_rope"), activation("k_rope"), activation("v_bias"), fault, config.head_dim,
                        config.n_heads // config.n_kv_heads)  # fmt: skip
    if stage == "ffn_silu":
        return Equation({"gate": element("ffn_gate")}, ["right = gate / (1 + np.exp(-gate))"])
    if stage == "ffn_swiglu":
        return Equation({"silu": element("ffn_silu"), "up": element("ffn_up")}, ["right = silu * up"])
    x, out = (element(*stream()), "attn_out") if stage == "attn_residual" else (element("attn_residual"), "ffn_out")
    return Equation({"x": x, "out": element(out)}, ["right = x + out"])


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, fault: Fault, head_dim: int,
             heads_per_kv: int) -> Equation:  # fmt: skip
    """One element of attention's output: one query, the keys and one channel of the values of its head until then."""
    head, i = divmod(fault.channel, head_dim)
    kv, seen = head // heads_per_kv, slice(fault.position + 1)
    keys, value = slice(kv * head_dim, (kv + 1) * head_dim), kv * head_dim + i
    inputs = {
        "q": (q[fault.position, head * head_dim : (head + 1) * head_dim], f"true q_rope, head {head}"),
        "k": (k[seen, keys], f"true k_rope of every position until then, head {kv}"),
        "v": (v[seen, value], f"true v_bias of every position until then, channel {value}"),
    }
    return Equation(inputs, ["scores = k @ q / np.sqrt(len(q))", "weights = np.exp(scores - scores.max())",
                             "right = weights @ v / weights.sum()"])  # fmt: skip
