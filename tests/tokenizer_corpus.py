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
from assay.parity.corpus import SAMPLES


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
