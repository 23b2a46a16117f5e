"""The C program of docs/dumps.md, as it stands there: compiled, run, and what it writes judged."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from assay.formats.system.progress import quiet
from assay.judging.dumps import judge_dump, opened_dump
from assay.judging.engines_under_test import UnderTest
from assay.parity.stages import capture
from assay.parity.verdict import Verdict
from tests.planted import IDS

DOCS = Path(__file__).parents[2] / "docs" / "dumps.md"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (source,) = [text for text in re.findall(r"```c\n(.*?)```", DOCS.read_text(), re.DOTALL) if "int main" in text]
    assert len(source.splitlines()) <= 62
    folder = tmp_path_factory.mktemp("c")
    (folder / "dump.c").write_text(source)
    made = folder / "dump"
    subprocess.run([compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-D_POSIX_C_SOURCE=200809L", "-o", made,
                    folder / "dump.c"], check=True)  # fmt: skip
    return made


@pytest.mark.parametrize("spoiled", [False, True])
def test_what_the_program_writes_is_judged(spoiled: bool, program: Path, judged: UnderTest, tmp_path: Path) -> None:
    shown = capture(judged.oracle, IDS)
    embedding, norm = (shown[key].astype(np.float32) for key in (("embedding", None), ("attn_norm", 0)))
    norm[1, 7] *= 1.01 if spoiled else 1
    subprocess.run([program, tmp_path / "d", judged.file.sha256, str(embedding.shape[1]), *map(str, IDS)], check=True,
                   input=embedding.tobytes() + norm.tobytes())  # fmt: skip
    found = judge_dump(opened_dump(tmp_path / "d", judged.file, None, IDS, False, None), 2, quiet)
    assert found is not None
    assert found.verdict == (Verdict.BUG if spoiled else Verdict.NOISE)
    assert found.finding.site == (("attn_norm", 0) if spoiled else None)
