"""Are ChatML prompts in a lower-margin regime than raw ones? ``python -m tests.real.margin_regimes MODEL``.

The same text twice: raw, and as the answer of a conversation in the file's own template. Only the positions that
predict the text's own tokens are compared, one by one, so that neither the template's tokens nor another choice of text
decides. Then the model's own greedy answers, raw and in ChatML: what a user sees. Truth is the oracle in f64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from assay.engines import find, load
from assay.formats import open_model
from tests.real.agreement import CHAT, RAW
from tests.real.fast_agreement import CODE, PROSE, excerpts
from tests.real.margins import margins

QUESTION = "Continue."
LENGTH = 192  # tokens of a text
N_TEXTS = 4  # of code, and of prose


def as_answer(model: Any, text: str) -> tuple[list[int], int]:
    """Ids of a conversation whose answer begins with ``text``, and where the text's ids begin."""
    before = model.tokenizer.encode(model.chat_prompt([{"role": "user", "content": QUESTION}]))
    return [*before, *model.tokenizer.encode(text)[:LENGTH]], len(before)


def teacher_forced(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Margins at the same tokens of the same texts, raw and as an answer; the first token has no raw prediction."""
    raw, chat = [], []
    for text in (*excerpts(CODE, N_TEXTS, 6 * LENGTH), *excerpts(PROSE, N_TEXTS, 6 * LENGTH)):
        ids, start = as_answer(model, text)
        named = len(model.file.vocabulary)
        raw.append(margins(model.forward(ids[start:])[:-1, :named]))
        chat.append(margins(model.forward(ids)[start:-1, :named]))
    return np.concatenate(raw), np.concatenate(chat)


def greedy(model: Any, prompts: Sequence[Any], n_tokens: int) -> np.ndarray:
    """Margins of the tokens that the model writes by itself, at most ``n_tokens`` after each prompt."""
    found = []
    for prompt in prompts:
        cache, ids = None, model.tokenizer.encode(prompt)
        for _ in range(n_tokens):
            logits, cache = model.prefill(ids, cache)
            logits = logits[: len(model.file.vocabulary)]
            found.append(float(margins(logits[None])[0]))
            ids = [int(logits.argmax())]
            if ids[0] in model.file.vocabulary.end_ids:
                break
    return np.array(found)


def summary(values: np.ndarray) -> dict[str, float]:
    """The figures of a line."""
    return {"tokens": len(values), "median": float(np.median(values)), "below_0.1": float((values < 0.1).mean()),
            "below_1": float((values < 1).mean())}  # fmt: skip


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="Are ChatML prompts in a lower-margin regime than raw ones?")
    parser.add_argument("model")
    parser.add_argument("--answers", type=int, default=5, help="greedy answers of each format")
    parser.add_argument("--tokens", type=int, default=48, help="at most, of each answer")
    options = parser.parse_args()
    model = load(open_model(find(options.model)), engine="reference", arith="f64", cache_weights=True)
    raw, chat = teacher_forced(model)
    chats = [model.chat_prompt([{"role": "user", "content": question}]) for question in CHAT[: options.answers]]
    report = {"same text, raw": summary(raw), "same text, ChatML": summary(chat),
              "share lower in ChatML": float((chat < raw).mean()),
              "own answers, raw": summary(greedy(model, RAW[: options.answers], options.tokens)),
              "own answers, ChatML": summary(greedy(model, chats, options.tokens))}  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
