"""Mutations of the JSON files in a Hugging Face folder."""

from __future__ import annotations

from random import Random

from tests.fuzz.json_mutations import json_mutated
from tests.fuzz.mutations import BYTES


def mutated(content: bytes, rng: Random) -> bytes:
    """A mutant of one JSON file."""
    if rng.random() < 0.9:
        content = json_mutated(content, rng)
    return rng.choice(BYTES)(content, rng) if rng.random() < 0.15 else content
