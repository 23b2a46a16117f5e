"""Mutations of safetensors files: mostly of the JSON header, also of its size and of the bytes."""

from __future__ import annotations

import json
from random import Random

from tests.fuzz.gguf_mutations import number
from tests.fuzz.json_mutations import HOSTILE, json_mutated
from tests.fuzz.mutations import BYTES, PLANS, Field, field_replaced

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "BOOL": 1, "F64": 8, "F8_E4M3": 1, "C64": 8, "F4": 1, "f32": 4, "": 1}
DIMS = (0, 0, 1, 2, 3, 8, 2**31, 2**32, 2**53, 2**61, 2**62, 2**63, 2**64, 10**400)
HUGE = 10**4300 - 1
"""The largest number that Python reads from text."""


def mutated(content: bytes, rng: Random) -> bytes:
    """A mutant of a well-formed safetensors file."""
    plan, size = rng.choice(PLANS), number(content, 0, 8)
    header, data = content[8 : 8 + size], content[8 + size :]
    if "fields" in plan or "records" in plan:
        header = json_mutated(header, rng, (*HOSTILE, entry(rng)) if rng.random() < 0.5 else (entry(rng),))
        if rng.random() < 0.1:
            header = header.ljust(len(header) + rng.choice((1, 7, 64)), rng.choice((b" ", b"\0", b"\n")))
    content = len(header).to_bytes(8, "little") + header + data
    if "bytes" in plan:
        if rng.random() < 0.2:
            changed = bytearray(content)
            field_replaced(changed, [Field(0, 8, "length")], rng)
            return bytes(changed)
        content = rng.choice(BYTES)(content, rng)
    return content


def entry(rng: Random) -> bytes:
    """A tensor's entry that states odd things, consistent half of the time."""
    dtype = rng.choice(list(DTYPES))
    shape = [rng.choice(DIMS) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 8, 9)))]
    nbytes = DTYPES[dtype]
    for dim in shape:
        nbytes *= dim
    begin = rng.choice((0, 0, 1, 32, 2**32, 2**63 - 1, 2**64, HUGE, -1))
    end = begin + nbytes if rng.random() < 0.7 else rng.choice((0, 1, 32, 2**63, 2**64 - 1, HUGE))
    if max(begin, end, *shape, 0) > HUGE:
        begin = end = 0
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}).encode()
