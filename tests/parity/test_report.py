"""The page: well-formed, self-contained, and nothing in a model's text can become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from assay.parity.report import Cell, Token, heat, page

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
    rects = [attributes for tag, attributes in parser.seen if tag == "rect" and "class" not in attributes]
    assert len(rects) == len(CELLS)
    classes = [attributes.get("class") for tag, attributes in parser.seen if tag == "span"]
    assert classes == ["verdict red", None, "flip", None]
    fills = [attributes["fill"] for attributes in rects]
    assert fills[0] == "#ffffff" and fills[2] == heat(float("nan"), 4.0) == heat(float("inf"), 4.0) != fills[1]
