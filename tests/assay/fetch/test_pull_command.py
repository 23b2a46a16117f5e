"""``assay pull`` as typed: what it prints, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assay import cli
from assay.fetch.catalogue import Url, catalogue
from tests.assay.fetch.stand_ins import BODY, NAME, Server

pytestmark = pytest.mark.usefixtures("home")


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["assay", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_command(server: Server, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    offer(Url(server.address))
    arguments = ["pull", NAME, "--folder", str(tmp_path / "here")]
    assert run(arguments, monkeypatch) == 0
    assert capsys.readouterr().out == f"{tmp_path}/here/toy.gguf\n"
    assert run([*arguments, "--json"], monkeypatch) == 0
    sha256 = hashlib.sha256(BODY).hexdigest()
    facts = {"name": NAME, "path": f"{tmp_path}/here/toy.gguf", "size": len(BODY), "sha256": sha256}
    assert json.loads(capsys.readouterr().out) == facts
    assert len(server.seen) == 1
    assert run([*arguments, "--force"], monkeypatch) == 0
    assert len(server.seen) == 2


def test_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "--list", "--json"], monkeypatch) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [(m["name"], m["path"]) for m in models] == [(name, None) for name in catalogue()]
    assert run(["pull", "--list"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "qwen2.5-coder-1.5b" in shown and "Hugging Face, then the package index" in shown
    assert [m["sources"] for m in models] == [["Hugging Face", "package index"]] * 2


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nosuch"], 2), (["toy", "--list"], 2), (["toy"], 6)])
def test_exit_codes(arguments: list[str], code: int, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    offer(Url("file:///no/such/file"))
    assert run(["pull", *arguments], monkeypatch) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("assay: ")
