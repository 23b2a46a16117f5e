"""APRT: one stage of one layer as the APR tools dump it (``apr trace --save-tensor``), a file each.

    <DIR>/layer-<N>/<name>.bin    "APRT" | u32 layer | u32 count | f32[count]    little-endian, position by position
    <DIR>/<name>.bin              the same with layer 0xFFFFFFFF: a stage of the whole model

Neither shape nor number of positions is in the file: they follow from the ids that were read.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np

from assay.formats.containers.cursor import opened
from assay.formats.contract.config import WHOLE_MODEL_STAGES
from assay.formats.errors import FormatError

HOLDS: dict[str, tuple[str, ...]] = {
    "embedding": ("embedding",),
    "attn_norm": ("attn_norm",),
    "qkv_matmul": ("q_proj", "k_proj", "v_proj"),  # side by side at each position
    "qkv_bias": ("q_bias", "k_bias", "v_bias"),
    "q_post_rope": ("q_rope",),
    "k_post_rope": ("k_rope",),
    "attention": ("attention",),
    "attn_out": ("attn_out",),
    "post_attn_residual": ("attn_residual",),
    "ffn_norm": ("ffn_norm",),
    "ffn_gate": ("ffn_gate",),
    "ffn_up": ("ffn_up",),
    "ffn_silu": ("ffn_silu",),
    "ffn_swigl": ("ffn_swiglu",),
    "ffn_out": ("ffn_out",),
    "post_ffn_residual": ("ffn_residual",),
    "final_norm": ("final_norm",),
    "lm_head": ("logits",),
}
"""What each file holds, by its name. The nineteenth, ``layer_output``, is ``post_ffn_residual`` once more: read where
that one is missing, never written."""
ALIAS = {"post_ffn_residual": "layer_output"}
NAME_OF = {stage: name for name, stages in HOLDS.items() for stage in stages}
LAYER_FOLDER = re.compile(r"layer-(0|[1-9][0-9]{0,3})")
HEADER = struct.Struct("<4sII")
MAGIC, WHOLE_MODEL = b"APRT", 0xFFFFFFFF
REMEDY = "The dump is damaged, or of another tool; trace again."


def header(layer: int | None, count: int) -> bytes:
    """The first 12 bytes of a file of ``count`` elements."""
    return HEADER.pack(MAGIC, WHOLE_MODEL if layer is None else layer, count)


def width(path: Path, layer: int | None, n_tokens: int) -> int:
    """Elements of a position.

    Raises FormatError, before anything is allocated: no-file, not-a-file, unreadable, truncated, bad-magic, bad-layer,
    bad-size (the file's is not what the count says), bad-count (no multiple of ``n_tokens``).
    """

    def fail(code: str, detail: str, field: str, offset: int) -> FormatError:
        return FormatError(code, detail, path=path, field=field, offset=offset, remedy=REMEDY)

    with opened(path) as (fd, status):
        raw = os.pread(fd, HEADER.size, 0)
    if len(raw) < HEADER.size:
        raise fail("truncated", f"the header takes {HEADER.size} bytes, the file has {len(raw)}", "header", 0)
    magic, found, count = HEADER.unpack(raw)
    if magic != MAGIC:
        raise fail("bad-magic", f"{magic!r} is not {MAGIC!r}", "magic", 0)
    if found != (WHOLE_MODEL if layer is None else layer):
        raise fail("bad-layer", f"layer {found:#x} in the file of {'the whole model' if layer is None else layer}",
                   "layer", 4)  # fmt: skip
    if status.st_size != HEADER.size + 4 * count:
        code = "truncated" if status.st_size < HEADER.size + 4 * count else "bad-size"
        raise fail(code, f"{count} elements and the header take {HEADER.size + 4 * count} bytes, the file has "
                   f"{status.st_size}", "count", 8)  # fmt: skip
    if count == 0 or count % n_tokens:
        raise fail("bad-count", f"{count} elements are not those of {n_tokens} tokens", "count", 8)
    return count // n_tokens


def found_in(folder: Path) -> list[tuple[str, int | None, Path]]:
    """The (name, layer, path) of every file of a known name, in order. OSError where the folder cannot be listed."""
    layers = sorted(int(match[1]) for name in os.listdir(folder) if (match := LAYER_FOLDER.fullmatch(name)))
    found: list[tuple[str, int | None, Path]] = []
    for layer in [None, *layers]:
        inside = folder if layer is None else folder / f"layer-{layer}"
        for name, stages in HOLDS.items():
            if (layer is None) == (stages[0] in WHOLE_MODEL_STAGES) and (path := path_of(inside, name)).exists():
                found.append((name, layer, path))
    return found


def path_of(folder: Path, name: str) -> Path:
    """The file of this name, or of its alias where only that is there."""
    path, alias = folder / f"{name}.bin", folder / f"{ALIAS.get(name, name)}.bin"
    return alias if alias.exists() and not path.exists() else path


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Several stages [n_tokens, ...] side by side, f32; what is too large for f32 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.concatenate([part.reshape(len(part), -1).astype("<f4") for part in parts], axis=1)
