"""What ``llama-eval-callback`` of llama.cpp prints, held against the truth as far as it goes.

    common_debug_cb_eval: attn_norm-0 = (f32) MUL(norm-0{256, 5, 1, 1}, blk.0.attn_norm.weight{..}}) = {256, 5, 1, 1}
        [
            [      0.3209,      -0.0000,       0.1039,    ...,       0.2794,      -0.5046,      -1.7319  ],
        ...
        sum = -3.676465

Of each dimension the first and last three elements are printed, to four decimals, and the sum of all: too little to
feed a stage with, so no stage can be judged by itself (``transplant.py`` does that with whole dumps). What can be said
is where, on its way through the model, the run leaves the truth by more than its declared arithmetic may: from there on
every stage is off, and the first is named. A fault that moves neither a printed element nor the sum is not seen there.

Printed elements are held against the largest error that noisy runs of the oracle have anywhere at that position. The
sum is held against theirs, and against what independent errors of the same size would add up to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from assay.formats.containers.cursor import opened
from assay.formats.contract.arguments import checked
from assay.formats.errors import FormatError, SampleError
from assay.parity.precision import Key, Precision, Tapped, each_run

HEAD = re.compile(
    r"(?:ggml_debug|common_debug_cb_eval): +(\S+)[^=]* = \(f32\) +(\w+)"
    r"\(([^{]*)\{[\d, ]+\}, (?:([^{]*)\{[\d, ]+\})?\}\) = \{(\d{1,9}), (\d{1,9}), (\d{1,9}), (\d{1,9})\}"
)
NUMBER = re.compile(r"-?(?:\d+\.\d+|nan|inf)")
TOKENS, ID = re.compile(r"number of input tokens = (\d{1,6})$"), re.compile(r" (\d{1,9})$")
OF_WEIGHT = {
    "attn_norm.weight": "attn_norm", "attn_q.weight": "q_proj", "attn_k.weight": "k_proj", "attn_v.weight": "v_proj",
    "attn_q.bias": "q_bias", "attn_k.bias": "k_bias", "attn_v.bias": "v_bias", "attn_output.weight": "attn_out",
    "ffn_norm.weight": "ffn_norm", "ffn_gate.weight": "ffn_gate", "ffn_up.weight": "ffn_up",
    "ffn_down.weight": "ffn_out",
}  # fmt: skip
"""The stage that a layer's tensor makes; names of results vary from version to version, those of weights do not."""
OF_NAME = {
    "Qcur": ("ROPE", "q_rope"), "Kcur": ("ROPE", "k_rope"), "kqv_out": (None, "attention"),
    "ffn_inp": ("ADD", "attn_residual"), "ffn_silu": (None, "ffn_silu"), "ffn_swiglu": (None, "ffn_swiglu"),
    "ffn_gate_par": (None, "ffn_swiglu"), "l_out": ("ADD", "ffn_residual"),
}  # fmt: skip
"""The stage of a result that no tensor of the file makes: by what, if that matters, and its name."""
EDGE = 3
"""Elements that are printed at either end of a dimension."""
HALF_DIGIT = 0.5e-4
MAX_BYTES = 1 << 28
REMEDY = "Give what 'llama-eval-callback -m MODEL -p TEXT' printed, standard error included."


@dataclass(frozen=True, eq=False)
class Printed:
    """What is known of one stage, whose rows are those of the last ``n`` tokens."""

    n: int
    size: int
    """Elements of a row."""
    at: np.ndarray
    """Which elements: int [k, 2], (row, element)."""
    values: np.ndarray
    """Those elements, f64 [k]."""
    total: float
    """The sum of all n x size of them, added up in f32."""


@dataclass(frozen=True, eq=False)
class Log:
    """The stages of a run in the order in which they are first printed; ``ids`` None: it does not say what was read."""

    ids: tuple[int, ...] | None
    stages: Mapping[Key, Printed]


@checked
def read(path: Path) -> Log:
    """The stages in a log; what else is in it is passed over.

    Raises FormatError: those of ``opened``, too-large, no-stages, bad-tensor (not as many numbers as its shape says).
    """
    with opened(path, text=True) as (fd, status), open(fd, encoding="utf-8", errors="replace", closefd=False) as file:
        if status.st_size > MAX_BYTES:
            raise _fail(path, "too-large", f"{status.st_size} bytes are no log of one short prompt", "file")
        lines = iter(file)
        ids: list[int] = []
        n_ids = 0
        stages: dict[Key, Printed] = {}
        for line in lines:
            if said := TOKENS.search(line):
                ids, n_ids = [], int(said[1])
            elif len(ids) < n_ids and (one := ID.search(line)):
                ids.append(int(one[1]))
            elif (head := HEAD.search(line)) and (key := stage_of(*head.group(1, 2, 3, 4))) and key not in stages:
                stages[key] = _tensor(lines, [int(n) for n in head.group(5, 6, 7, 8)], path, head[1])
    if not stages:
        raise _fail(path, "no-stages", "no stage is printed in it", "file")
    return Log(tuple(ids) if 0 < len(ids) == n_ids else None, stages)


