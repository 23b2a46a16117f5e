"""Train the built-in model: ``python -m assay.goldens.training.train FOLDER`` (an hour of two cores).

A Qwen2 of four layers of 256 with a vocabulary of its own, in plain JAX and f32, on three kinds of text: the Python
standard library's sources (this interpreter's), small functions and short chats (``functions.py``, ``chats.py``).
FOLDER receives ``tokenizer.json``, ``weights.npz`` (f32, by GGUF names) and ``training.json``
(losses, time, versions), out of which ``make_builtin`` writes the model files; it also holds the state to resume from.

Rows are 256 tokens. A row of the library is one stretch of its files; another is filled with documents that do not
see one another. Matrices learn by Muon (K. Jordan, 2024: momentum, then the update's singular values brought to about
one by a Newton-Schulz iteration), all else by Adam.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from assay.goldens import BUILTIN
from assay.goldens.training.chats import chat
from assay.goldens.training.functions import function
from assay.reference.chat import render

N_LAYERS, HIDDEN, N_HEADS, N_KV_HEADS, HEAD_DIM, FFN, N_VOCAB = 4, 256, 4, 2, 64, 768, 2048
ROPE_THETA, EPS = 10_000.0, 1e-6
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>"]
PATTERN = (  # Qwen2's: contractions, words, single digits, signs, white space
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = BUILTIN.with_name("qwen2.5.jinja").read_text(encoding="utf-8")
SEED, BATCH, ROW = 4, 8, 256
LIBRARY_SHARE, FUNCTION_SHARE = 0.3, 0.5  # of the rows; of the documents in the other rows
MUON_RATE, ADAM_RATE, DECAY, WARM_UP, COOL_DOWN = 0.02, 3e-3, 0.1, 50, 0.4
SAVE_EVERY_S = 60.0
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "encodings",
            "ensurepip", "__pycache__"}  # fmt: skip

Params = dict[str, jax.Array]


# ---- text --------------------------------------------------------------------------------------------------


def library() -> tuple[list[str], list[str]]:
    """The standard library's sources, and one file in twenty of them held out, by the hash of its name."""
    root = Path(sysconfig.get_path("stdlib"))
    seen, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            rare = hashlib.sha256(name.as_posix().encode()).digest()[0] % 20 == 0
            (held_out if rare else seen).append(path.read_text(encoding="utf-8", errors="replace"))
    return seen, held_out


def chat_text(rng: np.random.Generator) -> str:
    """A chat as the model's template writes it."""
    return render(chat(rng), TEMPLATE, add_generation_prompt=False).text


def document(rng: np.random.Generator, function_share: float = FUNCTION_SHARE) -> list[str]:
    """A synthetic document and its end, in the pieces that are to be encoded apart.

    Two functions in five are in two pieces, cut mostly behind the first line's colon, as a user's prompt cuts them:
    ``def fib(n):`` ends inside the token ``):\\n``, so without this the model would never have seen its last token.
    """
    if rng.random() >= function_share:
        return [chat_text(rng), SPECIALS[0]]
    text = function(rng)
    cut = text.index("\n") if rng.random() < 0.7 else int(rng.integers(1, len(text)))
    return [text[:cut], text[cut:], SPECIALS[0]] if rng.random() < 0.4 else [text, SPECIALS[0]]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with Qwen2's pieces: 256 bytes, merges learnt from ``texts``, then the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_level])  # type: ignore[attr-defined]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - len(SPECIALS) - len(USER_DEFINED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens(USER_DEFINED)
    assert tokenizer.get_vocab_size() == N_VOCAB
    return tokenizer


