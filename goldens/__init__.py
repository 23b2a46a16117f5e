"""Recorded truth: the built-in model and what is known about it. How each file was made stands in README.md."""

from pathlib import Path

BUILTIN = Path(__file__).with_name("builtin.gguf")
"""The built-in model: the default of every command and the subject of every offline test."""

BUILTIN_APR = BUILTIN.with_suffix(".apr")
"""The same model, tensor by tensor, in the other container."""

PROVEN = BUILTIN.with_name("proven.json")
"""What ``assay prove`` must catch at least."""
