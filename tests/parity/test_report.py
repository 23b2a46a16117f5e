"""The page: well-formed, self-contained, and nothing in a model's text can become markup, or hide."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from assay.goldens import BUILTIN
from assay.parity.report import Cell, Token, heat, page, visible
from tests.assay.command_line import assay

CELLS = [Cell("embedding", None, 0.0, 0.0, 0.0, 1.0), Cell("ffn_out", 0, 1.1, 1e-7, 2e-7, 1.0),
         Cell("ffn_out", 1, 90.0, 1e-3, 1e-3, 0.98)]  # fmt: skip
TOKENS = [Token("<script>", "alert('x')", 3.0, 0.1, 1e-9, False), Token("\n  a&b", '"', 0.01, 0.1, 0.46, True),
          Token("sure", "!", 2.0, 0.0, 0.0, False)]  # fmt: skip


def drawn(**changes: Any) -> str:
    given: dict[str, Any] = {"title": "a <b>", "verdict": "BUG", "green": False, "reason": "at ffn_out of layer 1",
                             "facts": {"file": "/tmp/<x>"}, "command": "assay parity '<'", "cells": CELLS,
                             "tolerance": 4.0,
                             "tokens": TOKENS, "flips": "1 of 3"}  # fmt: skip
    return page(**(given | changes))


class Strict(HTMLParser):
    """Collects tags, and holds that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

        self.said: list[str] = []

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("changes", [{}, {"cells": []}, {"tokens": []}, {"cells": [], "tokens": [], "green": None}])
def test_the_page_is_well_formed_and_alone(changes: dict[str, Any]) -> None:
    html = drawn(**changes)
    parser = Strict()
    parser.feed(html)
    assert parser.open == [] and not re.search(r"https?:|src=|href=|@import|url\(", html)
    assert not any(tag == "script" for tag, _ in parser.seen)


def test_it_shows_every_cell_and_every_flip() -> None:
    parser = Strict()
    parser.feed(drawn())
    rects = [attributes for tag, attributes in parser.seen if attributes.get("class") == "cell"]
    assert len(rects) == len(CELLS)
    classes = [attributes.get("class") for tag, attributes in parser.seen if tag == "span"]
    assert classes == ["verdict red", None, "flip", None]
    dots = [attributes.get("class") for tag, attributes in parser.seen if tag == "circle"]
    assert dots == ["dot", "dot flipped", "dot"]
    fills = [attributes["fill"] for attributes in rects]
    assert fills[0] == "#ffffff" and fills[2] == heat(float("nan"), 4.0) == heat(float("inf"), 4.0) != fills[1]


HOSTILE = "</title></text></svg><script>alert(1)</script><img src=x onerror='a()' \"> {{ 7 * 7 }} {% raw %} &amp; "
HIDDEN = "\x00\x07\x1b[2J\x7f\x9b\u061c\u202e\u2066\ufeff\ud800\udcff\U000e0041"
WRITTEN = r"\u0000\u0007\u001b[2J\u007f\u009b\u061c\u202e\u2066\ufeff\ud800\udcff\udb40\udc41"


@pytest.mark.parametrize("place", ["title", "verdict", "reason", "command", "flips", "fact", "stage", "token", "next"])
def test_foreign_text_is_shown_and_does_nothing(place: str) -> None:
    """In every place that takes text: it adds no tag and no attribute, and what would hide is written out."""
    told = HOSTILE + HIDDEN + "ü 𝄞"
    changes: dict[str, Any] = {
        "fact": {"facts": {told: told}}, "stage": {"cells": [CELLS[1]._replace(stage=told)]},
        "token": {"tokens": [TOKENS[1]._replace(text=told)]}, "next": {"tokens": [TOKENS[1]._replace(next=told)]},
    }.get(place, {place: told})  # fmt: skip
    plain = {"fact": {"facts": {"x": "x"}}, "stage": {"cells": CELLS[1:2]}}.get(place, {})
    plain |= {"tokens": TOKENS[1:2]} if "tokens" in changes else {}
    html, parser, expected = drawn(**changes), Strict(), Strict()
    parser.feed(html)
    expected.feed(drawn(**plain))
    assert [(tag, list(attributes)) for tag, attributes in parser.seen] == [
        (tag, list(attributes)) for tag, attributes in expected.seen
    ]
    html.encode()
    assert all(visible(c) == c for c in html) and not re.search("<script|<img", html)
    shown = [*parser.said, *(value or "" for _, attributes in parser.seen for value in attributes.values())]
    written = repr(told) if place == "next" else HOSTILE + WRITTEN + "ü 𝄞"
    assert any(written in one for one in shown)


@pytest.mark.parametrize(("text", "shown"), [
    ("def f():\n\treturn 1", "def f():\n\treturn 1"), ("a\r\nb", "a\\r\nb"), ("naïve 𝄞 \u3000", "naïve 𝄞 \u3000"),
    ("\u202eabc", "\\u202eabc"), ("m\udcff.gguf", "m\\udcff.gguf"), (3.5, 3.5),
])  # fmt: skip
def test_what_is_visible_stays_as_it_is(text: Any, shown: Any) -> None:
    assert visible(text) == shown


def test_a_file_name_that_is_not_unicode_has_a_page(tmp_path: Path) -> None:
    model, page_file = tmp_path / os.fsdecode(b"m\xff.gguf"), tmp_path / "page.html"
    shutil.copy(BUILTIN, model)
    done = assay("parity", "def", "-m", str(model), "--engine", "reference", "--runs", "2", "--report", str(page_file))
    assert done.code == 0 and r"m\udcff.gguf" in page_file.read_text("utf-8")
