"""How sure two models are of each next token: ``python -m tests.real.margins [MODEL ...] [--plot FILE] [--json FILE]``.

The *margin* of a position is the distance between its two largest logits, in nats: what an engine's error must exceed
before another token is chosen. Each model reads the same texts (teacher-forced, ``accel`` in f32): Python source that
the built-in model was never trained on, and chats of the kind that it was, from another seed. The picture
``docs/margins.png`` and its figures in ``docs/agreement.md`` are this script's output for the built-in and the 0.5B.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from assay import accel
from assay.engines import find
from assay.goldens.training.train import chat_text, library

LENGTH = 256  # tokens of a sequence: what the built-in model was trained on
N_SEQUENCES = 2  # of each kind of text
COLOURS = ("#1f6f8b", "#e0a458", "#7a7a7a")
Margins = dict[str, dict[str, np.ndarray]]


def texts() -> dict[str, list[str]]:
    """Held-out library files and unseen chats, long enough for any vocabulary."""
    _, held_out = library()
    code = sorted(held_out, key=len, reverse=True)[:N_SEQUENCES]
    rng = np.random.default_rng(2026)
    return {"code": code, "chat": ["".join(chat_text(rng) for _ in range(20)) for _ in range(N_SEQUENCES)]}


def margins(logits: np.ndarray) -> np.ndarray:
    """Top-1 minus top-2 of each row: [n_positions, n_vocab] -> [n_positions]."""
    second, first = np.partition(np.asarray(logits, np.float64), -2)[:, -2:].T
    return first - second


def measure(path: Path) -> dict[str, np.ndarray]:
    """Margins of every position of each kind of text."""
    model = accel.load(path, arith="f32")
    return {kind: np.concatenate([margins(model.forward(model.tokenizer.encode(text)[:LENGTH])) for text in of_kind])
            for kind, of_kind in texts().items()}  # fmt: skip


def figures(values: np.ndarray) -> dict[str, float]:
    """Quartiles, and the share of positions where an error of 0.1 or 0.01 nats could change the token."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"positions": len(values), "lower_quartile": round(float(low), 3), "median": round(float(median), 3),
            "upper_quartile": round(float(high), 3), "below_0.1": round(float((values < 0.1).mean()), 4),
            "below_0.01": round(float((values < 0.01).mean()), 4)}  # fmt: skip


def draw(found: Margins, path: Path) -> None:
    """Cumulative distributions, a panel for each kind of text, a line for each model."""
    from matplotlib.figure import Figure

    kinds = list(next(iter(found.values())))
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(kinds), sharey=True), kinds, strict=True):
        for (name, by_kind), colour in zip(found.items(), COLOURS, strict=False):
            values = np.sort(by_kind[kind])
            axis.step(values, np.arange(1, len(values) + 1) / len(values), label=name, color=colour)
        axis.set(xscale="log", xlim=(1e-3, 30), title=kind, xlabel="margin, nats")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of positions with less")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["builtin", "qwen2.5-coder-0.5b"])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: Margins = {name: measure(find(name)) for name in asked.models}
    table: dict[str, Any] = {name: {kind: figures(values) for kind, values in by_kind.items()}
                             for name, by_kind in found.items()}  # fmt: skip
    print(json.dumps(table, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if asked.plot:
        draw(found, asked.plot)


if __name__ == "__main__":
    main()
