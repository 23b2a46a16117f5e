"""Hugging Face transformers as an external engine (extra ``transformers``): a GGUF file or a folder, in f32 by PyTorch.

Greedy, by a bare loop over the model's ``forward``, which is kinder to it than its ``generate``: that adds milliseconds
of Python to every step.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from assay.benchmark.machine import n_threads
from assay.peers.process import answer_requests


class Transformers:
    """A loaded model, and the last prompt read with ``cache_prompt`` together with its keys and values.

    ``kept`` [n_sequences, n_tokens] are the ids of that prompt.
    """

    def __init__(self, model: Path) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the file is here; nothing is to be asked for elsewhere
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        torch.set_num_threads(n_threads())
        self.torch = torch
        where, file = (model, None) if model.is_dir() else (model.parent, model.name)
        self.model = AutoModelForCausalLM.from_pretrained(str(where), gguf_file=file, dtype=torch.float32)
        self.model.eval()
        self.kept: Any = None
        self.cache: Any = None

    def complete(self, body: dict[str, Any]) -> Any:
        """Answer a request for one prompt, or for several of one length, which then need no padding."""
        with self.torch.inference_mode():
            if n := body.get("n_probs"):
                return self._named(body["prompt"], n)
            return self._complete(body["prompt"], body["n_predict"], body["cache_prompt"])

    def _complete(self, prompt: Any, n_predict: int, keep: bool) -> Any:
        several = isinstance(prompt[0], list)
        ids = self.torch.tensor(prompt if several else [prompt])
        started = time.perf_counter()
        unread, cache = self._begin(ids, keep)
        token, cache = self._step(unread, cache)
        first = time.perf_counter()
        tokens = [token]
        for _ in range(n_predict - 1):
            token, cache = self._step(token, cache)
            tokens.append(token)
        ended = time.perf_counter()
        self.kept, self.cache = (ids, cache) if keep else (None, None)
        timings = {"prompt_n": unread.shape[1], "prompt_ms": 1e3 * (first - started),
                   "predicted_n": n_predict, "predicted_ms": 1e3 * (ended - first)}  # fmt: skip
        answers = [{"tokens": row, "timings": timings} for row in self.torch.cat(tokens, 1).tolist()]
        return answers if several else answers[0]

    def _named(self, prompt: list[int], n: int) -> dict[str, Any]:
        """The ``n`` likeliest tokens after a prompt; what is new in one that goes on from the last is read alone."""
        ids, old = self.torch.tensor([prompt]), 0
        if self.kept is not None and self.torch.equal(ids[:, : self.kept.shape[1]], self.kept):
            old = min(self.kept.shape[1], ids.shape[1] - 1)
        if old and (more := self.cache.get_seq_length() - old):
            self.cache.crop(-more)
        out = self.model(ids[:, old:], past_key_values=self.cache if old else None, use_cache=True, logits_to_keep=1)
        self.kept, self.cache = ids, out.past_key_values
        top = out.logits[0, -1].double().log_softmax(-1).topk(min(n, out.logits.shape[-1]))
        named = [{"id": i, "logprob": p} for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        return {"completion_probabilities": [{"top_logprobs": named}]}

    def _step(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        """Read ids [n_sequences, n_tokens]; the likeliest next of each [n_sequences, 1], and the cache."""
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def _begin(self, ids: Any, keep: bool) -> tuple[Any, Any]:
        """What of the prompt is to be read, and the cache to read it into: the last token, if the rest is kept."""
        if not (keep and self.kept is not None and self.torch.equal(ids, self.kept)):
            self.cache = None  # freed before the new one grows
            return ids, None
        self.cache.crop(ids.shape[1] - 1 - self.cache.get_seq_length())  # negative: so many off the end
        return ids[:, -1:], self.cache


if __name__ == "__main__":
    answer_requests(Transformers(Path(sys.argv[1])).complete)
