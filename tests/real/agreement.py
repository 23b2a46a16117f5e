"""How far each engine is from the truth, on real prompts: ``python -m tests.real.agreement MODEL [--json]``.

For 10 raw and 10 chat prompts: logits of ``reference f32`` and ``accel f32`` against ``reference f64`` (relative
L2 over all positions, largest absolute difference and where), and prefill followed by three single tokens
against one full forward, within each engine. The tables in ``docs/agreement.md`` are this script's output.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from assay import accel, reference
from assay.engines import find
from assay.formats import open_model

RAW = [
    "def fib(n):",
    "import numpy as np\n\ndef softmax(x):\n    ",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):",
    "SELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY",
    "The quick brown fox jumps over the lazy dog. The capital of France is",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {",
    "人工智能的发展历史可以追溯到",
    "   \n\n\t\t  x  =  1\n\n\n",
    "{\"name\": \"Zoë\", \"tags\": [\"a\", \"b\"], \"emoji\": \"👩‍👩‍👧\", \"n\": 12345",
    "try:\n    value = int(text)\nexcept ValueError as error:\n    raise SystemExit(f'not a number: {text!r}') from",
]
CHAT = [
    "What is 2+2?",
    "Write a Python function that reverses a string.",
    "Explain recursion to a child in two sentences.",
    "Was ist die Hauptstadt von Österreich?",
    "Fix this: `for i in range(10) print(i)`",
    "请用一句话解释什么是量化。",
    "List three prime numbers greater than 100.",
    "What does the ChatML token <|im_end|> mean?",
    "Translate to French: The cat sits on the mat.",
    "Give me a regular expression for an ISO date, and nothing else.",
]
N_SINGLE = 3  # tokens read one by one at the end of each prompt


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float, int]:
    """Relative L2 of a against b, largest absolute difference, and its position; [n_tokens, n_vocab] each."""
    difference = a.astype(np.float64) - b
    worst = np.abs(difference).max(1)
    return float(np.linalg.norm(difference) / np.linalg.norm(b)), float(worst.max()), int(worst.argmax())


def one_by_one(model: Any, ids: list[int]) -> np.ndarray:
    """Logits of the last N_SINGLE + 1 positions: the first from a prefill, the others token by token."""
    logits, cache = model.prefill(ids[:-N_SINGLE])
    rows = [logits]
    for token in ids[-N_SINGLE:]:
        logits, cache = model.decode(token, cache)
        rows.append(logits)
    return np.stack(rows)


def main(name: str) -> None:
    """Print one table for the model."""
    file = open_model(find(name))
    truth = reference.load(file, arith="f64", cache_weights=True)
    oracle = reference.load(file, arith="f32")
    oracle.weights = truth.weights  # the same decoded f32 matrices, kept once
    fast = accel.load(file, arith="f32")
    print(f"\n**{file.name}** ({name})\n")
    print("| prompt | tokens | oracle f32 rel L2 | max abs @ | accel f32 rel L2 | max abs @ "
          "| oracle step-by-step max abs | accel step-by-step max abs |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    prompts = [("raw", text) for text in RAW] + [("chat", text) for text in CHAT]
    for kind, text in prompts:
        prompt = text if kind == "raw" else fast.chat_prompt([{"role": "user", "content": text}])
        ids = fast.tokenizer.encode(prompt)
        assert ids == oracle.tokenizer.encode(prompt)
        exact, ours, theirs = truth.forward(ids), oracle.forward(ids), fast.forward(ids)
        tail = slice(-N_SINGLE - 1, None)
        cells = []
        for logits in (ours, theirs):
            relative, largest, at = distance(logits, exact)
            cells.append(f"{relative:.1e} | {largest:.1e} @ {at}")
        for model, logits in ((oracle, ours), (fast, theirs)):
            cells.append(f"{np.abs(one_by_one(model, ids) - logits[tail]).max():.1e}")
        print(f"| {kind}: {text[:24]!r} | {len(ids)} | {' | '.join(cells)} |".replace("\\n", "␤"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
