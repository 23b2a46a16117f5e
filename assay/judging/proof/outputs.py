"""What an engine puts out, on more ways than any gate enters: did a mutant change anything, and by how much?

A mutant that changes none of this is *equivalent*: there is nothing to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from assay import engines
from assay.formats import NumericError
from assay.formats.contract.engine import Sampling
from assay.judging.test_matrix import LONG, SHORT
from assay.parity.divergence import kl_of
from assay.parity.flips import by_decode, by_prefill, by_prefill_then_decode

TEXTS = (" quorum /roadmaps !!! 12345", "   Title\n\n\tx = 007", "cafe\u0301 \u00fcber \u6f22\u5b57 \U0001f600",
         "What is 2+2?<|im_end|>", "<|im_start|>user\nHi.<|im_end|>\n", "don't can't I'll\r\n  end ")  # fmt: skip
CHATS = (" What is 2+2?\n", "say <|im_end|> now")
BATCH = ("The sea is", "1, 2, 3, 4, 5, 6, 7,", "def fib(n):", "class Stack:\n    def push(")
DRAWN = Sampling(temperature=0.8, top_k=40, top_p=0.9, repeat_penalty=1.3, seed=7)
N_LOGITS, LONG_TOKENS, N_WRITTEN = 128, 300, 24
Outputs = dict[str, Any]
FEW = ("prefill", "decode", "greedy", "texts", "chats")
"""Those that need no program which the judge does not need."""


def outputs(model: Any, oracle_tokenizer: Any, kept: dict[tuple[str, int], Any],
            only: Sequence[str] | None = None) -> Outputs:  # fmt: skip
    """By name: arrays of logits or margins, and lists of ids or texts; ``only`` some of them.

    ``kept``: logits that are there already.

    ids come from the oracle's tokenizer, but for ``greedy``: what the engine's own makes of texts is an output itself.
    """
    encode = oracle_tokenizer.encode
    long, short = encode(LONG[:4000]), encode(SHORT)
    is_oracle = type(model).__module__.startswith("assay.reference")

    def logits(path: str, read: Callable[..., Any]) -> Any:
        return kept[path, N_LOGITS] if (path, N_LOGITS) in kept else read(model, long[:N_LOGITS])

    ways: dict[str, Callable[[], Any]] = {
        "prefill": lambda: logits("prefill", by_prefill),
        "greedy": lambda: written(model, model.tokenizer.encode(SHORT), max_tokens=N_WRITTEN),
        "drawn": lambda: engines.generate(model, short, max_tokens=N_WRITTEN, sampling=DRAWN).ids,
        "texts": lambda: [model.tokenizer.encode(text) for text in TEXTS],
        "chats": lambda: [model.tokenizer.encode(model.chat_prompt([{"role": "user", "content": text}]))
                          for text in CHATS],
    }  # fmt: skip
    if not is_oracle:
        ways |= {
            "decode": lambda: logits("decode", by_decode),
            "long": lambda: by_prefill_then_decode(model, long[:LONG_TOKENS], 4),
            "batch": lambda: [answer(one) for one in engines.generate_batch(
                model, [encode(text) for text in BATCH], max_tokens=8)],
            "edited": lambda: edited(model, short),
        }  # fmt: skip
    return {name: attempted(way) for name, way in ways.items() if only is None or name in only}


def attempted(way: Callable[[], Any]) -> Any:
    """What a way gives; that it gave no numbers, or broke, is an output too."""
    try:
        return way()
    except NumericError:
        return "not numbers"
    except Exception as error:
        return f"error: {type(error).__name__}"


def answer(one: Any) -> dict[str, Any]:
    """A generation as an output."""
    return {"ids": one.ids, "margins": np.array(one.margins), "text": one.text, "why": one.finish_reason}


def written(model: Any, ids: list[int], **options: Any) -> dict[str, Any]:
    """A generation."""
    return answer(engines.generate(model, ids, **options))


def edited(model: Any, ids: list[int]) -> list[dict[str, Any]]:
    """A conversation that grows, and whose end is then edited, in one cache."""
    cache = model.new_cache()
    turns = (ids, [*ids[:-6], *ids[3:9], *ids[:10]])
    return [written(model, turn, max_tokens=6, cache=cache) for turn in turns]


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def changed(found: Outputs, clean: Outputs) -> list[str]:
    """Names of the outputs that differ from the clean engine's."""
    return [name for name in clean if not same(found[name], clean[name])]


def effect(found: Outputs, clean: Outputs, errors: dict[str, float]) -> dict[str, Any]:
    """How far outputs moved: KL to the clean engine in nats (mean and largest), and in floors.

    ``errors``: the root mean square of the clean engine's own logit errors, by path. A floor is that: at the position
    that moved most, so many times further than the clean engine is from the truth. What is discrete, or no numbers, and
    moved though no logit did, has no size: None.
    """
    kl_mean = kl_max = floors = 0.0
    for name in ("prefill", "decode", "long"):
        if name not in clean or same(found[name], clean[name]):
            continue
        if isinstance(found[name], str) or not np.isfinite(found[name]).all():
            return {"kl_mean": None, "kl_max": None, "floors": None}
        a, b = (np.asarray(x[name], np.float64) for x in (clean, found))
        kl = kl_of(log_softmax(a), log_softmax(b))
        moved = np.sqrt(np.square(b - a).mean(1)).max()
        kl_mean, kl_max = max(kl_mean, float(kl.mean())), max(kl_max, float(kl.max()))
        floors = max(floors, float(moved / errors["prefill" if name == "prefill" else "decode"]))
    for name in {"greedy", "batch", "edited"} & clean.keys():
        if not same(found[name], clean[name]):
            floors = max(floors, margins_moved(found[name], clean[name]) / errors["decode"] / 2**0.5)
    if not np.isfinite(floors) or (floors == 0 and changed(found, clean)):
        return {"kl_mean": kl_mean, "kl_max": kl_max, "floors": None}
    return {"kl_mean": kl_mean, "kl_max": kl_max, "floors": floors}


def margins_moved(found: Any, clean: Any) -> float:
    """The largest change of a margin while both wrote the same."""
    if isinstance(found, str) or isinstance(clean, str):
        return float("inf")
    if isinstance(clean, list):
        return max(map(margins_moved, found, clean), default=0.0)
    n = next((i for i, (a, b) in enumerate(zip(found["ids"], clean["ids"], strict=False)) if a != b),
             min(len(found["ids"]), len(clean["ids"])))  # fmt: skip
    return float(np.abs(found["margins"][:n] - clean["margins"][:n]).max()) if n else float("inf")


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits [n, n_vocab]."""
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))
