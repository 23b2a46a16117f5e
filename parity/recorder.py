"""Writing a dump: a tap that puts each stage on the disk as it is shown, so memory does not grow with depth.

    with recording(folder, sample, literal, fingerprint) as tap:    # DIR.3f9c21ab.unfinished
        engine.forward(ids, tap)                                    # here it becomes DIR, whole
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from assay.formats.contract.config import LAYER_STAGES, WHOLE_MODEL_STAGES
from assay.formats.errors import InputError
from assay.formats.system.atomic_file import cannot_write, sync, unfinished
from assay.formats.system.atomic_folder import demand_replaceable, place_folder
from assay.parity import aprt
from assay.parity.dump import FORMAT, LAYOUTS, MANIFEST, VERSION, file_of, npy_header
from assay.parity.precision import Key
from assay.parity.sample import Sample

OF_A_DUMP = re.compile(
    rf"{re.escape(MANIFEST)}|({aprt.LAYER_FOLDER.pattern}/)?(({'|'.join([*WHOLE_MODEL_STAGES, *LAYER_STAGES])})\.npy"
    rf"|({'|'.join([*aprt.HOLDS, *aprt.ALIAS.values()])})\.bin)?"
)
"""What a dump is made of; nothing else is deleted by --force."""


class Values(NamedTuple):
    """What the elements of a stage look like; NaN and infinities are counted, and are in none of the others."""

    mean: float
    std: float
    """Sample standard deviation (n - 1)."""
    min: float
    max: float
    nan: int
    inf: int

    @classmethod
    def of(cls, x: np.ndarray) -> Values:
        """Those of ``x``, in f64; NaN where no element is finite."""
        nan, inf = int(np.isnan(x).sum()), int(np.isinf(x).sum())
        finite = x[np.isfinite(x)].astype(np.float64)
        if not finite.size:
            return cls(np.nan, np.nan, np.nan, np.nan, nan, inf)
        std = float(finite.std(ddof=1)) if finite.size > 1 else 0.0
        return cls(float(finite.mean()), std, float(finite.min()), float(finite.max()), nan, inf)


class Recorder:
    """The tap; ``values`` of each stage that it was shown."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.folder, self.layout = folder, layout
        self.stages: list[dict[str, Any]] = []
        self.values: dict[Key, Values] = {}
        self.trouble: OSError | None = None
        """What the system refused; kept, because an engine may turn what a tap raises into errors of its own."""
        self._waiting: dict[Key, np.ndarray] = {}

    def __call__(self, stage: str, layer: int | None, activation: Any) -> Any:
        """Write a stage, and go on with it unchanged."""
        if self.trouble is None:
            try:
                self._write(stage, layer, np.asarray(activation))
            except OSError as error:
                self.trouble = error
        return activation

    def _write(self, stage: str, layer: int | None, x: np.ndarray) -> None:
        double = x.dtype == np.float64 and self.layout == "npy"
        name, dtype = file_of(stage, layer, self.layout), "<f8" if double else "<f4"
        self.values[stage, layer] = Values.of(x)
        self.stages.append({"stage": stage, "layer": layer, "shape": list(x.shape), "dtype": dtype, "file": name})
        if self.layout == "npy":
            self._put(name, npy_header(x.shape, dtype), x.astype(dtype))
            return
        self._waiting[stage, layer] = x.copy()
        together = [(part, layer) for part in aprt.HOLDS[aprt.NAME_OF[stage]]]
        if all(key in self._waiting for key in together):
            whole = aprt.joined([self._waiting.pop(key) for key in together])
            self._put(name, aprt.header(layer, whole.size), whole)

    def _put(self, name: str, header: bytes, elements: np.ndarray) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            file.write(header)
            file.write(np.ascontiguousarray(elements).data)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest. Raises OSError, also one that came up earlier."""
        if self.trouble is not None:
            raise self.trouble
        self._put(MANIFEST, json.dumps({**manifest, "stages": self.stages}).encode(), np.empty(0, np.uint8))
        for name in {str(Path(stage["file"]).parent) for stage in self.stages}:
            sync(self.folder / name)


@contextmanager
def recording(folder: Path, sample: Sample, literal: Sequence[tuple[int, int]], fingerprint: Mapping[str, Any], *,
              layout: str = "npy", force: bool = False) -> Iterator[Recorder]:  # fmt: skip
    """A tap that fills ``folder``, which comes into being when the block ends without an exception.

    ``literal``: the ranges of the sample's text that hold no control tokens. Raises InputError: no such layout, there
    is something in the folder (with ``force``: something that is no part of a dump), or it cannot be written.
    """
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}", where="--layout",
                         remedy=f"Choose one of {', '.join(LAYOUTS)}")  # fmt: skip
    final = Path(os.path.realpath(folder))
    prompt = None if sample.text is None else {"text": sample.text, "literal": list(map(list, literal))}
    manifest = {"format": FORMAT, "version": VERSION, "layout": layout, "ids": list(sample.ids), "prompt": prompt,
                "weights": sample.weights, "engine": dict(fingerprint)}  # fmt: skip
    temporary = unfinished(final)
    try:
        demand_replaceable(final, force=force, parts=OF_A_DUMP, of="a dump")
        temporary.mkdir()
        recorder = Recorder(temporary, layout)
        yield recorder
        recorder.finish(manifest)
        demand_replaceable(final, force=force, parts=OF_A_DUMP, of="a dump")
        place_folder(temporary, final)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