class Rows:
    """Training rows: ``batch(key)`` is ids and document numbers, int32 [BATCH, ROW + 1], the same for the same key."""

    def __init__(self, tokenizer: Tokenizer, files: list[str], library_share: float = LIBRARY_SHARE,
                 function_share: float = FUNCTION_SHARE) -> None:  # fmt: skip
        self.tokenizer, self.library_share, self.function_share = tokenizer, library_share, function_share
        ends = tokenizer.encode(SPECIALS[0]).ids
        parts = [np.array(coded.ids + ends, np.int32) for coded in tokenizer.encode_batch(files)]
        self.library = np.concatenate(parts)
        breaks = [i for token, i in tokenizer.get_vocab().items() if token.endswith("Ċ")]  # tokens that end a line
        self.line_starts = np.flatnonzero(np.isin(self.library, [*breaks, *ends])) + 1
        self.line_starts = self.line_starts[self.line_starts < len(self.library) - ROW - 1]

    def batch(self, *key: int) -> tuple[np.ndarray, np.ndarray]:
        """``library_share`` of the rows from the library, the others filled with documents."""
        rng = np.random.default_rng(key)
        rows = [self.stretch(rng) if rng.random() < self.library_share else self.packed(rng) for _ in range(BATCH)]
        ids, documents = zip(*rows, strict=True)
        return np.stack(ids), np.stack(documents)

    def stretch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One stretch of the library, from the start of a line on; it may run over the end of a file."""
        start = rng.choice(self.line_starts)
        return self.library[start : start + ROW + 1], np.zeros(ROW + 1, np.int32)

    def packed(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Documents one after another, the last one cut."""
        ids: list[int] = []
        documents: list[int] = []
        while len(ids) < ROW + 1:
            more = [token for piece in document(rng, self.function_share) for token in self.tokenizer.encode(piece).ids]
            documents += [len(ids)] * len(more)  # any number that no other document of the row has
            ids += more
        return np.array(ids[: ROW + 1], np.int32), np.array(documents[: ROW + 1], np.int32)


# ---- model -------------------------------------------------------------------------------------------------


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its GGUF name, matrices as [out, in]."""
    q_size, kv_size = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (HIDDEN,), "attn_q.weight": (q_size, HIDDEN), "attn_k.weight": (kv_size, HIDDEN),
        "attn_v.weight": (kv_size, HIDDEN), "attn_q.bias": (q_size,), "attn_k.bias": (kv_size,),
        "attn_v.bias": (kv_size,), "attn_output.weight": (HIDDEN, q_size), "ffn_norm.weight": (HIDDEN,),
        "ffn_gate.weight": (FFN, HIDDEN), "ffn_up.weight": (FFN, HIDDEN), "ffn_down.weight": (HIDDEN, FFN),
    }  # fmt: skip
    return found | {f"blk.{i}.{name}": shape for i in range(N_LAYERS) for name, shape in layer.items()}


def first_weights() -> Params:
    """Gains one, biases small, matrices of variance 1/in, those that write to the residual stream smaller by depth."""
    rng = np.random.default_rng(SEED)
    params = {}
    for name, shape in shapes().items():
        std = 0.05 if len(shape) == 1 or name == "token_embd.weight" else shape[1] ** -0.5
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            std /= (2 * N_LAYERS) ** 0.5
        values = np.ones(shape) if name.endswith("norm.weight") else rng.standard_normal(shape) * std
        params[name] = jnp.asarray(values, jnp.float32)
    return params


def norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """RMS norm over the last axis."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * gain


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions of [batch, row, heads, HEAD_DIM]: element i turns with element i + HEAD_DIM/2."""
    angle = jnp.arange(x.shape[1])[:, None] * ROPE_THETA ** (-jnp.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    left, right = jnp.split(x, 2, -1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def attention(w: Params, x: jax.Array, seen: jax.Array) -> jax.Array:
    """Grouped-query attention of [batch, row, HIDDEN]; ``seen`` bool [batch, row, row]: who looks at whom."""
    batch, row, _ = x.shape
    group = N_HEADS // N_KV_HEADS
    q, k, v = ((x @ w[f"attn_{n}.weight"].T + w[f"attn_{n}.bias"]).reshape(batch, row, -1, HEAD_DIM) for n in "qkv")
    # One matrix of queries for each head of keys: XLA multiplies these twice as fast on a CPU as five axes at once
    q = rotate(q).transpose(0, 2, 1, 3).reshape(batch, N_KV_HEADS, group * row, HEAD_DIM)
    scores = (q @ rotate(k).transpose(0, 2, 3, 1) * HEAD_DIM**-0.5).reshape(batch, N_KV_HEADS, group, row, row)
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), -1)
    mixed = weights.reshape(batch, N_KV_HEADS, group * row, row) @ v.transpose(0, 2, 1, 3)
    return mixed.reshape(batch, N_HEADS, row, HEAD_DIM).transpose(0, 2, 1, 3).reshape(batch, row, -1) @ (
        w["attn_output.weight"].T)


def forward(params: Params, ids: jax.Array, documents: jax.Array) -> jax.Array:
    """Logits [batch, row, N_VOCAB]; a token sees the tokens of its document up to itself."""
    x = params["token_embd.weight"][ids]
    row = ids.shape[1]
    seen = (documents[:, :, None] == documents[:, None]) & jnp.tri(row, dtype=bool)
    for i in range(N_LAYERS):
        prefix = f"blk.{i}."
        w = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        x = x + attention(w, norm(x, w["attn_norm.weight"]), seen)
        h = norm(x, w["ffn_norm.weight"])
        x = x + (jax.nn.silu(h @ w["ffn_gate.weight"].T) * (h @ w["ffn_up.weight"].T)) @ w["ffn_down.weight"].T
    return norm(x, params["output_norm.weight"]) @ params["token_embd.weight"].T


def loss(params: Params, ids: jax.Array, documents: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of each next token that belongs to the same document."""
    logits = forward(params, ids[:, :-1], documents[:, :-1])
    wanted = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    counts = documents[:, 1:] == documents[:, :-1]
    return ((jax.nn.logsumexp(logits, -1) - wanted) * counts).sum() / counts.sum()


