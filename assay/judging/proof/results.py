"""Running mutants one after the other, and keeping what became of each: a run that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import assay
from assay.formats import InputError, ModelFile
from assay.formats.system.progress import Progress
from assay.judging.engines_under_test import baseline
from assay.judging.proof.bench import Bench, Record
from assay.judging.proof.candidate import Candidate, DoesNotApply, Shared, instrumented
from assay.judging.proof.gates import Sample, gates
from assay.judging.proof.outputs import FEW
from assay.parity.mutants import CATALOGUE, smaller
from assay.parity.mutants.record import Mutant
from assay.parity.precision import Key

MERGE_GATES = ("sample", "audit", "second reading", "parity, prefill", "parity, decode", "flips, prefill",
               "flips, decode", "generate, raw", "generate, chat")  # fmt: skip
MERGE_EVERY = 3
"""Of each family every so manieth mutant is in the merge tier, its first included."""
FILE, FACTS = "results.jsonl", "run.json"


def chosen(tier: str, families: Sequence[str], names: Sequence[str], curves: bool) -> list[Mutant]:
    """The mutants of a tier, of some families, or by name. Raises InputError for a name that there is not."""
    everything = [*CATALOGUE, *smaller()]
    if names:
        by_name = {mutant.name: mutant for mutant in everything}
        if unknown := [name for name in names if name not in by_name]:
            raise InputError(f"there is no mutant {unknown[0]!r}", where="--mutant",
                             remedy="'assay prove --list' names them")  # fmt: skip
        return [by_name[name] for name in names]
    found: list[Mutant] = list(CATALOGUE)
    if tier == "merge":
        seen: dict[str, int] = {}
        found = []
        for mutant in CATALOGUE:
            seen[mutant.family] = seen.get(mutant.family, -1) + 1
            if seen[mutant.family] % MERGE_EVERY == 0:
                found.append(mutant)
    if curves:
        found += smaller()
    known = {mutant.family for mutant in everything}
    if wrong := [family for family in families if family not in known]:
        raise InputError(f"there is no family {wrong[0]!r}", where="--family",
                         remedy=f"Choose of {', '.join(sorted(known))}")  # fmt: skip
    return [mutant for mutant in found if not families or mutant.family in families]


def run(file: ModelFile, mutants: Sequence[Mutant], ariths: Sequence[str], sample: Sample, out: Path | None,
        only: Sequence[str] | None, progress: Progress) -> Iterator[Record]:  # fmt: skip
    """A record of every mutant in every arithmetic, the clean twin's first; those that ``out`` holds are not run again.

    Raises InputError for a folder that another version, or another model, has written to.
    """
    known = {(r.mutant, r.arith): r for r in stored(out, file)} if out else {}
    done, total = 0, len(ariths) * (len(mutants) + 1)
    shared = None
    for arith in ariths:
        todo = [m for m in mutants if (m.name, arith) not in known]
        if ("", arith) in known and not todo:
            yield from (known[name, arith] for name in ("", *(m.name for m in mutants)))
            continue
        with instrumented(arith):
            progress(done, total, f"{arith}: the clean twin")
            shared = shared or Shared(baseline(file))
            asked = {name: gate for name, gate in gates(sample, arith).items() if only is None or name in only}
            bench = Bench(Candidate(file, arith), shared, asked, FEW if only else None)
            clean = bench.clean()
            if ("", arith) not in known:
                keep(out, clean)
            yield clean
            for mutant in mutants:
                done += 1
                progress(done, total, f"{arith}: {mutant.name}")
                record = known.get((mutant.name, arith))
                if record is None:
                    try:
                        record = bench.run(mutant)
                    except DoesNotApply as error:
                        record = Record(mutant.name, mutant.family, arith, "other engine", mutant.site, mutant.real_bug,
                                        {}, [], {}, {}, note=str(error))  # fmt: skip
                    keep(out, record)
                yield record


def code() -> str:
    """The sources of judge, engines and catalogue as one number."""
    root, total = Path(assay.__file__).parent, hashlib.sha256()
    for folder in ("parity", "accel", "reference", "judging", "formats"):
        for path in sorted((root / folder).rglob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()


def stored(out: Path, file: ModelFile) -> list[Record]:
    """The records in a folder, which is made if it is not there."""
    facts = {"model": file.sha256, "code": code()}
    where = out / FACTS
    if where.exists():
        if json.loads(where.read_text()) != facts:
            raise InputError("these results are of another model or another version of Assay", where=f"--out {out}",
                             remedy="Give a new folder, or delete this one")  # fmt: skip
        return read(out)
    out.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(facts))
    return []


def read(out: Path) -> list[Record]:
    """The records in a folder; a line that was cut off is left out. Raises InputError where there are none."""
    path = out / FILE
    if not path.exists():
        return []
    return [record for line in path.read_text().splitlines() if (record := record_of(line))]


def record_of(line: str) -> Record | None:
    """A record from its line."""
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    facts["declared"] = site_of(facts["declared"])
    for one in facts["gates"].values():
        one["site"] = site_of(one["site"])
    return Record(**{field.name: facts[field.name] for field in fields(Record)})


def site_of(value: Any) -> Key | None:
    """A site as JSON has it."""
    return None if value is None else (value[0], value[1])


def keep(out: Path | None, record: Record) -> None:
    """Append a record."""
    if out is not None:
        with (out / FILE).open("a") as file:
            file.write(json.dumps(finite(asdict(record)), default=float) + "\n")


def finite(value: Any) -> Any:
    """What JSON can hold: no infinity."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


