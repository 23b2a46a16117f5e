"""Try mutated model files by the hundred thousand: only an AssayError may come out, at once and at no cost.

    python -m tests.fuzz.run --cases 100000                        # a minute or so
    python -m tests.fuzz.run --cases 1000000 --start 5000000 --json summary.json
    python -m tests.fuzz.run --formats apr --start 1234 --cases 1   # one case again

Case N of a format is always the same file. Failures are kept in ``--failures`` as files of the name
``FORMAT-N.EXCEPTION``; one that is small belongs into ``tests/fuzz/regressions/``, compressed. Memory is limited to
what the process has at the start and 200 MB, so that an allocation beyond is an exception like any other; NumPy's
warnings are exceptions as well. Exit code 1 if any case failed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.progress import bar
from tests.fuzz.seeds import FORMATS, Mutant, mutant, seeds
from tests.fuzz.trial import peak_of, verdict_of, written

MAX_SECONDS = 1.0
MAX_BYTES = 200 << 20
TRACED_EVERY = 1000
STRICT_EVERY = 8
KEPT_AT_MOST = 100


@dataclass
class Tally:
    """What came of the cases so far."""

    cases: Counter[str] = field(default_factory=Counter)
    verdicts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    """By format and first line."""
    slowest: tuple[float, str, int] = (0.0, "", 0)
    """Seconds, format, case; the slower of a slow one's two runs."""
    traced_peak: int = 0
    over_a_second: list[tuple[str, int, float, float]] = field(default_factory=list)
    """Format, case, seconds, seconds when run again."""
    spent: float = 0.0

    def summary(self) -> dict[str, Any]:
        """For JSON; verdicts most frequent first."""
        return {
            "cases": sum(self.cases.values()), "by_format": dict(self.cases), "seconds": round(self.spent, 1),
            "verdicts": {f: dict(v.most_common()) for f, v in self.verdicts.items()},
            "failures": dict(self.failures.most_common()),
            "slowest": dict(zip(("seconds", "format", "case"), self.slowest, strict=True)),
            "over_a_second": self.over_a_second,
            "traced_peak_bytes": self.traced_peak, "max_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }  # fmt: skip


def limit_memory() -> None:
    """No more address space than there is now and MAX_BYTES."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def tried(tally: Tally, path: Path, format: str, number: int, failures: Path) -> None:
    """One case, counted."""
    content = mutant(format, number)
    path = written(path, content)
    begin = time.perf_counter()
    try:
        verdict = verdict_of(path, strict=number % STRICT_EVERY == 0)
        if number % TRACED_EVERY == 0:
            tally.traced_peak = max(tally.traced_peak, peak_of(path))
        seconds = time.perf_counter() - begin
    except Exception as error:
        keep(tally, failures, format, number, content, error)
        return
    if seconds > MAX_SECONDS:  # the machine may have been busy elsewhere
        begin = time.perf_counter()
        verdict_of(path, strict=number % STRICT_EVERY == 0)
        again = time.perf_counter() - begin
        tally.over_a_second.append((format, number, seconds, again))
        if again > MAX_SECONDS:
            keep(tally, failures, format, number, content, TimeoutError(f"{again:.1f} s"))
        seconds = again
    tally.cases[format] += 1
    tally.verdicts[format][verdict] += 1
    tally.slowest = max(tally.slowest, (seconds, format, number))


def keep(tally: Tally, failures: Path, format: str, number: int, content: Mutant, error: Exception) -> None:
    """Count a failure; write its file and its traceback, unless there are enough of the kind."""
    where = traceback.extract_tb(error.__traceback__)
    place = f"{Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
    kind = f"{format}: {type(error).__name__} {place} {str(error)[:60]!r}"
    tally.cases[format] += 1
    tally.failures[kind] += 1
    if tally.failures[kind] > 3 or len(tally.failures) > KEPT_AT_MOST:
        return
    name = failures / f"{format}-{number}.{type(error).__name__}"
    written(name, content)
    text = "".join(traceback.format_exception(error))
    name.with_suffix(".txt").write_text(f"seed {content.seed}, tail {content.tail}\n{text[-20000:]}", errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, formats take turns")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--start", type=int, default=0, help="number of the first case of each format")
    parser.add_argument("--failures", type=Path, default=Path(tempfile.gettempdir()) / "assay-fuzz-failures")
    parser.add_argument("--json", type=Path, help="write the summary here as well, now and then and at the end")
    args = parser.parse_args()
    formats = args.formats.split(",")
    if unknown := set(formats) - set(FORMATS):
        parser.error(f"no format {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
    args.failures.mkdir(parents=True, exist_ok=True)
    tally = Tally(verdicts={format: Counter() for format in formats})
    for format in formats:
        seeds(format)
    limit_memory()
    warnings.simplefilter("error")  # a warning of NumPy's about a file's numbers would land on the user's screen
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch, bar() as progress:
        for i in range(args.cases):
            number = args.start + i // len(formats)
            tried(tally, Path(scratch) / "mutant", formats[i % len(formats)], number, args.failures)
            if i % 1000 == 0:
                tally.spent = time.perf_counter() - begin
                progress(i, args.cases, "mutants tried")
                if args.json and i % 20_000 == 0:
                    args.json.write_text(json.dumps(tally.summary(), indent=1))
                if tally.spent > args.seconds:
                    break
    tally.spent = time.perf_counter() - begin
    text = json.dumps(tally.summary(), indent=1)
    if args.json:
        args.json.write_text(text)
    print(text)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
