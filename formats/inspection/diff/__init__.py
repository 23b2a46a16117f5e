"""What differs between two model files, of one format or of two: structure, bytes, values, and what happened to them.

    report = compare(open_container("a.gguf"), open_container("b.apr"))
    report.same                                   # may one stand for the other?
    [pair.diagnoses for pair in report.pairs if pair.diagnoses]

Tensors are paired by their common names (qwen2/tensor_names.py). Metadata is compared key by key between files of one
format, and fact by fact (hyper-parameters, vocabulary, template) between two. Where tensors lie in the file, and in
which order, makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

from assay.formats.containers.base import Container, TensorInfo
from assay.formats.contract.arguments import checked
from assay.formats.inspection.diff.diagnosis import Diagnosis, diagnoses, of_missing, of_moved, of_names
from assay.formats.inspection.diff.measure import Measures, difference, identical, measure
from assay.formats.inspection.diff.metadata import Change, changes
from assay.formats.inspection.row_chunks import readable
from assay.formats.qwen2.tensor_names import common_names
from assay.formats.system.progress import Progress, Tick, quiet
from assay.formats.system.workers import each

__all__ = ["Change", "Diagnosis", "Measures", "Pair", "Report", "compare"]


@dataclass(frozen=True)
class Pair:
    """One tensor in both files."""

    name: str
    """The common name."""
    a: TensorInfo
    b: TensorInfo
    identical: bool
    """The stored bytes, the type and the shape are the same."""
    first_difference: dict[str, int] | None
    """Where the stored bytes first differ (type and size being the same): absolute ``offset_a``, ``offset_b``,
    ``byte`` within the tensor, and its ``block``."""
    measures: Measures | None
    """Of the decoded values; None where they are identical, of other shapes, or cannot be decoded."""
    diagnoses: tuple[Diagnosis, ...]

    def same_values(self, tolerance: float = 0.0) -> bool:
        """Whether the values agree up to a relative RMS of ``tolerance`` (in the same shape)."""
        if self.identical:
            return True
        m = self.measures
        return m is not None and not m.not_finite and (m.n_different == 0 or m.relative_rms <= tolerance > 0)


@dataclass(frozen=True)
class Report:
    """Everything that differs."""

    naming: tuple[str, str]
    changes: tuple[Change, ...]
    only_a: tuple[TensorInfo, ...]
    only_b: tuple[TensorInfo, ...]
    pairs: tuple[Pair, ...]
    diagnoses: tuple[Diagnosis, ...]
    """Of the files as a whole."""

    def same(self, *, values_only: bool = False, tolerance: float = 0.0) -> bool:
        """Whether nothing differs. ``values_only`` leaves metadata and storage types aside; ``tolerance`` is the
        relative RMS up to which the values of a tensor count as the same."""
        if self.only_a or self.only_b or not all(pair.same_values(tolerance) for pair in self.pairs):
            return False
        types = all(pair.a.type.name == pair.b.type.name for pair in self.pairs)
        return values_only or (types and not self.changes)


@checked
def compare(a: Container, b: Container, *, progress: Progress = quiet) -> Report:
    """Compare two files; tensors are read in chunks, so memory does not grow with them."""
    ours, theirs = common_names(a.tensors), common_names(b.tensors)
    common = [name for name in ours if name in theirs]
    nbytes = {name: ours[name].nbytes + theirs[name].nbytes for name in common}

    def work(name: str, tick: Tick) -> Pair:
        return _pair(name, a, ours[name], b, theirs[name], tick)

    pairs = each(work, nbytes, files=[a, b], progress=progress, label="comparing tensors")
    only_a = tuple(info for name, info in ours.items() if name not in theirs)
    only_b = tuple(info for name, info in theirs.items() if name not in ours)
    naming, notes = of_names(a, b)
    notes += of_missing(a, only_a, "A", "B") + of_missing(b, only_b, "B", "A")
    unexplained = [(pair.name, pair.a, pair.b, pair.measures) for pair in pairs.values()
                   if pair.measures is not None and not pair.diagnoses]  # fmt: skip
    notes += of_moved(a, b, unexplained)
    return Report(naming, tuple(changes(a, b)), only_a, only_b, tuple(pairs.values()), tuple(notes))


def _pair(name: str, a: Container, ours: TensorInfo, b: Container, theirs: TensorInfo, tick: Tick) -> Pair:
    same_kind = ours.type.name == theirs.type.name and ours.nbytes == theirs.nbytes
    at = difference(a, ours, b, theirs) if same_kind else None
    equal = same_kind and at is None
    if equal and ours.shape == theirs.shape:
        tick(ours.nbytes + theirs.nbytes)
        return Pair(name, ours, theirs, True, None, None, ())
    first = None if at is None else {
        "offset_a": ours.offset + at, "offset_b": theirs.offset + at, "byte": at, "block": at // ours.type.block_bytes
    }  # fmt: skip
    measures = None
    if readable(a, ours.name) and readable(b, theirs.name) and ours.shape == theirs.shape:
        measures = measure(a, ours, b, theirs, tick)
    else:
        tick(ours.nbytes + theirs.nbytes)
    found = diagnoses(a, ours, b, theirs, measures, same_bytes=equal)
    return Pair(name, ours, theirs, False, first, measures, tuple(found))


def same_file(a: Container, b: Container) -> bool:
    """Whether the two files hold the same bytes from end to end."""
    return a.size == b.size and identical(a, b)
