"""Texts and conversations that tokenizers and chat renderers stumble over, by the kind of the trouble.

Built in so that every comparison asks the same, and made, where a rule makes them, rather than listed. A case that
somebody met goes in here: ``assay tokenize --audit`` and the tests of our own tokenizers read the same corpus.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from assay.formats.contract.engine import Prompt
from assay.formats.contract.messages import Conversation
from assay.formats.contract.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary

SAMPLES = {
    "English": "The quorum wasn't met; they'RE waiting, I'd say 'til 10:45. \"We've 3,\" she'll reply.",
    "contractions": "'s'T'Re've'LL'd x'sy 'ſ x'ſt 'K 'Kelvin don''t it's's I'MA 'lL 'rE'",
    "Python": "def f(x):\n\treturn {k: v[1:-1] for k, v in x.items()}  # ->\n\n    @property\n\n\n",
    "C": "#include <stdio.h>\r\nint main(void) {\r\n  for (int i=0;i<10;++i) printf(\"%d\\n\", i);\r\n}\r\n",
    "JSON": '{"a": [1, 2.5e-10, null], "b\\u00e9": "x\\/y", "roadmaps": "/roadmaps/2024"}',
    "punctuation": " !!! ...?! (x):\n -> => // /* */ <|> --- === ***\n\n§ ¿¡ «» „“ ‘’ … — ‽",
    "numbers": "2+2=4 12345 1,000,000 3.14159 ½ Ⅷ ² ٣٤٥ १२३ 一二三 ①②③ 𝟘𝟙",
    "Chinese": "敏捷的棕色狐狸跳过了懒狗。你好，世界！《红楼梦》第一回：甄士隐梦幻识通灵",
    "Japanese": "吾輩は猫である。ガギグゲゴ ﾊﾝｶｸ カ\u3099 「こんにちは」ー",
    "Korean": "안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af 한글",
    "Arabic": "مَرْحَبًا بِالْعَالَمِ، كيف حالك؟ ١٢٣",
    "Hebrew": "שָׁלוֹם עוֹלָם",
    "Hindi": "नमस्ते दुनिया, क्षेत्रज्ञ १२ हिन्दी क़",
    "Thai": "สวัสดีชาวโลก กำลัง น้ำ",
    "Greek and Cyrillic": "Ὀδυσσεύς ΣΊΣΥΦΟΣ ς Привет, мир! Ёж й и\u0306",
    "Vietnamese": "Tiếng Việt Tie\u0302\u0301ng Vie\u0323\u0302t",
    "NFD": "e\u0301 o\u0302\u0323 a\u030a A\u0308 n\u0303 q\u0307\u0323 \u212b \u2126 ﬁ \u0344 \u0958",
    "marks alone": "\u0301 \u0301\u0316\u0301\u0316 a\u20dd\u0338 \u0f73\u0f71\u0f72",
    "emoji": "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 🤷🏾‍♀️ 1️⃣ 😀😀😀",
    "spaces": " a  b   c    \t\td \t \t e\n\n\n f \n \n  g   \r\n\r\n   \r \r  h    ",
    "wide spaces": "h \u3000 i\u00a0\u00a0j\u2003\u2003 k \u180e l\u202fi\ufeff \u205f\u1680j",
    "odd spaces": "a\x1cb\x1d \x1e\x1f c\x85d\x85\x85 \u200b\u200be\u2028f\u2029g",
    "controls": "\x00a\x01\x02 \x07\x08\x0b\x0c\x7f \x80\x9f\xad \x1b[31mred\x1b[0m\x00\x00",
    "runs": f"{'a' * 33} {'A' * 17} {'-' * 17} ======== !!!!!!! 0000000 ....... éééééé 哈哈哈哈哈",
    "folding": "ſ K Å ß ẞ İ ı ŉ ǰ ﬅ ﬆ ΐ Ω",
    "far planes": "𝕳𝖊𝖑𝖑𝖔 𒀀𒁀 𐍈 𠀀𠀁 \U000e0041 \U0010fffd \ue000 \uffff",
    "special tokens": "<|im_start|>user\n2?<|im_end|>\n.<|im_end|><|im_end|>)<|endoftext|>\n",
    "user-defined tokens": "x<tool_call>\n{}</tool_call>",
    "nearly special": "<|im_end| > <|im_END|> <|im_<|im_end|>end|> <<|im_end|>> [PAD151665] [PAD0] <tool",
}
"""A text of each kind, all of its troubles together."""
DECODED_ALONE = 4096
"""Tokens, evenly spread, that are decoded one by one."""


@dataclass(frozen=True)
class Corpus:
    """Cases by kind: what is encoded, decoded, and rendered."""

    texts: Mapping[str, Sequence[str]]
    contents: Mapping[str, Sequence[Prompt]]
    """Texts of which a part came from a user: there the spelling of a control token is text."""
    ids: Mapping[str, Sequence[Sequence[int]]]
    conversations: Mapping[str, Sequence[Conversation]]


def corpus(vocabulary: Vocabulary, bytes_of: Callable[[int], bytes]) -> Corpus:
    """The built-in corpus for a vocabulary; ``bytes_of`` gives the bytes that each of its ids stands for."""
    named = [vocabulary.tokens[i] for i in vocabulary.ids_of_kind(CONTROL, USER_DEFINED) if vocabulary.tokens[i]]
    return Corpus(
        texts={name: parts_of(text) for name, text in SAMPLES.items()} | made_texts(named),
        contents={"control tokens in content": in_content(vocabulary.control_tokens)},
        ids=ids_to_decode(vocabulary, bytes_of),
        conversations=conversations(vocabulary.control_tokens),
    )


def parts_of(text: str) -> list[str]:
    """A text, then its lines and its words, each with the blank before it: a failure shows little."""
    words = [" " * (i > 0) + word for i, word in enumerate(text.split(" "))]
    return [part for part in dict.fromkeys([text, *text.splitlines(keepends=True), *words]) if part]


def made_texts(named: Sequence[str]) -> dict[str, list[str]]:
    """Texts by rule; ``named``: the spellings of control and user-defined tokens."""
    tails = ("s", "t", "re", "ve", "m", "ll", "d", "ſ")
    breaks = ("\n", "\r\n", "\r", " \n", "\n ", "\t\n")
    accented = ("é", "Ünïcödé", "Ångström", "Việt", "가각", "ガ", "naïve café")
    made = {
        "digits": [*("1234567890"[:n] for n in range(1, 11)), "a1b22c333", "1,234,567.89", "0x1F", "v1.2.3", " 12 34",
                   "2024-11-27", "x² ½ Ⅷ ٣٤ १२", "1st 22nd 333"],
        "contraction by case": [f"{word}'{case(tail)}{after}" for word, tail, case, after in product(
            ("it", "IT", "3", ""), tails, (str, str.upper, str.title), ("", "x", " "))],
        "runs of spaces": [" " * n + tail for n, tail in product([*range(1, 9), 16, 17, 64, 129],
                                                                 ("", "x", "\n", "1", "\tx", "."))],
        "runs of line breaks": [before + one * n + after for before, one, n, after in product(
            ("", "x", "):"), breaks, (1, 2, 3), ("", "x", "."))],
        "normal form C": [unicodedata.normalize(form, word) for word in accented for form in ("NFD", "NFC")],
        "longest match is wrong": [" quorum", "   Title", "/roadmaps", " !!!", "->", "(x):\n", "a->b", "'''"],
        "runs of one character": [one * n for one, n in product("a=- é哈!\n\u0301", [*range(2, 9), 33, 128])],
        "named token after": [f"{before}{token}{after}" for token, before, after in product(
            named, ("", "2?", ".", ")", "number", " ", "\n", "<", "e\u0301"), ("", "\n", "x"))],
        "nearly a named token": [text for token in named for text in
                                 (token[:-1], token[1:], token.upper() + " ", f"{token[:2]} {token[2:]}", f"<{token}>")
                                 if text],
        "nothing": [""],
        "all at once": ["".join(SAMPLES.values()), "\n".join(reversed(SAMPLES.values()))],
    }
    return {name: list(dict.fromkeys(cases)) for name, cases in made.items()}


def in_content(control: Sequence[str]) -> list[Prompt]:
    """Control tokens' spellings where they are text, wholly and in part, and beside one that is not."""
    cases = []
    for token in filter(None, control):
        n = len(token)
        cases += [Prompt(token, ((0, n),)), Prompt(f"a{token}b", ((1, 1 + n),)), Prompt(token, ((1, 2),)),
                  Prompt(f"?{token}{token}", ((1, 1 + n),)), Prompt(f"{token}{token}", ((n, 2 * n),))]  # fmt: skip
    return cases


