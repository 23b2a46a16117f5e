"""Write the built-in model: ``python goldens/make_builtin.py [PATH]`` (needs the ``dev`` extra).

The smallest honest Qwen2 file: two layers of 256, grouped-query attention, biases, tied Q6_K embedding, and the
Q4_K / Q6_K mixture by layer that llama.cpp's Q4_K_M uses. Its weights are random (seed 2): it speaks nonsense,
fluently and reproducibly, which is all that the offline tests ask of it. The embedding is small beside what the
layers add, so that the next token depends on the layers and not only on the last token.

The quantisers here are plain: one scale and one minimum a group, taken from the extremes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

N_LAYERS, HIDDEN, N_HEADS, N_KV_HEADS, HEAD_DIM, FFN, N_VOCAB = 2, 256, 4, 2, 64, 512, 480
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>"]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = '''
def fib(n):
    if n <= 1:
        return n
    return fib(n - 1) + fib(n - 2)

def factorial(n):
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result

def is_prime(number):
    for divisor in range(2, number):
        if number % divisor == 0:
            return False
    return number > 1

class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

system
You are a helpful assistant.
user
What is 2+2? What is the capital of France? Write a function that returns the sum of a list.
assistant
The answer is 4. The capital of France is Paris. Here is the function:

def total(values):
    return sum(values)

def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best

user
What is the largest number in the list? How do you write a class in Python? What is the answer?
assistant
The largest number in the list is the value that no other value is larger than. A class is written
with the word class, then its name. The answer is that you write a function for it.
'''


def quantize_q4_k(x: np.ndarray) -> np.ndarray:
    """f32 [n_rows, n_columns] -> uint8 [n_rows, n_columns/256 · 144]: d, dmin, 12 bytes of 6-bit scales, nibbles."""
    groups = x.reshape(-1, 8, 32)
    low = np.minimum(groups.min(-1), 0)
    scale, minimum = (groups.max(-1) - low) / 15, -low  # [n_blocks, 8]
    d = (scale.max(-1, keepdims=True) / 63).astype(np.float16)
    dmin = (minimum.max(-1, keepdims=True) / 63).astype(np.float16)
    sc = np.clip(np.rint(scale / np.maximum(d, 1e-7)), 1, 63).astype(np.uint8)
    mn = np.clip(np.rint(minimum / np.maximum(dmin, 1e-7)), 0, 63).astype(np.uint8)
    step = (d * sc.astype(np.float32))[..., None]
    q = np.clip(np.rint((groups + (dmin * mn.astype(np.float32))[..., None]) / step), 0, 15).astype(np.uint8)
    packed = np.empty((len(q), 12), np.uint8)
    packed[:, 0:4] = sc[:, :4] | (sc[:, 4:] >> 4) << 6
    packed[:, 4:8] = mn[:, :4] | (mn[:, 4:] >> 4) << 6
    packed[:, 8:12] = (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(len(q), 128)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), packed, nibbles], 1).reshape(len(x), -1)


def quantize_q6_k(x: np.ndarray) -> np.ndarray:
    """f32 [n_rows, n_columns] -> uint8 [n_rows, n_columns/256 · 210]: low nibbles, high bits, int8 scales, d."""
    groups = x.reshape(-1, 16, 16)
    scale = np.abs(groups).max(-1) / 31  # [n_blocks, 16]
    d = (scale.max(-1, keepdims=True) / 127).astype(np.float16)
    sc = np.clip(np.rint(scale / np.maximum(d, 1e-7)), 1, 127).astype(np.int8)
    q = np.rint(groups / (d * sc.astype(np.float32))[..., None])
    q = (np.clip(q, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # [block, half, quarter, element]
    low = np.concatenate([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], -1)
    high = q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 | q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), sc.view(np.uint8), d.view(np.uint8)]
    return np.concatenate(parts, 1).reshape(len(x), -1)


def train_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their kinds, and merges: 256 bytes, merges learnt from CORPUS, special tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_level])  # type: ignore[attr-defined]
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - len(SPECIALS) - len(USER_DEFINED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) for pair in learnt["merges"]]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    kinds = [1] * len(tokens) + [3] * len(SPECIALS) + [4] * len(USER_DEFINED)
    tokens += SPECIALS + USER_DEFINED
    assert len(tokens) == N_VOCAB, "CORPUS has too few merges to learn"
    return tokens, kinds, merges


def tensors() -> dict[str, tuple[np.ndarray, str]]:
    """Every tensor as (f32 values, storage type), random with seed 2."""
    rng = np.random.default_rng(2)

    def normal(std: float, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * std).astype(np.float32)

    out: dict[str, tuple[np.ndarray, str]] = {"token_embd.weight": (normal(0.05, N_VOCAB, HIDDEN), "Q6_K")}
    q_size, kv_size = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
    for layer in range(N_LAYERS):
        better = "Q6_K" if layer < N_LAYERS // 8 or layer >= 7 * N_LAYERS // 8 else "Q4_K"
        for name, shape, kind in [
            ("attn_q", (q_size, HIDDEN), "Q4_K"),
            ("attn_k", (kv_size, HIDDEN), "Q4_K"),
            ("attn_v", (kv_size, HIDDEN), better),
            ("attn_output", (HIDDEN, q_size), "Q4_K"),
            ("ffn_gate", (FFN, HIDDEN), "Q4_K"),
            ("ffn_up", (FFN, HIDDEN), "Q4_K"),
            ("ffn_down", (HIDDEN, FFN), better),
        ]:
            out[f"blk.{layer}.{name}.weight"] = (normal(1.2 / np.sqrt(shape[1]), *shape), kind)
        for name, size in [("attn_q", q_size), ("attn_k", kv_size), ("attn_v", kv_size)]:
            out[f"blk.{layer}.{name}.bias"] = (normal(0.5, size), "F32")
        for name in ("attn_norm", "ffn_norm"):
            out[f"blk.{layer}.{name}.weight"] = (1 + normal(0.1, HIDDEN), "F32")
    out["output_norm.weight"] = (1 + normal(0.1, HIDDEN), "F32")
    return out


def main(path: str) -> None:
    """Write the file."""
    tokens, kinds, merges = train_vocabulary()
    ids = {token: i for i, token in enumerate(tokens)}
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Assay built-in (random)")
    writer.add_license("apache-2.0")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(Path(__file__).with_name("qwen2.5.jinja").read_text(encoding="utf-8"))
    quantize = {"Q4_K": quantize_q4_k, "Q6_K": quantize_q6_k}
    for name, (values, kind) in tensors().items():
        if kind == "F32":
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize[kind](values), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("builtin.gguf")))
