"""What a terminal would obey is written out, as JSON writes it; everything else stays."""

from __future__ import annotations

import json
import unicodedata

import pytest

from assay.formats.system.printable import OBEYED, printable


@pytest.mark.parametrize(("text", "shown"), [
    ("\x1b[2J", r"\u001b[2J"), ("a\r\n\tb", r"a\r\n\tb"), ("\x9b31m\x7f\0", r"\u009b31m\u007f\u0000"),
    ("\u202egpj.exe\u2069", r"\u202egpj.exe\u2069"), ("\u2028\u2029\ufeff", r"\u2028\u2029\ufeff"),
    ("\U000e0041", r"\udb40\udc41"), ("\udcff", r"\udcff"),
    ("Grüße, 你好, שלום, 👩‍👩‍👧 \\n [red]", "Grüße, 你好, שלום, 👩‍👩‍👧 \\n [red]"),
])  # fmt: skip
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(printable(text)) == shown


def test_every_control_character_is_obeyed_and_bidirectional_ones_are() -> None:
    controls = {chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) in ("Cc", "Cs", "Zl", "Zp")}
    directions = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    bidirectional = {chr(i) for i in range(0x110000) if unicodedata.bidirectional(chr(i)) in directions}
    assert controls | bidirectional == {c for c in controls | bidirectional if OBEYED.fullmatch(c)}
    assert len(bidirectional) == 9


def test_kept_characters_and_json() -> None:
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
    value = {"na\x9bme": ["\x1b[2J\u202e", "\U000e0041", 1.5]}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value