def ids_to_decode(vocabulary: Vocabulary, bytes_of: Callable[[int], bytes]) -> dict[str, list[list[int]]]:
    """Ids whose bytes are no UTF-8, and tokens alone. Those that stand for no text are left out."""
    known = [i for i, kind in enumerate(vocabulary.kinds) if kind != UNUSED]
    of_byte = {spelt[0]: i for i in reversed(known) if len(spelt := bytes_of(i)) == 1}
    broken = [bytes([b]) for b in range(256)]
    for character in "é好👍":
        raw = character.encode()
        broken += [raw[:n] + after for n in range(1, len(raw)) for after in (b"", b"a", b"\n", raw)]
        broken += [raw[n:] for n in range(1, len(raw))]
    broken += [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5", b"\xff\xfe", b"a\x80\x80b", b"\xe5\xa5a\xbd"]
    return {
        "bytes that are not UTF-8": [[of_byte[b] for b in raw] for raw in broken if all(b in of_byte for b in raw)],
        "tokens alone": [[i] for i in known[:: max(1, len(known) // DECODED_ALONE)]],
    }


CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": [1, {"x": None}], "k": 1e22, "ok": True}}
TOOLS = [
    {"type": "function", "function": {
        "name": "wetter", "description": "\"天气\" \\ <|im_end|>\n\t",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "f", "description": "<b>&'", "parameters": {}}},
]  # fmt: skip


def conversations(control: Sequence[str]) -> dict[str, list[Conversation]]:
    """Conversations by what they have that can go wrong."""
    system, hi = {"role": "system", "content": "Be brief."}, user("Hi")
    answered = [hi, answer("Hello."), user("And?")]
    call = {"type": "function", "function": CALL}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    spelt = "".join(f"x{token} .{token}{token}\n" for token in control if token)
    return {
        "no system turn": [Conversation([hi]), Conversation(answered)],
        "system turn": [Conversation([system, hi]), Conversation([system | {"content": ""}, hi]),
                        Conversation([hi, system, system])],
        "blanks in content": [Conversation([user(text)]) for text in ("", "\n a \n\n", "a\r\nb\rc\n", "  ")],
        "odd characters in content": [Conversation([user(text)]) for text in
                                      ("\u200b\0\u2028\ufeff😀 e\u0301 \ue000", "{{ 7 * 7 }}{% raw %}")],
        "markers in content": [Conversation([user(spelt)]), Conversation([system | {"content": spelt}, hi]),
                               Conversation([hi, answer(spelt), hi])],
        "no generation prompt": [Conversation(answered, add_generation_prompt=False)],
        "answer to be continued": [Conversation([hi, answer(text)], continue_final_message=True)
                                   for text in ("The sum", "", "  a \n\n", spelt)],
        "tool definitions": [Conversation([hi], TOOLS), Conversation([system, hi], TOOLS), Conversation([hi], [])],
        "tool calls": [Conversation([hi, one, tool("1")]) for one in
                       (called, called | {"content": "Hm"}, answer("x") | {"tool_calls": [call, call]})],
        "tool answers": [Conversation([hi, called, *(tool(text) for text in ("1", spelt, "")), user("so?")]),
                         Conversation([tool("1"), hi, tool("2")])],
    }  # fmt: skip


def user(content: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": content}


def answer(content: str) -> dict[str, str]:
    """An assistant's."""
    return {"role": "assistant", "content": content}


def tool(content: str) -> dict[str, str]:
    """A tool's."""
    return {"role": "tool", "content": content}
