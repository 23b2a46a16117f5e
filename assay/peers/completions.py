"""What the servers of OpenAI's completions answer; nothing of it is trusted to be there, or to be of its type.

Three forms are understood, each inside ``{"choices": [{"logprobs": ..}]}``:

    {"content": [{"top_logprobs": [{"id", "token", "bytes", "logprob"}, ..]}]}     llama.cpp: ids; elsewhere no "id"
    {"top_logprobs": [{"token_id:123": logprob, ..}]}                              vLLM, which is asked for ids
    {"top_logprobs": [{" text": logprob, ..}]}                                     the others
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any


def entries_of(answer: Any) -> list[tuple[int | bytes, float]]:
    """What the first choice of an answer names: an id or bytes, and its log-probability; [] if that is not there.

    What JSON cannot hold is null in most servers' answers: minus infinity here. None but such counts as not there.
    """
    try:
        said = answer["choices"][0]["logprobs"]
        if said.get("content"):
            top = [(name_of(one), one["logprob"]) for one in said["content"][0]["top_logprobs"]]
        else:
            top = [(text.encode(errors="surrogatepass"), value) for text, value in said["top_logprobs"][0].items()]
        found = [(name, -math.inf if value is None else float(value)) for name, value in top]
        return found if any(value != -math.inf for _, value in found) else []
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return []


def name_of(one: dict[str, Any]) -> int | bytes:
    """A token's id, or else its bytes, or else its text as bytes."""
    if isinstance(one.get("id"), int):
        return one["id"]
    spelt = one.get("bytes")  # a number in its place would make bytes() as long as it says
    return bytes(spelt) if spelt and isinstance(spelt, list) else one["token"].encode(errors="surrogatepass")


def prompt_tokens(answer: Any) -> int | None:
    """How many tokens the server says that it read; None if it does not say."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    n = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return n if isinstance(n, int) else None


def message_of(said: bytes) -> str:
    """What the body of an error says: its ``message``, if it is JSON that has one."""
    with suppress(ValueError, RecursionError, KeyError, TypeError):
        return str(json.loads(said)["error"]["message"])
    return said.decode(errors="replace")