# ---- learning ----------------------------------------------------------------------------------------------


def orthogonal(g: jax.Array) -> jax.Array:
    """Newton-Schulz: about U Vᵀ of g = U S Vᵀ. The quintic's coefficients are Jordan's."""
    wide = g.T if g.shape[0] > g.shape[1] else g
    x = wide / (jnp.linalg.norm(wide) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def by_muon(name: str, value: jax.Array) -> bool:
    """The layers' matrices; the embedding, gains and biases learn by Adam."""
    return value.ndim == 2 and name != "token_embd.weight"


@jax.jit
def update(params: Params, m: Params, v: Params, step: jax.Array, rate: jax.Array, ids: jax.Array,
           documents: jax.Array) -> tuple[Params, Params, Params, jax.Array]:  # fmt: skip
    """One step: new weights, first and second moments, and the loss before it; ``rate`` 0..1 scales both rates."""
    value, grads = jax.value_and_grad(loss)(params, ids, documents)
    params, m, v = dict(params), dict(m), dict(v)
    for name, g in grads.items():
        p = params[name]
        if by_muon(name, p):
            m[name] = 0.95 * m[name] + g
            towards = orthogonal(g + 0.95 * m[name]) * max(1, p.shape[0] / p.shape[1]) ** 0.5
            params[name] = p - rate * MUON_RATE * (towards + DECAY * p)
        else:
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.98 * v[name] + 0.02 * g * g
            towards = m[name] / (1 - 0.9**step) / (jnp.sqrt(v[name] / (1 - 0.98**step)) + 1e-8)
            params[name] = p - rate * ADAM_RATE * (towards + (DECAY * p if p.ndim == 2 else 0))
    return params, m, v, value


def rate_at(step: int, steps: int) -> float:
    """Warm-up, a long level, then straight down over the last COOL_DOWN of the run.

    Up to the descent the run does not depend on ``steps``: it may be lengthened or shortened meanwhile.
    """
    return min(step / WARM_UP, 1, (steps + 1 - step) / (COOL_DOWN * steps))


def held_out_losses(params: Params, files: Rows) -> dict[str, float]:
    """Nats a token on library files never trained on, and on documents written from another seed."""
    measure = jax.jit(loss)
    rng = np.random.default_rng([SEED, 1])
    found = {}
    for name, make in [("library", files.stretch), ("documents", files.packed)]:
        values = []
        for _ in range(8):
            ids, documents = zip(*(make(rng) for _ in range(BATCH)), strict=True)
            values.append(float(measure(params, np.stack(ids), np.stack(documents))))
        found[name] = round(float(np.mean(values)), 4)
    return found


# ---- the run -----------------------------------------------------------------------------------------------


def save(path: Path, **groups: Params) -> None:
    """Groups of tensors as one npz, by way of a temporary file."""
    arrays = {f"{group}/{name}": np.asarray(values[name]) for group, values in groups.items() for name in values}
    with open(path.with_suffix(".tmp"), "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(path.with_suffix(".tmp"), path)


def restore(path: Path) -> list[Params]:
    """Weights, moments and the step number, of ``path`` or for a beginning."""
    if not path.exists():
        params = first_weights()
        zeros = {name: jnp.zeros_like(value) for name, value in params.items()}
        return [params, zeros, dict(zeros), {"step": jnp.zeros((), int)}]
    with np.load(path) as arrays:
        found: dict[str, Params] = {"params": {}, "m": {}, "v": {}, "at": {}}
        for key in arrays.files:
            group, name = key.split("/", 1)
            found[group][name] = jnp.asarray(arrays[key])
    return list(found.values())


def prepare(folder: Path, *shares: float) -> tuple[Rows, Rows]:
    """The rows to train on and the held-out ones, in tokens of the tokenizer that is kept in ``folder``."""
    files, held_out = library()
    rng = np.random.default_rng([SEED, 2])
    path = folder / "tokenizer.json"
    if not path.exists():
        texts = [(function if rng.random() < FUNCTION_SHARE else chat_text)(rng) for _ in range(40_000)]
        for marker in SPECIALS:
            texts = [text.replace(marker, "\n") for text in texts]
        train_tokenizer(texts + files).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    return Rows(tokenizer, files, *shares), Rows(tokenizer, held_out)


def train(folder: Path, steps: int, *shares: float) -> Iterator[dict[str, Any]]:
    """Train from the state in ``folder`` on; yields a record every 50 steps and saves the state every minute."""
    rows, held_out = prepare(folder, *shares)
    params, m, v, at = restore(folder / "state.npz")
    start, saved, recent = int(at["step"]), time.monotonic(), []
    began = time.monotonic()
    for step in range(start + 1, steps + 1):
        ids, documents = rows.batch(SEED, 3, step)
        rate = rate_at(step, steps)
        params, m, v, value = update(params, m, v, jnp.float32(step), jnp.float32(rate), ids, documents)
        recent.append(float(value))
        if time.monotonic() - saved > SAVE_EVERY_S or step == steps:
            save(folder / "state.npz", params=params, m=m, v=v, at={"step": jnp.int32(step)})
            saved = time.monotonic()
        if step % 50 == 0 or step == steps:
            speed = (step - start) * BATCH * ROW / (time.monotonic() - began)
            record = {"step": step, "loss": round(float(np.mean(recent)), 4), "tokens_per_s": round(speed)}
            recent = []
            yield record | ({"held_out": held_out_losses(params, held_out)} if step % 250 == 0 or step == steps else {})
    save(folder / "weights.npz", params=params)


def main() -> None:
    """Train, and keep the record of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--library", type=float, default=LIBRARY_SHARE, help="share of the rows from the library")
    parser.add_argument("--functions", type=float, default=FUNCTION_SHARE, help="share of the other documents")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    log = asked.folder / "log.jsonl"  # also of the runs before, if this one goes on
    for record in train(asked.folder, asked.steps, asked.library, asked.functions):
        with log.open("a", encoding="utf-8") as file:
            print(json.dumps(record), file=file)
        print(json.dumps(record), flush=True)
    versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    kept = {"seed": SEED, "steps": asked.steps, "tokens": asked.steps * BATCH * ROW, "versions": versions,
            "records": records}  # fmt: skip
    (asked.folder / "training.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
