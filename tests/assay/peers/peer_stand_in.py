"""A peer without a model, run as every peer is, with figures that are known beforehand.

Reads 4 tokens a millisecond and decodes 2. ``STAND_IN`` names how it misbehaves; what it was started with and asked
for goes to the file ``STAND_IN_LOG``, one JSON value a line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from assay.peers.process import answer_requests

FAULT = os.environ.get("STAND_IN", "")


def note(value: Any) -> None:
    with open(os.environ["STAND_IN_LOG"], "a", encoding="utf-8") as log:
        log.write(json.dumps(value) + "\n")


def complete(body: dict[str, Any]) -> Any:
    note(body)
    if FAULT == "refuses":
        raise ValueError("no such thing")
    if FAULT == "dies":
        os._exit(1)
    if FAULT == "dozes":
        time.sleep(60)
    if FAULT == "mumbles":
        return {"tokens": []}
    prompt, n = body["prompt"], body["n_predict"]
    several = isinstance(prompt[0], list)
    answers = [{"tokens": [7] * n, "timings": timings(len(ids), n)} for ids in (prompt if several else [prompt])]
    return answers if several else answers[0]


def timings(n_prompt: int, n_predicted: int) -> dict[str, float]:
    return {"prompt_n": n_prompt, "prompt_ms": n_prompt / 4,
            "predicted_n": n_predicted, "predicted_ms": (n_predicted - 1) / 2}  # fmt: skip


if __name__ == "__main__":
    note(sys.argv[1:])
    if FAULT == "cannot load":
        sys.exit("first line\nthe weights are odd")
    if FAULT == "hangs":
        time.sleep(60)
    answer_requests(complete)
