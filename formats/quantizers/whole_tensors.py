"""A model's tensors in other types, made one at a time as a writer asks for them.

    tensors = quantized_arrays({"token_embd.weight": array, ...}, "Q4_K_M")       # f32 arrays in memory
    write_gguf("model.gguf", metadata, tensors)
    [(t.name, t.type.name, t.shape, t.read()) for t in tensors]                   # or take the bytes oneself

A tensor of a file goes through `Requantized`, which also measures what was lost. Work is cut into pieces of some rows,
done on several threads; memory holds the result of one tensor and a piece for each thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from assay.formats import blocks
from assay.formats.blocks.ggml_types import BY_NAME, GGMLType
from assay.formats.containers.base import Stored
from assay.formats.contract.arguments import checked
from assay.formats.errors import InputError
from assay.formats.quantizers import CHUNK_ELEMENTS, quantize
from assay.formats.quantizers.quantization_mix import chosen_types
from assay.formats.system.cpus import processors
from assay.formats.system.progress import Progress, Tick, quiet


class Rows(Protocol):
    """What can give its rows as f32: `assay.formats.model_file.Tensor` is one, `Array` below another."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def n_rows(self) -> int: ...
    def rows(self, start: int, stop: int) -> np.ndarray:
        """f32 ``[stop - start, row length]``."""
        ...


@dataclass(frozen=True)
class Array:
    """An f32 array in memory as `Rows`."""

    name: str
    values: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.values.reshape(-1, self.shape[-1])[start:stop]


@dataclass
class Requantized:
    """A tensor on its way into another type."""

    source: Rows
    type: GGMLType
    progress: Tick = field(default=quiet, repr=False)
    """Told the number of elements done since it was last called."""
    lost: float | None = None
    """After `read`: ``sqrt(sum (x - y)^2 / sum x^2)``, x the source's values and y those of the bytes; 0 for 0/0."""

    def stored(self) -> Stored:
        """For a writer: quantised when its bytes are asked for."""
        return Stored(self.source.name, self.type, self.source.shape, self.read)

    def read(self) -> np.ndarray:
        """The bytes, uint8 ``[n_rows, row_bytes]``. Raises what `quantize` raises, naming tensor and element."""
        source, n = self.source, self.source.shape[-1]
        n_rows = math.prod(source.shape[:-1])
        out = np.empty((n_rows, n // self.type.block_elements * self.type.block_bytes), np.uint8)
        step = max(1, CHUNK_ELEMENTS // max(n, 1))

        def work(start: int) -> tuple[int, float, float]:
            x = source.rows(start, min(start + step, n_rows))
            raw = quantize(self.type.name, x, where=f"tensor {source.name!r}", first_row=start, threads=1)
            out[start : start + step] = raw
            missed = x - blocks.dequantize(self.type.name, raw)
            return x.size, squares(missed), squares(x)

        noise = signal = 0.0
        with ThreadPoolExecutor(processors()) as pool:
            for size, missed, present in pool.map(work, range(0, n_rows, step)):
                noise, signal = noise + missed, signal + present
                self.progress(size)
        self.lost = math.sqrt(noise / signal) if signal else 0.0
        return out


def squares(x: np.ndarray) -> float:
    """``sum x^2`` with f64 partial sums."""
    return float(np.square(x).sum(dtype=np.float64))


@checked
def quantized_arrays(arrays: Mapping[str, np.ndarray], mix: str, *, pure: bool = False,
                     progress: Progress = quiet) -> list[Stored]:  # fmt: skip
    """f32 arrays by their names in a GGUF file -> tensors of the mix, in the same order, vectors in F32.

    Each is quantised when its ``read()`` is called; ``progress`` counts elements. Raises InputError for an unknown
    quantization mix and for an array that is not f32 or has no axis; ``read()`` raises what `quantize` raises.
    """
    if wrong := [name for name, array in arrays.items() if array.dtype != np.float32 or array.ndim == 0]:
        raise InputError(f"it is {arrays[wrong[0]].dtype} with {arrays[wrong[0]].ndim} axes, not f32 with one or more",
                         where=f"tensor {wrong[0]!r}", remedy="Convert it to float32")  # fmt: skip
    types = chosen_types({name: array.shape for name, array in arrays.items()}, mix, pure=pure)
    count = counting(sum(array.size for array in arrays.values()), progress)
    return [
        Requantized(Array(name, array), BY_NAME[types.get(name, "F32")], count).stored()
        for name, array in arrays.items()
    ]


def counting(total: int, progress: Progress) -> Callable[[int], None]:
    """A callback that adds up what it is told and passes the sum on as ``progress(done, total, "quantising")``."""
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total, "quantising")

    return count


def census(tensors: list[tuple[str, int, int]]) -> dict[str, Any]:
    """(type, elements, bytes) of every tensor -> tensors a type, bytes of weights, bits a weight."""
    types: dict[str, int] = {}
    for kind, _, _ in tensors:
        types[kind] = types.get(kind, 0) + 1
    elements, nbytes = sum(n for _, n, _ in tensors), sum(n for _, _, n in tensors)
    return {
        "types": dict(sorted(types.items(), key=lambda item: (-item[1], item[0]))),
        "tensors": len(tensors),
        "weights": nbytes,
        "bits_per_weight": round(8 * nbytes / elements, 3) if elements else 0.0,
    }
