"""Is the file what our readers say? A second reading, by code that shares nothing with ``formats/``.

    GGUF                  the ``gguf`` package
    APR                   ``apr_by_spec.py``, written from the format's description
    Hugging Face folder   its JSON as it stands, and the ``tokenizers`` library; with ``values`` also transformers, if
                          that is installed

Everything else in this project rests on one reading of the file: truth, oracle and candidate are given the same config,
vocabulary, template and tensors (``formats/model_file.py``). A rope_theta misread there is wrong on every side, and no
comparison of engines shows it. So what they are given is held against what another reader makes of the same bytes. If
the two differ, it is not known which is wrong; what is known is that no agreement of engines means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

from assay.formats import AssayError, ModelFile
from assay.formats.contract.arguments import checked
from assay.formats.system.progress import Progress, quiet
from assay.judging.independent import apr_by_spec, gguf_package, hf_by_json, hf_by_transformers
from assay.judging.independent.compare import Difference, differences, different_facts, different_values, facts_of
from assay.judging.independent.kept import keep, known
from assay.judging.independent.reading import Reading, Unread

KEPT_FROM = 1 << 14
"""Elements of arrays in a GGUF: to read fewer takes less than to look whether they were read before."""


class SecondReading(NamedTuple):
    """What came of reading a file a second time."""

    reader: str
    """Who read it."""
    differences: tuple[Difference, ...] = ()
    facts: int = 0
    """How many were compared: hyper-parameters, parts of the vocabulary, the template."""
    tensors: int = 0
    """Whose names, types, shapes and places were compared."""
    values: int = 0
    """Decoded weights that were compared, bit for bit; 0 unless asked for."""
    failed: str = ""
    """Why there was no second reading; empty if there was."""

    @property
    def says(self) -> str:
        """One line."""
        if self.failed:
            return f"the file was not read a second time by {self.reader}: {self.failed}"
        if self.differences:
            fact, ours, theirs = self.differences[0]
            more = f", and {len(self.differences) - 1} more differ" if len(self.differences) > 1 else ""
            return f"two readers of the file differ: {fact} is {ours} by Assay's, {theirs} by {self.reader}{more}"
        decoded = f", and {self.values:,} decoded weights bit for bit" if self.values else ""
        return f"the file read a second time, by {self.reader}: {self.facts} facts and {self.tensors} tensors{decoded}"


@checked
def check(file: ModelFile, *, values: bool = False, progress: Progress = quiet) -> SecondReading:
    """Hold what ``file`` says against another reader; with ``values`` every decoded weight, too.

    Of each tensor the bytes of its first and last row are compared in any case: one read at a wrong place is seen.
    What the second reader raises is no error here, but the reason why there was no second reading.
    """
    reader, read = READERS[file.format]
    try:
        theirs, found = read(file)
        if values and file.format == "hf" and hf_by_transformers.installed():
            third = hf_by_transformers.read(file.path)
            found += different_facts(facts_of(file), third.facts)
            theirs = theirs._replace(reader=f"{theirs.reader}, {third.reader}")
    except Unread as reason:
        return SecondReading(reader, failed=str(reason))
    except AssayError:  # ours could not read on: the file has changed, or holds NaN
        raise
    except Exception as error:  # a package of others may raise anything
        return SecondReading(reader, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    tensors = file.tensors.keys() & theirs.tensors.keys()
    wrong = {one.fact.removeprefix("tensor ").partition(",")[0] for one in found}
    decoded = sorted(tensors - wrong) if values else []
    for i, name in enumerate(decoded):
        progress(i, len(decoded), "second reading")
        found += different_values(file.tensors[name], theirs.tensors[name])
    n_values = sum(prod(theirs.tensors[name].shape) for name in decoded)
    return SecondReading(theirs.reader, tuple(found), len(theirs.facts), len(tensors), n_values)


Found = tuple[Reading, list[Difference]]


def by_gguf(file: ModelFile) -> Found:
    """By the ``gguf`` package; a large file's reading is kept, and made anew where it differs from ours."""
    n_items = sum(len(value.items) for value in file.metadata.stored.values())  # pyright: ignore[reportAttributeAccessIssue]
    if n_items > KEPT_FROM and (theirs := known(file)) is not None and not (found := list(differences(file, theirs))):
        return theirs, found
    theirs = gguf_package.read(file.files, n_items)
    if n_items > KEPT_FROM:
        keep(file, theirs)
    return theirs, list(differences(file, theirs))


def by_spec(file: ModelFile) -> Found:
    """By ``apr_by_spec``."""
    return (theirs := apr_by_spec.read(file.path)), list(differences(file, theirs))


def by_json(file: ModelFile) -> Found:
    """By ``hf_by_json``."""
    return (theirs := hf_by_json.read(file.path, file.files)), list(differences(file, theirs))


READERS: Mapping[str, tuple[str, Callable[[ModelFile], Found]]] = {
    "gguf": ("the gguf package", by_gguf),
    "apr": ("a second reader of APR", by_spec),
    "hf": ("JSON as it stands", by_json),
}
"""By the format: who reads it, in words, and how."""
