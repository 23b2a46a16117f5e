"""Write a file of the size and shape of a larger Qwen2.5, filled with random weights:
``python -m tests.real.make_shaped 7b OUT.gguf --from SMALLER.gguf`` (needs the ``dev`` extra).

Speed and memory depend on shapes and storage types, not on what the weights say; a model that cannot be had is
stood in for by one that speaks nonsense. Vocabulary, merges and chat template are those of a real file of the
family; the storage types are llama.cpp's quantization mix Q4_K_M (``llama-quant.cpp``, ggml-org/llama.cpp).

The file is written in pieces of some megabytes under a temporary name, and renamed when complete.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from assay.formats import AssayError, InputError, blocks
from assay.formats.blocks.ggml_types import BY_NAME
from assay.formats.containers.gguf import GGUF, read_gguf
from assay.formats.contract.config import Config, tensor_shapes
from assay.formats.contract.vocabulary import UNUSED
from assay.formats.qwen2.from_gguf import vocabulary_of

SEED = 7
STD = 0.02  # of every matrix, as transformers are initialised: behind the last layer of 7b activations are of size 14
PIECE = 4 << 20  # bytes of blocks in memory at a time


class Shape(NamedTuple):
    """What distinguishes one size of Qwen2.5 from another (config.json of each model)."""

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    ffn_size: int
    n_vocab: int
    tied: bool


SHAPES = {
    "tiny": Shape(8, 256, 4, 2, 512, 2069, False),  # for tests: more rows than the built-in model's tokens, and odd
    "0.5b": Shape(24, 896, 14, 2, 4864, 151936, True),
    "1.5b": Shape(28, 1536, 12, 2, 8960, 151936, True),
    "3b": Shape(36, 2048, 16, 2, 11008, 151936, True),
    "7b": Shape(28, 3584, 28, 4, 18944, 152064, False),
    "14b": Shape(48, 5120, 40, 8, 13824, 152064, False),
    "32b": Shape(64, 5120, 40, 8, 27648, 152064, False),
}
HALVES_AT = {"Q4_K": (0, 2), "Q6_K": (208,), "Q5_0": (0,), "Q8_0": (0,)}
"""Byte offsets of a block's f16 numbers: d, and for Q4_K dmin."""
MEAN_Q4 = 7.5  # dmin = 7.5 d takes off what the nibbles 0..15 have as their mean


def config_of(shape: Shape) -> Config:
    """The whole configuration; what all sizes have in common is written here."""
    head_dim = shape.hidden_size // shape.n_heads
    return Config(**shape._asdict(), head_dim=head_dim, context_length=32768, rope_theta=1e6, rms_norm_eps=1e-6)


def type_of(name: str, config: Config) -> str:
    """Storage type of a tensor in the Q4_K_M quantization mix.

    Six bits for the matrix that makes the logits, and for attn_v and ffn_down of half the layers: the first and
    last eighth and every third between. Rows that are not whole blocks of 256 fall back to blocks of 32.
    """
    shape = tensor_shapes(config)[name]
    if len(shape) == 1:
        return "F32"
    better = name == ("token_embd.weight" if config.tied else "output.weight")
    if name.endswith(("attn_v.weight", "ffn_down.weight")):
        layer, eighth = int(name.split(".")[1]), config.n_layers // 8
        better = layer < eighth or layer >= 7 * config.n_layers // 8 or (layer - eighth) % 3 == 2
    if shape[1] % 256:
        return "Q8_0" if better else "Q5_0"
    return "Q6_K" if better else "Q4_K"


def nbytes(name: str, config: Config) -> int:
    """Bytes of a tensor's data, without padding."""
    kind = BY_NAME[type_of(name, config)]
    return prod(tensor_shapes(config)[name]) // kind.block_elements * kind.block_bytes


def random_blocks(rng: np.random.Generator, kind: str, n: int, size: float) -> np.ndarray:
    """uint8 [n, block_bytes]: every integer random, d = ``size`` up to a fifth more or less."""
    raw = rng.integers(0, 256, (n, BY_NAME[kind].block_bytes), dtype=np.uint8)
    d = size * rng.uniform(0.8, 1.2, n)
    for at, factor in zip(HALVES_AT[kind], (1.0, MEAN_Q4), strict=False):
        raw[:, at : at + 2] = (factor * d).astype("<f2")[:, None].view(np.uint8)
    return raw


@cache
def size_for(kind: str) -> float:
    """The d with which random blocks decode to the standard deviation STD; measured, so no type needs a formula."""
    sample = random_blocks(np.random.default_rng(SEED), kind, 1 << 12, 1.0)
    return STD / float(blocks.dequantize(kind, sample).std())


