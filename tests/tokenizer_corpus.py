"""Text that tokenizers stumble over, and a vocabulary small enough to build in a test.

``mixed_text`` is deterministic: the same seed gives the same text on every machine. ``tiny_vocabulary`` has
the 256 bytes, merges trained by the ``tokenizers`` library on the samples below, and named tokens chosen to
get in each other's way.
"""

from __future__ import annotations

import json
import random
import unicodedata
from functools import cache

from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from assay.formats.contract.engine import Prompt
from assay.formats.contract.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary

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


def mixed_text(n_characters: int, seed: int = 0) -> str:
    """At least ``n_characters`` of all the samples: whole, cut, glued, repeated, and shuffled."""
    draw = random.Random(seed)
    samples = list(SAMPLES.values())
    alphabet = sorted(set("".join(samples)))
    pieces: list[str] = []
    length = 0
    while length < n_characters:
        sample = draw.choice(samples)
        start = draw.randrange(len(sample))
        pieces += [
            sample[start : start + draw.randrange(1, 60)],
            draw.choice(["", " ", "  ", "\n", "\n\n", "\t", "\r\n", ".", "'", " '", "<|im_end|>"]),
            "".join(draw.choices(alphabet, k=draw.randrange(8))),
            draw.choice(alphabet) * draw.choice([0, 0, 1, 2, 3, 16]),
        ]
        length += sum(map(len, pieces[-4:]))
    return "".join(pieces) + "".join(samples)


@cache
def tiny_vocabulary() -> Vocabulary:
    """Some 570 tokens: 256 bytes, trained merges, named tokens of which one begins or overlaps another."""
    pipeline = Pipeline(BPE())
    pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = BpeTrainer(vocab_size=560, show_progress=False, initial_alphabet=ByteLevel.alphabet())
    pipeline.train_from_iterator([mixed_text(5_000, seed=1)], trainer)
    model = json.loads(pipeline.to_str())["model"]
    normal = sorted(model["vocab"], key=model["vocab"].get)
    named = [
        ("<|endoftext|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL),
        ("<|im_end|>>", CONTROL), ("<|im_", USER_DEFINED), ("<tool_call>", USER_DEFINED),
        ("</tool_call>", USER_DEFINED), ("x<|", USER_DEFINED), ("e\u0301|", USER_DEFINED),
        (">>", CONTROL), ("", CONTROL), ("[PAD0]", UNUSED),
    ]  # fmt: skip
    tokens = normal + [token for token, _ in named]
    kinds = [NORMAL] * len(normal) + [kind for _, kind in named]
    merges = [" ".join(pair) for pair in model["merges"]]
    bos, end = tokens.index("<|endoftext|>"), tokens.index("<|im_end|>")
    return Vocabulary(tokens, kinds, merges, "qwen2", bos, end, add_bos=False, end_ids=frozenset({end}))


@cache
def characters_the_tables_disagree_on() -> str:
    """Assigned characters that the NFC of ``tokenizers`` (Unicode 9) and ``unicodedata`` treat differently.

    Found by asking the two libraries, not our tokenizers; ``test_reference_tokenizer`` bounds their number.
    """
    library = NFC()
    found = set()
    for character in map(chr, range(0x110000)):
        canonical = unicodedata.normalize("NFD", character)
        if not unicodedata.combining(character) and canonical == character:
            continue
        around = [canonical]
        for mark in "\u0301\u0316":
            around += ["a" + mark + character, "a" + character + mark]
        if any(library.normalize_str(text) != unicodedata.normalize("NFC", text) for text in around):
            found |= {character, *canonical}
    return "".join(sorted(found))


def texts(*, named: bool = True, max_size: int = 40) -> st.SearchStrategy[str]:
    """Arbitrary text of characters that every table knows, and fragments of the samples."""
    drifting = characters_the_tables_disagree_on()
    known = st.characters(exclude_categories=("Cs", "Cn"), exclude_characters=drifting)
    alphabet = st.sampled_from(sorted(set("".join(SAMPLES.values()))))
    vocabulary = tiny_vocabulary()
    names = [vocabulary.tokens[i] for i in vocabulary.ids_of_kind(CONTROL, USER_DEFINED, UNUSED)]
    parts = [known, alphabet, st.text(known), st.sampled_from([" ", "\n", "  ", "'", "'s", "a", "aa", "1"])]
    if named:
        parts += [st.sampled_from(names), st.sampled_from(["<|", "|>", "im_end", "<|im_end|", ">", "é", "|"])]
    text = st.lists(st.one_of(parts), max_size=max_size).map("".join)
    return text if named else text.filter(lambda text: not any(name and name in text for name in names))


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """A text with named tokens, and ascending, disjoint literal ranges, some empty."""
    text = draw(texts())
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return Prompt(text, tuple(zip(cuts[::2], cuts[1::2], strict=False)))
