"""``assay run``: generate text after a prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.engines import generate, stream_generate
from assay.formats import InputError
from assay.formats.contract.engine import Generation, Prompt, Sampling, Timings
from assay.output import write_generated

MAX_PROMPT_BYTES = 16 << 20


def command(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Stop after so many tokens.")] = 128,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the chat template, once.")] = False,
    system: Annotated[str | None, typer.Option(help="System text, with --chat.")] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompt-file", "-f", help="Prompt from a file.")] = None,
    ids: Annotated[str | None, typer.Option(help="Token ids instead of text: 1,2,3.")] = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    logprobs: Annotated[int, typer.Option(min=0, max=100, help="With --json: K likeliest tokens of each step.")] = 0,
    special: options.Special = True,
    nfc: options.NFC = True,
    cache_weights: options.CacheWeights = False,
    cache_type: options.CacheType = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    as_json: options.Json = False,
) -> None:
    """Generate text. The prompt is raw unless --chat; decoding is greedy unless --temperature is given."""
    sampling = options.sampling_of(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    text = prompt_text(prompt, prompt_file, ids)
    if system is not None and not chat:
        raise InputError("--system needs --chat", where="--system", remedy="A raw prompt has no turns")
    if chat and ids is not None:
        raise InputError("--chat and --ids exclude one another", where="--ids", remedy="Ids are final")
    options.demand_effect("--logprobs", logprobs > 0 and not as_json, "they are printed with --json only")
    options.demand_effect("--stop", "" in (stop or ()), "an empty text stops nothing")
    options.demand_effect("--no-nfc", not nfc and ids is not None, "ids are not normalised")
    options.demand_effect("--no-special", not special and (chat or ids is not None),
                          "a message never spells a control token" if chat else "ids are not spelt")  # fmt: skip
    loaded = options.open_engine(model, engine, arith, nfc, cache_weights, cache_type)
    asked: Prompt | Sequence[int]
    if ids is not None:
        asked = parse_ids(ids)
    elif chat:
        turns = [] if system is None else [{"role": "system", "content": system}]
        asked = loaded.chat_prompt([*turns, {"role": "user", "content": text}])
    else:
        asked = Prompt(text, () if special else ((0, len(text)),))
    how: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "stop": stop or (), "logprobs": logprobs}
    if as_json:
        typer.echo(json.dumps(report(loaded, generate(loaded, asked, **how), sampling, logprobs), ensure_ascii=False))
    elif stream:
        print_stream(loaded, asked, how)
    else:
        result = generate(loaded, asked, **how)
        write_generated(f"{result.text}\n")
        say_speed(result.timings)


def prompt_text(prompt: str | None, prompt_file: Path | None, ids: str | None) -> str:
    """The prompt from the one place it was given in; InputError if there is none, or more than one."""
    if sum(given is not None for given in (prompt, prompt_file, ids)) != 1:
        raise InputError("give exactly one of PROMPT, --prompt-file and --ids", where="prompt",
                         remedy="assay run 'def fib(n):'")  # fmt: skip
    if prompt_file is not None:
        return read_text(prompt_file)
    if prompt == "-":
        return decoded(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "standard input")
    return prompt or ""


def read_text(path: Path) -> str:
    """A UTF-8 text file of bounded size, line ends untouched."""
    try:
        with path.open("rb") as file:
            return decoded(file.read(MAX_PROMPT_BYTES + 1), str(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="Check the path") from None


def decoded(raw: bytes, where: str) -> str:
    """``raw`` as UTF-8; InputError if it is not, or too long."""
    if len(raw) > MAX_PROMPT_BYTES:
        raise InputError(f"the prompt is longer than {MAX_PROMPT_BYTES} bytes", where=where, remedy="Shorten it")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", where=where, remedy="Convert it to UTF-8") from None


def parse_ids(text: str) -> list[int]:
    """``"1,2,3"`` -> [1, 2, 3]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text[:40]!r} is not a list of token ids", where="--ids",
                         remedy="Write them as 1,2,3") from None  # fmt: skip


def print_stream(loaded: Any, prompt: Prompt | Sequence[int], how: dict[str, Any]) -> None:
    """Print the answer as it comes, then a line about speed if somebody is watching."""
    timings = Timings(open_s=loaded.open_s)
    for step in stream_generate(loaded, prompt, timings=timings, **how):
        write_generated(step.text)
    write_generated("\n")
    say_speed(timings)


def say_speed(timings: Timings) -> None:
    """Tokens a second, on a terminal only."""
    if sys.stderr.isatty():
        speed = timings.as_dict()
        parts = [
            f"{name} {speed[key]:.1f} tokens/s"
            for name, key in (("prefill", "prefill_tok_s"), ("decode", "decode_tok_s"))
            if speed[key]
        ]
        options.say(", ".join([*parts, f"open {timings.open_s:.1f} s, compile {timings.compile_s:.1f} s"]))


def report(loaded: Any, result: Generation, sampling: Sampling, logprobs: int) -> dict[str, Any]:
    """The JSON object of ``assay run``."""
    fingerprint = loaded.fingerprint()
    return {
        "model": options.model_of(loaded.file),
        "engine": fingerprint["engine"],
        "arith": fingerprint["arith"],
        "fingerprint": fingerprint,
        "sampling": asdict(sampling),
        "prompt": result.prompt,
        "prompt_ids": result.prompt_ids,
        "ids": result.ids,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "stopped_by": result.stopped_by,
        "margins": result.margins,
        "logprobs": result.logprobs,
        **({"top_logprobs": result.top_logprobs} if logprobs else {}),
        "timings": result.timings.as_dict(),
    }