def data_of(name: str, config: Config, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A tensor's bytes, piece by piece: gains about 1, biases about 0, matrices random blocks."""
    kind, shape = type_of(name, config), tensor_shapes(config)[name]
    if kind == "F32":
        yield (name.endswith("norm.weight") + 0.1 * rng.standard_normal(shape)).astype("<f4").view(np.uint8)
        return
    block_bytes = BY_NAME[kind].block_bytes
    n_blocks, step = nbytes(name, config) // block_bytes, PIECE // block_bytes
    for at in range(0, n_blocks, step):
        yield random_blocks(rng, kind, min(step, n_blocks - at), size_for(kind))


def keys_of(name: str, config: Config, source: GGUF) -> dict[str, tuple[Any, str]]:
    """Metadata as key -> (value, type): the shape's own, and the tokenizer of ``source`` with its vocabulary padded.

    Raises InputError if the vocabulary has more tokens than the shape has rows.
    """
    vocabulary = vocabulary_of(source, n_rows=1 << 24)
    if len(vocabulary) > config.n_vocab:
        raise InputError(f"its vocabulary of {len(vocabulary)} exceeds the {config.n_vocab} rows of {name}",
                         where=str(source.path), remedy="Choose a larger shape or another file")  # fmt: skip
    padding = range(len(vocabulary), config.n_vocab)
    meta = source.metadata
    keys: dict[str, tuple[Any, str]] = {
        "general.name": (f"Qwen2.5 {name} shape (random)", "string"),
        "general.file_type": (15, "uint32"),  # Q4_K_M
        "general.quantization_version": (2, "uint32"),
        "qwen2.block_count": (config.n_layers, "uint32"),
        "qwen2.context_length": (config.context_length, "uint32"),
        "qwen2.embedding_length": (config.hidden_size, "uint32"),
        "qwen2.feed_forward_length": (config.ffn_size, "uint32"),
        "qwen2.attention.head_count": (config.n_heads, "uint32"),
        "qwen2.attention.head_count_kv": (config.n_kv_heads, "uint32"),
        "qwen2.attention.layer_norm_rms_epsilon": (config.rms_norm_eps, "float32"),
        "qwen2.rope.freq_base": (config.rope_theta, "float32"),
    }
    keys |= {key: (meta[key], meta.type_of(key)) for key in meta if key.startswith("tokenizer.")}
    keys["tokenizer.ggml.tokens"] = ([*vocabulary.tokens, *(f"[PAD{i}]" for i in padding)], "array of string")
    keys["tokenizer.ggml.token_type"] = ([*vocabulary.kinds, *(UNUSED for _ in padding)], "array of int32")
    return keys


def write_front(path: Path, name: str, config: Config, source: GGUF) -> None:
    """Header, metadata and tensor table, padded to where the data begins."""
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, (value, kind) in keys_of(name, config, source).items():
        item = GGUFValueType[kind.removeprefix("array of ").upper()]
        if kind.startswith("array of "):
            writer.add_key_value(key, list(value), GGUFValueType.ARRAY, sub_type=item)
        else:
            writer.add_key_value(key, value, item)
    for tensor, shape in tensor_shapes(config).items():
        kind = GGMLQuantizationType[type_of(tensor, config)]
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), nbytes(tensor, config), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        pad(file)


def pad(file: Any) -> None:
    """Zeros up to the next multiple of the alignment."""
    file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


def make(name: str, out: Path, source: Path) -> Path:
    """Write the shape called ``name`` to ``out`` with the tokenizer of the model file ``source``; returns ``out``.

    The same arguments make the same bytes. Raises InputError for an unknown shape, a vocabulary that does not fit,
    a file already there and a disk too full; FormatError and ModelError if ``source`` is no such file.
    """
    if name not in SHAPES:
        raise InputError(f"there is no shape {name!r}", where="shape", remedy=f"Choose one of {', '.join(SHAPES)}")
    if out.exists():
        raise InputError("the file exists already", where=str(out), remedy="Remove it or choose another name")
    if not out.parent.is_dir():
        raise InputError("there is no such folder", where=str(out.parent), remedy="Create it first")
    config = config_of(SHAPES[name])
    wanted = sum(nbytes(tensor, config) for tensor in tensor_shapes(config))
    if (free := shutil.disk_usage(out.parent).free) < wanted + (1 << 30):
        raise InputError(f"{wanted / 1e9:.1f} GB do not fit, {free / 1e9:.1f} GB are free", where=str(out.parent),
                         remedy="Free some space or choose another folder")  # fmt: skip
    rng, part = np.random.default_rng(SEED), out.with_name(out.name + ".part")
    try:
        write_front(part, name, config, read_gguf(source, metadata_only=True))
        with part.open("ab") as file:
            for tensor in tensor_shapes(config):
                for piece in data_of(tensor, config, rng):
                    file.write(piece.tobytes())
                pad(file)
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    return out


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a model file of a real shape with random weights.")
    parser.add_argument("shape", help=", ".join(SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="the file that lends its tokenizer")
    given = parser.parse_args()
    try:
        out = make(given.shape, given.out, given.source)
    except AssayError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{out}: {out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