def stage_of(name: str, op: str, left: str, right: str | None) -> Key | None:
    """The stage that a result is, by how it was made; None if it is none."""
    if op == "GET_ROWS" and left == "token_embd.weight":
        return "embedding", None
    if op == "MUL_MAT" and left in ("output.weight", "token_embd.weight"):
        return "logits", None
    if op == "MUL" and right == "output_norm.weight":
        return "final_norm", None
    tensor = {"MUL_MAT": left, "ADD": right, "MUL": right}.get(op) or ""
    if (parts := re.fullmatch(r"blk\.(\d{1,4})\.(.+)", tensor)) and parts[2] in OF_WEIGHT:
        return OF_WEIGHT[parts[2]], int(parts[1])
    if (parts := re.fullmatch(r"(\w+)-(\d{1,4})", name)) and parts[1] in OF_NAME:
        wanted, stage = OF_NAME[parts[1]]
        return (stage, int(parts[2])) if wanted in (None, op) else None
    return None


def _tensor(lines: Any, shape: Sequence[int], path: Path, name: str) -> Printed:
    """The numbers up to the next sum. ``shape``: as ggml has it, the fastest dimension first."""
    values: list[float] = []
    for line in islice(lines, 8 * EDGE**2 + 64):
        if (text := line.strip()).startswith("sum ="):
            break
        values += [float(number) for number in NUMBER.findall(text)]
    else:
        text = ""
    width, middle, last, outer = shape
    shown = [list(range(n)) if n <= 2 * EDGE else [*range(EDGE), *range(n - EDGE, n)] for n in (last, middle, width)]
    n_shown = math.prod(map(len, shown))
    if not 0 < n_shown == len(values) or outer != 1 or not (total := NUMBER.search(text)):
        raise _fail(path, "bad-tensor", f"{len(values)} numbers are not the printed part of {list(shape)}", name[:40])
    flat = last == 1  # {size, tokens}; otherwise {head_dim, heads, tokens}
    at = [(j, i) if flat else (k, j * width + i) for k, j, i in product(*shown)]
    n, size = (middle, width) if flat else (last, middle * width)
    return Printed(n, size, np.array(at), np.array(values), float(total[0]))


def _fail(path: Path, code: str, detail: str, field: str) -> FormatError:
    return FormatError(code, detail, path=path, field=field, remedy=REMEDY)


class Held(NamedTuple):
    """One stage beside the truth."""

    elements: int
    """Printed elements that were held against the truth."""
    of: int
    """Elements that the stage has."""
    over_floor: float
    """The largest error of one, in floors."""
    sum_over_floor: float
    """The error of the sum, in floors."""

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.over_floor, self.sum_over_floor)


@checked
def held(log: Log, exact: Mapping[Key, np.ndarray], oracle: Tapped, ids: Sequence[int], declared: Precision, *,
         runs: int = 8) -> dict[Key, Held]:  # fmt: skip
    """Every printed stage beside the true one, ``exact``, in the order of the model.

    Raises SampleError for a stage that the model does not have so.
    """
    for key, one in log.stages.items():
        if key not in exact or one.n > len(ids) or exact[key][0].size != one.size:
            raise SampleError(f"{key[0]} of layer {key[1]} has {one.n} x {one.size} elements in the log",
                              where="same-sample check: stages", remedy="Give the model and the ids that were printed")

    def noisy(seed: int) -> dict[Key, Noise]:
        errors: dict[Key, Noise] = {}
        draw = declared.noise(seed)

        def tap(stage: str, layer: int | None, activation: Any) -> Any:
            if (stage, layer) in log.stages:
                n, t = log.stages[stage, layer].n, exact[stage, layer]
                d = (np.asarray(activation, np.float64) - t).reshape(len(t), -1)[-n:]
                errors[stage, layer] = Noise(np.abs(d).max(1), abs(float(d.sum())), float(np.square(d).sum()) ** 0.5)
            return draw(stage, layer, activation)

        declared.noisy(oracle, seed).forward(ids, tap)
        return errors

    every = each_run(noisy, range(runs))
    return {key: _held(log.stages[key], exact[key], [one[key] for one in every]) for key in exact if key in log.stages}


class Noise(NamedTuple):
    """How far a noisy run is from the truth: its largest error at each position, that of its sum, the norm of all."""

    largest: np.ndarray
    of_sum: float
    norm: float


def _held(printed: Printed, exact: np.ndarray, noise: Sequence[Noise]) -> Held:
    t = exact.reshape(len(exact), -1)[-printed.n :].astype(np.float64)
    rows, columns = printed.at.T
    expected, floor = t[rows, columns], np.max([one.largest for one in noise], axis=0)[rows]
    off = np.abs(printed.values - expected) - HALF_DIGIT - 2.0**-24 * np.abs(expected)  # as printed, of an f32
    # An f32 sum added one by one: of terms of either sign, and of terms of one sign (``precision.py`` derives both).
    chain = 2.0**-24 * ((t.size / 6) ** 0.5 * np.linalg.norm(t) + t.size**0.5 / 3 * abs(t.sum()))
    limit = max(chain, *(max(one.of_sum, one.norm) for one in noise))
    off_sum = abs(printed.total - float(t.sum())) - 0.5e-6
    return Held(len(rows), t.size, _over(off, floor), _over(np.array([off_sum]), np.array([limit])))


def _over(off: np.ndarray, floor: np.ndarray) -> float:
    """The largest excess in floors; of a floor of zero none is allowed, and of what is not a number never."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(off <= 0, 0.0, np.where(np.isnan(off), np.inf, off / floor))
    return float(np.where(np.isnan(ratios), np.inf, ratios).max())
