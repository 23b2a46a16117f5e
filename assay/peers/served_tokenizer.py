"""A server's own tokenizer and chat template, asked as llama.cpp's server is asked.

    POST ROOT/tokenize        {"content": text, "add_special": false, "parse_special": true}   -> {"tokens": ids}
    POST ROOT/detokenize      {"tokens": ids}                                                  -> {"content": text}
    POST ROOT/apply-template  {"messages", "tools", "add_generation_prompt"}                   -> {"prompt": text}

ROOT is the address without ``/v1``. A server that has no such path is refused when it is first asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assay.formats import InputError, ModelFile
from assay.formats.contract.engine import Prompt
from assay.peers.endpoint import Endpoint


class ServedTokenizer(Endpoint):
    """A server as a reader of texts: ``encode``, ``decode`` and ``chat_prompt``, each a request."""

    def __init__(self, address: str, file: ModelFile, *, insecure_key: bool = False) -> None:
        super().__init__(address.rstrip("/").removesuffix("/v1"), file, lambda _: b"", model="any",
                         insecure_key=insecure_key)  # fmt: skip
        if self.encode("a") == []:
            raise self._failed("it makes no tokens of a text", "Is it a server of llama.cpp?")

    def encode(self, text: str | Prompt) -> list[int]:
        """The ids of a text, control tokens read as such. It cannot be told what of it is content."""
        content = text if isinstance(text, str) else text.text
        return self._said("tokenize", {"content": content, "add_special": False, "parse_special": True}, "tokens", list)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._said("detokenize", {"tokens": list(ids)}, "content", str)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
                    add_generation_prompt: bool | None = None,
                    continue_final_message: bool = False) -> str:  # fmt: skip
        """A rendered conversation, as text. A last message of the assistant's is continued by such a server anyway."""
        body: dict[str, Any] = {"messages": list(messages)}
        if tools is not None:
            body["tools"] = list(tools)
        if add_generation_prompt is not None:
            body["add_generation_prompt"] = add_generation_prompt
        return self._said("apply-template", body, "prompt", str)

    def _said(self, path: str, body: dict[str, Any], field: str, kind: type) -> Any:
        """One field of an answer. Raises InputError for a server that fails, or says something else."""
        status, answer = self._exchange(path, body)
        if status != 200:
            raise self._failed(f"HTTP {status} at /{path}, {answer}", "It must answer as llama.cpp's server does")
        found = answer.get(field) if isinstance(answer, dict) else None
        if not isinstance(found, kind) or (isinstance(found, list) and any(type(i) is not int for i in found)):
            raise InputError(f"its answer at /{path} has no {field}", where=self.name,
                             remedy="It must answer as llama.cpp's server does")  # fmt: skip
        return found
