"""Write ``goldens/builtin.json``, the oracle's word on the built-in model: ``python -m assay.goldens.training.record``.

Only the oracle in f64 speaks here: a golden recorded from the engine under test would agree with any mistake
of it. Run it again when the built-in model changes, and only then; a difference without that is a bug.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from assay import reference
from assay.formats import open_model
from assay.formats.contract.engine import Prompt
from assay.goldens import BUILTIN, BUILTIN_APR

RECORD = BUILTIN.with_suffix(".json")
N_TOKENS = 64  # at most: both texts end by themselves
RAW = "def fib(n):"
CHAT = [{"role": "user", "content": "What is 2+2?"}]


def record(path: Path = BUILTIN) -> dict[str, Any]:
    """Prompt ids, greedy ids, and the margin of each choice, for a raw and for a chat prompt."""
    model = reference.load(path, arith="f64", cache_weights=True)

    def answer(prompt: str | Prompt) -> dict[str, Any]:
        said = reference.generate(model, prompt, max_tokens=N_TOKENS)
        return {"prompt": said.prompt, "prompt_ids": said.prompt_ids, "ids": said.ids, "text": said.text,
                "finish_reason": said.finish_reason, "margins": said.margins}  # fmt: skip

    return {
        "made_by": "goldens/training/record.py: greedy decoding by the oracle, reference/, in f64",
        "model": path.name,
        "model_sha256": model.file.sha256,
        "apr_sha256": open_model(BUILTIN_APR).sha256,
        "raw": answer(RAW),
        "chat": {"messages": CHAT, **answer(model.chat_prompt(CHAT))},
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
