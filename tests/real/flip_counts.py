"""Flips expected and observed on thousands of positions: ``python -m tests.real.flip_counts MODEL --out FILE``.

Code and prose, half of it raw and half as a user's message in ChatML, in windows that each start anew. Truth is
computed once a window, the floor once for each declared precision. Every window is appended to FILE as one line a
candidate; what is there already is not computed again, and the summary is of all that is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from assay.engines import find, load
from assay.formats import ModelFile, open_model
from assay.judging.engines_under_test import UnderTest, baseline
from assay.judging.judge import PATHS
from assay.parity.divergence import Divergence
from assay.parity.flips import Positions, account, joined, observe
from assay.peers import running
from assay.peers.judged import ExternalEngine
from tests.real.fast_agreement import CODE, PROSE, excerpts

WINDOW = 256
CANDIDATES = {"f32": ("f32", "prefill"), "fast prefill": ("fast", "prefill"), "fast decode": ("fast", "decode"),
              "llama.cpp": ("ggml", "decode")}  # fmt: skip
ARRAYS = ("top", "margin", "sigma", "probability", "flipped", "moved")


def windows(model: Any, n: int) -> Iterator[tuple[str, list[int]]]:
    """``n`` windows: code raw, code in ChatML, prose raw, prose in ChatML, and so on."""
    texts = [excerpts(kind, n // 4 + 1, 6 * WINDOW) for kind in (CODE, CODE, PROSE, PROSE)]
    for i in range(n):
        which, text = i % 4, texts[i % 4][i // 4]
        prompt = model.chat_prompt([{"role": "user", "content": text}]) if which % 2 else text
        yield ("chat" if which % 2 else "raw"), model.tokenizer.encode(prompt)[:WINDOW]


def measured(file: ModelFile, names: list[str], n: int, runs: int, done: set[tuple[int, str]]) -> Iterator[Any]:
    """(window, format, candidate, declared precision, positions) of everything that is not ``done``."""
    with ExitStack() as stack:
        shared = baseline(file)
        candidates = {
            name: ExternalEngine(stack.enter_context(running(name, file.path, context=WINDOW + 8)), file, "")
            if name == "llama.cpp" else load(file, engine="accel", arith=CANDIDATES[name][0]) for name in names
        }  # fmt: skip
        for i, (form, ids) in enumerate(windows(shared.truth, n)):
            for name in names:
                if (i, name) not in done:
                    judged, path = UnderTest(shared, candidates[name]), CANDIDATES[name][1]
                    declared = judged.declared(1 if path == "decode" else len(ids))
                    assert declared is not None
                    predicted = shared.prediction(ids, declared, runs, seed=i * runs)
                    found = PATHS[path](candidates[name], ids)[:, : len(file.vocabulary)]
                    yield i, form, name, declared.name, observe(predicted, found, ids[1:])


def plain(positions: Positions) -> dict[str, Any]:
    """Positions as JSON can keep them; of all logits only what was measured of the window."""
    facts = positions._asdict()
    return {key: facts[key].tolist() for key in ARRAYS} | {
        "divergence": [array.tolist() for array in positions.divergence],
        "freedom": positions.freedom,
        "measures": {one.name: one[1:] for one in account(positions).measures},
    }


def positions_of(kept: dict[str, Any]) -> Positions:
    """What ``plain`` wrote."""
    top, margin, sigma, probability, flipped, moved = (np.array(kept[key]) for key in ARRAYS)
    apart = Divergence(*(np.array(array, float) for array in kept["divergence"]))
    return Positions(top, margin, sigma, probability, flipped, moved, apart, kept["freedom"])


def nearest(lines: list[dict[str, Any]]) -> dict[str, float]:
    """How near to its limit each measure came in any window: 1 is a fault."""
    found: dict[str, float] = {}
    for line in lines:
        for name, (value, limit, _) in line["positions"]["measures"].items():
            found[name] = max(found.get(name, 0.0), abs(value) / limit)
    return found


def main() -> None:
    """Measure what is missing, then print a line for each candidate and format."""
    parser = argparse.ArgumentParser(description="Flips expected and observed.")
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--candidates", default="f32,fast prefill,fast decode")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["window"], line["candidate"]) for line in lines}
    names = options.candidates.split(",")
    with options.out.open("a") as out:
        for i, form, name, declared, positions in measured(open_model(find(options.model)), names, options.windows,
                                                           options.runs, done):  # fmt: skip
            lines.append({"window": i, "format": form, "candidate": name, "declared": declared,
                          "positions": plain(positions)})  # fmt: skip
            out.write(json.dumps(lines[-1]) + "\n")
            out.flush()
    for name in dict.fromkeys(line["candidate"] for line in lines):
        for form in ("raw", "chat", "all"):
            kept = [line for line in lines if line["candidate"] == name and form in (line["format"], "all")]
            counted = account(joined([positions_of(line["positions"]) for line in kept]))
            print(json.dumps({"candidate": name, "declared": kept[0]["declared"], "format": form}
                             | counted._asdict() | {"measures": nearest(kept)}))  # fmt: skip


if __name__ == "__main__":
    main()
