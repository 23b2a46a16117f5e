"""A tokenizer, or a template, that gets something wrong: each a wrapper around the engine's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from assay.formats.contract.engine import Prompt
from assay.judging.proof.faults import NotApplied

Encode = Callable[[Any], list[int]]


class Spoiled:
    """A tokenizer that encodes in another way; everything else is the original's."""

    def __init__(self, original: Any, encode: Callable[..., list[int]]) -> None:
        self._original, self._encode = original, encode

    def encode(self, prompt: Prompt | str, **options: Any) -> list[int]:
        """Ids of a text."""
        return self._encode(self._original, prompt, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def on_text(change: Callable[[str], str]) -> Callable[..., list[int]]:
    """A text changed before it is encoded; what is literal in it is lost where its length changes."""

    def encode(tokenizer: Any, prompt: Any, **options: Any) -> list[int]:
        if isinstance(prompt, Prompt):
            text = change(prompt.text)
            prompt = prompt if text == prompt.text else Prompt(text)
        else:
            prompt = change(prompt)
        return tokenizer.encode(prompt, **options)

    return encode


def longest_match(tokenizer: Any, prompt: Any, **options: Any) -> list[int]:
    """Greedy: at each place the longest token of the vocabulary, whatever the merges say. Control tokens as ever."""
    text, vocabulary = prompt.text if isinstance(prompt, Prompt) else prompt, tokenizer.vocabulary
    control = {vocabulary.tokens[i]: i for i in vocabulary.ids_of_kind(3)}
    by_bytes = {tokenizer.bytes_of(i): i for i in range(len(vocabulary)) if vocabulary.kinds[i] == 1}
    longest, ids = max(map(len, by_bytes)), []
    pattern = "|".join(map(re.escape, control)) or r"(?!)"
    for part in re.split(f"({pattern})", text):
        if part in control:
            ids.append(control[part])
            continue
        data, at = part.encode(), 0
        while at < len(data):
            found = next(n for n in range(longest, 0, -1) if data[at : at + n] in by_bytes)
            ids.append(by_bytes[data[at : at + found]])
            at += found
    return ids


def unknown_is_0(tokenizer: Any, prompt: Any, **options: Any) -> list[int]:
    """Every byte above 127 becomes id 0."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    parts = re.split(r"([^\x00-\x7f])", text)
    return [i for part in parts for i in ([0] * len(part.encode()) if part and ord(part[0]) > 127
                                          else tokenizer.encode(part, **options) if part else [])]  # fmt: skip


def after(change: Callable[[Any, list[int]], list[int]]) -> Callable[..., list[int]]:
    """Ids changed after they were made."""
    return lambda tokenizer, prompt, **options: change(tokenizer, tokenizer.encode(prompt, **options))


ENCODERS: dict[str, Callable[..., list[int]]] = {
    "longest match": longest_match,
    "bos added": after(lambda t, ids: [t.vocabulary.eos_id or 0, *ids]),
    "control as text": lambda t, prompt, **options: t.encode(prompt, special=False),
    "content as control": lambda t, prompt, **o: t.encode(prompt.text if isinstance(prompt, Prompt) else prompt, **o),
    "id 0": unknown_is_0,
    "one space": on_text(lambda text: re.sub(" {2,}", " ", text)),
}


def twice(render: Callable[..., Prompt], messages: Sequence[Any], **options: Any) -> Prompt:
    """The rendered prompt as a user's message, rendered again."""
    return render([{"role": "user", "content": render(messages, **options).text}], **options)


def on_prompt(change: Callable[[str], str]) -> Callable[..., Prompt]:
    """A rendered prompt with another text."""

    def rendered(render: Callable[..., Prompt], messages: Sequence[Any], **options: Any) -> Prompt:
        prompt = render(messages, **options)
        text = change(prompt.text)
        return prompt if text == prompt.text else Prompt(text)

    return rendered


TEMPLATES: dict[str, Callable[..., Prompt]] = {
    "template twice": twice,
    "not wrapped": lambda render, messages, **options: Prompt(messages[-1]["content"]),
    "newline missing": on_prompt(lambda text: text.replace("<|im_end|>\n", "<|im_end|>", 1)),
    "no generation prompt": lambda render, messages, **o: render(messages, **{**o, "add_generation_prompt": False}),
    "system prompt": lambda render, messages, **o: render(
        [{"role": "system", "content": "You are a pirate."}, *[m for m in messages if m["role"] != "system"]], **o),
    "content stripped": lambda render, messages, **o: render(
        [{**m, "content": m["content"].strip()} for m in messages], **o),
}  # fmt: skip


@contextmanager
def speaking(model: Any, change: str) -> Iterator[None]:
    """``model`` with a tokenizer, or template, that gets something wrong, while the block lasts."""
    tokenizer, original = model.tokenizer, model.chat_prompt
    try:
        if change in ENCODERS:
            model.tokenizer = Spoiled(tokenizer, ENCODERS[change])
        elif change == "no nfc":
            model.tokenizer = type(tokenizer)(model.file.vocabulary, nfc=False)
        elif change == "raw text wrapped":
            model.tokenizer = Spoiled(tokenizer, lambda t, prompt, **o: t.encode(wrapped(model, prompt), **o))
        elif change in TEMPLATES:
            model.chat_prompt = lambda messages, **options: TEMPLATES[change](original, messages, **options)
        else:
            raise NotApplied(f"no such change of words: {change}")
        yield
    finally:
        model.tokenizer, model.chat_prompt = tokenizer, original


def wrapped(model: Any, prompt: Any) -> Any:
    """A text that is not in turns yet, as a user's message."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    return prompt if "<|im_start|>" in text else model.chat_prompt([{"role": "user", "content": text}])
