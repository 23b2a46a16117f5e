"""A tokenizer and a chat renderer held against the oracle's, case by case of a corpus.

What is compared is what a model would read: ids of texts, texts of ids, rendered conversations and their ids. The
candidate is anything that has ``encode(text) -> ids`` and ``decode(ids) -> text``, and perhaps ``chat_prompt(messages,
tools=, add_generation_prompt=, continue_final_message=)``, which returns a text or a ``Prompt``. Nothing of it is
trusted: what it raises is a difference, unless the oracle refuses the case as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import index
from typing import Any, NamedTuple, Protocol

from assay.formats.contract.arguments import checked
from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import Conversation
from assay.formats.errors import AssayError
from assay.parity.corpus import Corpus
from assay.parity.sample import first_difference

SHOWN = 24
"""Characters of a text, or ids, that are shown from a difference on."""


class Reader(Protocol):
    """What is audited, at least."""

    def encode(self, text: Any, /) -> Sequence[int]: ...
    def decode(self, ids: list[int], /) -> str: ...


class Difference(NamedTuple):
    """One case in which the two sides differ, each shown from where they do."""

    case: str
    oracle: str
    found: str


class Kind(NamedTuple):
    """What became of the cases of one kind."""

    name: str
    cases: int
    differing: int
    first: Difference | None
    skipped: str = ""
    """Why none was tried; empty where they were."""


@checked
def audit(oracle: Any, candidate: Reader, corpus: Corpus) -> list[Kind]:
    """Every kind of the corpus. ``oracle`` has ``encode``, ``decode`` and ``chat_prompt``, and takes prompts."""
    render = getattr(candidate, "chat_prompt", None)
    no_chats, no_contents = unable(oracle, render, corpus)
    encode, decode = partial(encoded, oracle, candidate), partial(decoded, oracle, candidate)
    return [
        *(counted(name, texts, encode) for name, texts in corpus.texts.items()),
        *(counted(name, prompts, encode, no_contents) for name, prompts in corpus.contents.items()),
        *(counted(name, ids, decode) for name, ids in corpus.ids.items()),
        *(counted(name, chats, partial(rendered, oracle, candidate, render), no_chats)
          for name, chats in corpus.conversations.items()),
    ]  # fmt: skip


def unable(oracle: Any, render: Any, corpus: Corpus) -> tuple[str, str]:
    """Why no conversations can be compared, and no contents; empty where they can."""
    chat = next(chat for chats in corpus.conversations.values() for chat in chats)
    why = "" if callable(render) else "it renders no conversations"
    if not why and isinstance(known := tried(oracle.chat_prompt, chat, prompt_in), Refusal):
        why = known.words
    if why:
        return why, why
    tells = isinstance(tried(render, chat, prompt_in), Prompt)
    return "", "" if tells else "its renderer does not say what is content"


def counted(name: str, cases: Sequence[Any], compare: Callable[[Any], Difference | None], skipped: str = "") -> Kind:
    """All cases of a kind, unless it is skipped."""
    if skipped:
        return Kind(name, 0, 0, None, skipped)
    differences = [one for case in cases if (one := compare(case)) is not None]
    return Kind(name, len(cases), len(differences), differences[0] if differences else None)


def encoded(oracle: Any, candidate: Reader, prompt: str | Prompt) -> Difference | None:
    """The ids of a text, and the text that comes back of them."""
    text = prompt if isinstance(prompt, str) else prompt.text
    ours, theirs = tried(oracle.encode, prompt, ids_in), tried(candidate.encode, prompt, ids_in)
    if isinstance(ours, Refusal) or isinstance(theirs, Refusal):
        return refused(cut(text, 0), ours, theirs)
    return decoded(oracle, candidate, ours, text) if ours == theirs else parted(text, ours, theirs)


def decoded(oracle: Any, candidate: Reader, ids: Sequence[int], case: str | None = None) -> Difference | None:
    """The text of ids."""
    ours, theirs = tried(oracle.decode, list(ids), text_in), tried(candidate.decode, list(ids), text_in)
    shown = f"decoding {list(ids)[:SHOWN]}" if case is None else f"decoding the ids of {cut(case, 0)}"
    if isinstance(ours, Refusal) or isinstance(theirs, Refusal):
        return refused(shown, ours, theirs)
    return None if ours == theirs else Difference(shown, *from_difference(ours, theirs))


def rendered(oracle: Any, candidate: Reader, render: Any, chat: Conversation) -> Difference | None:
    """The text of a conversation, and then its ids."""
    ours, theirs = tried(oracle.chat_prompt, chat, prompt_in), tried(render, chat, prompt_in)
    case = f"{chat.messages[-1]['role']}: {cut(str(chat.messages[-1].get('content')), 0)}"
    if isinstance(ours, Refusal) or isinstance(theirs, Refusal):
        return refused(case, ours, theirs)
    text = theirs if isinstance(theirs, str) else theirs.text
    if text != ours.text:
        return Difference(case, *from_difference(ours.text, text))
    expected, ids = tried(oracle.encode, ours, ids_in), tried(candidate.encode, theirs, ids_in)
    if isinstance(expected, Refusal) or isinstance(ids, Refusal):
        return refused(case, expected, ids)
    return None if ids == expected else parted(text, expected, ids)


class Refusal(NamedTuple):
    """What was raised instead of an answer."""

    words: str


def tried(function: Callable[..., Any], case: Any, wanted: Callable[[Any], Any]) -> Any:
    """What a function makes of a case, as it is ``wanted``, or how it failed: foreign code may raise anything."""
    try:
        return wanted(function(**vars(case)) if isinstance(case, Conversation) else function(case))
    except AssayError as error:
        return Refusal(error.what)
    except Exception as error:
        return Refusal(f"{type(error).__name__}: {error}")


def ids_in(answer: Any) -> list[int]:
    """Ids, of whatever kind of integer."""
    return [index(i) for i in answer]


def text_in(answer: Any) -> str:
    """A text, and nothing else."""
    if not isinstance(answer, str):
        raise TypeError(f"a {type(answer).__name__} is not a text")
    return answer


def prompt_in(answer: Any) -> str | Prompt:
    """A rendered text, which may say what of it is content."""
    return answer if isinstance(answer, Prompt) else text_in(answer)


def refused(case: str, ours: Any, theirs: Any) -> Difference | None:
    """Nothing where both refuse the case."""
    if isinstance(ours, Refusal) and isinstance(theirs, Refusal):
        return None
    sides = (f"refused: {one.words:.80}" if isinstance(one, Refusal) else "not refused" for one in (ours, theirs))
    return Difference(case, *sides)


def parted(text: str, ours: list[int], theirs: list[int]) -> Difference:
    """Two different lists of ids."""
    at = first_difference(ours, theirs)
    return Difference(cut(text, 0), *(f"{len(ids)} ids, {ids[at : at + 6]} from {at} on" for ids in (ours, theirs)))


def from_difference(ours: str, theirs: str) -> Iterable[str]:
    """Two different texts, each from a little before they part."""
    at = first_difference(ours, theirs)
    return (cut(text, max(0, at - 8)) for text in (ours, theirs))


def cut(text: str, start: int) -> str:
    """Some characters of a text as a Python literal: nothing in it commands a terminal."""
    shown = ascii(text[start : start + 2 * SHOWN])
    return f"{'...' * (start > 0)}{shown}{'...' * (len(text) > start + 2 * SHOWN)}"
