"""Kill conversions with SIGKILL at random moments: the final name must always be absent, the old file, or complete.

    python -m tests.real.kill_convert                              # 200 kills with the built-in model, seconds
    python -m tests.real.kill_convert --kills 30 --source 1.5b.gguf

Each conversion runs in a forked process, so that no time goes into starting Python and the kills spread over the
writing itself. Targets take turns: APR, GGUF, a folder of three shards; every other time there is an old target to be
replaced. Complete means byte for byte what an undisturbed conversion writes. Exit code 1 if a name was ever anything
else.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.formats.conversion.convert import convert
from assay.formats.system.atomic_file import UNFINISHED
from assay.goldens import BUILTIN

TARGETS = ("x.apr", "x.gguf", "x")
OLD = b"what was there before"


def options_of(target: Path, source: Path) -> dict[str, object]:
    """How to convert to this target, whatever the types of the source."""
    return {"force": True, "treatment": "F32", "shard_bytes": source.stat().st_size if target.suffix == "" else None}


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a child process; its id. The child's exit code is 0, or 1 after any exception."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def kill_once(converter: Callable[..., object], source: Path, target: Path, seconds: float) -> bool:
    """Start a conversion, kill it after ``seconds``; whether it was still running."""
    child = forked(lambda: converter(source, target, **options_of(target, source)))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; "absent"."""
    if not path.exists():
        return "absent"
    whole = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        whole.update(f"{file.name if path.is_dir() else ''}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                whole.update(chunk)
    return whole.hexdigest()


def put_old(target: Path) -> None:
    """Something by the target's name that a forced conversion replaces."""
    if target.suffix:
        target.write_bytes(OLD)
    else:
        target.mkdir()
        (target / "config.json").write_bytes(OLD)


def clear(folder: Path) -> int:
    """Remove everything but what is unfinished, count that, and remove it, too."""
    left = 0
    for path in folder.iterdir():
        left += path.name.endswith(UNFINISHED)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return left


def careless(source: Path, target: Path, **options: Any) -> None:
    """A converter that writes under the final name: what the campaign has to catch."""
    temporary = target.with_name("other")
    convert(source, temporary, to="hf" if target.suffix == "" else target.suffix[1:], **options)
    if temporary.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        return
    content = temporary.read_bytes()
    temporary.unlink()
    with target.open("wb", buffering=0) as file:
        for at in range(0, len(content), 4096):
            file.write(content[at : at + 4096])
            time.sleep(0.001)


def campaign(source: Path, folder: Path, kills: int, seed: int, converter: Callable[..., object]) -> Counter[str]:
    """Outcomes of ``kills`` kills: "absent", "old", "complete", and "BROKEN", which must not occur."""
    moments = random.Random(seed)
    complete, old, seconds = {}, {}, {}
    for name in TARGETS:
        begun = time.perf_counter()
        converter(source, folder / name, **options_of(folder / name, source))
        seconds[name] = time.perf_counter() - begun
        complete[name] = digest(folder / name)
        clear(folder)
        put_old(folder / name)
        old[name] = digest(folder / name)
        clear(folder)
    outcomes: Counter[str] = Counter()
    while outcomes["killed"] < kills:
        turn = outcomes["killed"] + outcomes["finished first"]
        target, has_old = folder / TARGETS[turn % 3], turn // 3 % 2 == 1
        if has_old:
            put_old(target)
        killed = kill_once(converter, source, target, moments.uniform(0, 1.1 * seconds[target.name]))
        found = digest(target)
        states = {"absent": "absent", complete[target.name]: "complete", old[target.name]: "old"}
        state = states.get(found, "BROKEN")
        if state == "absent" and has_old and target.suffix:
            state = "BROKEN"  # a file is replaced in one step, so the old one may not vanish
        outcomes["killed" if killed else "finished first"] += 1
        outcomes[state] += 1
        outcomes["left .unfinished"] += clear(folder) > 0
        if state == "BROKEN":
            print(f"BROKEN: {target.name}, seed {seed}, turn {turn}")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--source", type=Path, default=BUILTIN)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a temporary folder)")
    parser.add_argument("--careless", action="store_true", help="use a converter that must be caught: exit code 1")
    arguments = parser.parse_args()
    converter = careless if arguments.careless else convert
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        outcomes = campaign(arguments.source, Path(folder), arguments.kills, arguments.seed, converter)
    print(", ".join(f"{n} {what}" for what, n in outcomes.items()))
    return 1 if outcomes["BROKEN"] else 0


if __name__ == "__main__":
    sys.exit(main())
