r"""Text of unknown origin, made harmless: what a terminal obeys, instead of showing it, is written out.

Names in a model file, a template's complaint, a server's words, a path: any of them may hold an escape sequence that
clears the screen or retitles the window (ESC, and its one-character twins in C1), a carriage return that overwrites
what stands there, or a bidirectional control that shows a text in another order than it is read ("Trojan Source",
CVE-2021-42574). Each such character is written as JSON escapes it, so that JSON stays JSON of the same value.
"""

from __future__ import annotations

import json
import re

OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with ESC, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029"  # line and paragraph separators
    "\ufeff\U000e0000-\U000e007f"  # byte order mark and tags: invisible
    "\ud800-\udfff]"  # half a character: the undecodable bytes of a file's name
)
"""Characters that are not shown but acted upon, or not shown at all."""


def printable(text: str, keep: str = "") -> str:
    r"""``text`` in which every character of ``OBEYED`` but those of ``keep`` is escaped: ``\u001b``, ``\n``."""
    return OBEYED.sub(lambda found: found[0] if found[0] in keep else json.dumps(found[0])[1:-1], text)
