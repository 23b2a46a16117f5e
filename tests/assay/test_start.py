"""What a start does not wait for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from assay.cli import app_for, main
app_for(["--help"])
sys.argv = ["assay", "run", "def", "--max-tokens", "1"]
try:
    main()
except SystemExit as end:
    print("exit", end.code, *sorted({"gguf", "matplotlib", "scipy", "torch", "transformers",
                                   "xllamacpp"} & set(sys.modules)))
"""


def test_help_and_run_import_no_library_that_only_the_judge_or_a_picture_needs() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "exit 0", done.stdout
