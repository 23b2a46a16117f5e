"""The class of docs/adapters.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[3] / "docs" / "adapters.md"


def test_the_twenty_lines_of_the_docs(builtin_f32: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"<!-- class -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code is not None
    body = code[1][code[1].index("class Mine") : code[1].index("print(")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
    exec(code[1], {"inner": builtin_f32})
    said = capsys.readouterr().out
    assert said.startswith("NOISE: ") and "tokens by prefill" in said
