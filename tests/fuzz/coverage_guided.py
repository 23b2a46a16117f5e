"""Fuzz one format guided by coverage: a mutant that takes a new way through ``formats`` is kept and mutated further.

    pip install atheris                                              # into an environment of its own
    python -m tests.fuzz.coverage_guided gguf -max_total_time=300    # or apr, safetensors
    python -m tests.fuzz.coverage_guided gguf crash-0123abcd         # one file again

What follows the format goes to libFuzzer. The corpus lies in ``--corpus`` (by default under the system's folder for
temporary files) and begins with the seeds of ``seeds.py``; a third of the mutants are made by ``*_mutations.py`` as for
``run.py``, the others by libFuzzer from the corpus, half of the APR ones with their checksums made right again.
What fails is written to the working directory as ``crash-...``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris  # pyright: ignore[reportMissingImports]  not a dependency: it has no part in the tests

with atheris.instrument_imports(include=["assay.formats"], enable_loader_override=False):  # pyright: ignore
    import assay.formats.containers.apr
    import assay.formats.containers.gguf
    import assay.formats.containers.hf_folder
    import assay.formats.containers.safetensors  # noqa: F401  before anything else can import it uninstrumented

from tests.fuzz.apr_mutations import sealed
from tests.fuzz.seeds import FORMATS, MUTATED, Mutant, seeds
from tests.fuzz.trial import verdict_of, written

MAX_LENGTH = 1 << 16


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in FORMATS[:3]:
        sys.exit(f"{__doc__}\nGive a format: {', '.join(FORMATS[:3])}")
    format, options = sys.argv[1], sys.argv[2:]
    folders = [option.removeprefix("--corpus=") for option in options if option.startswith("--corpus=")]
    options = [option for option in options if not option.startswith("--corpus=")]
    if not any(Path(option).is_file() for option in options):
        options.append(str(corpus(format, folders)))
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
        path = Path(scratch) / "mutant"

        def one(content: bytes) -> None:
            verdict_of(written(path, Mutant("", content, 0)))

        def other(content: bytes, most: int, number: int) -> bytes:
            rng = Random(number)
            if rng.random() < 1 / 3:
                return MUTATED[format](rng.choice(seeds(format)).content, rng)[:most]
            content = atheris.Mutate(content, most)
            return sealed(content, rng) if format == "apr" and rng.random() < 0.5 else content

        atheris.Setup([sys.argv[0], f"-max_len={MAX_LENGTH}", "-timeout=5", "-rss_limit_mb=2048", *options], one,
                      custom_mutator=other)  # fmt: skip
        atheris.Fuzz()


def corpus(format: str, folders: list[str]) -> Path:
    """The folder of the corpus, the seeds in it."""
    folder = Path(folders[0] if folders else f"{tempfile.gettempdir()}/assay-fuzz-corpus-{format}")
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds(format)):
        (folder / f"seed-{i}").write_bytes(seed.content + bytes(seed.tail if seed.tail < MAX_LENGTH else 0))
    return folder


if __name__ == "__main__":
    main()
