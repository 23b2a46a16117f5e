"""``assay run``: generate text after a prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from assay.commands import options
from assay.commands.asked import IDS_HELP, Messages, PromptFile, asked
from assay.engines import generate, stream_generate
from assay.formats import InputError
from assay.formats.contract.engine import Generation, Prompt, Sampling, Timings
from assay.formats.contract.messages import Conversation
from assay.output import write_generated


def command(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=1, help="Stop after so many tokens; by default 128, fewer "
                                 "where the context ends.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the chat template, once.")] = False,
    system: Annotated[str | None, typer.Option(help="The system message, with --chat.")] = None,
    messages: Messages = None,
    prompt_file: PromptFile = None,
    ids: Annotated[str | None, typer.Option(help=f"Token ids instead of text: {IDS_HELP}")] = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    logprobs: Annotated[
        int, typer.Option(min=0, max=100, help="With --json: list so many of the likeliest tokens at each step.")
    ] = 0,
    special: options.Special = True,
    nfc: options.NFC = True,
    cache_weights: options.CacheWeights = False,
    cache_type: options.CacheType = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    as_json: options.Json = False,
) -> None:
    """Generate text. The prompt is raw unless --chat or --messages is given; decoding is greedy at temperature 0."""
    sampling = options.sampling_of(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    what = asked(prompt, prompt_file, ids, messages, chat=chat)
    if system is not None and not chat:
        raise InputError("--system needs --chat", where="--system",
                         remedy="A raw prompt has no turns, and --messages has its own")  # fmt: skip
    options.demand_effect("--logprobs", logprobs > 0 and not as_json, "they are printed with --json only")
    options.demand_effect("--stop", "" in (stop or ()), "an empty text stops nothing")
    options.demand_effect("--no-nfc", not nfc and ids is not None, "ids are not normalised")
    in_turns = chat or messages is not None
    options.demand_effect("--no-special", not special and (in_turns or ids is not None),
                          "a message never spells a control token" if in_turns else "ids are not spelt")  # fmt: skip
    loaded = options.open_engine(model, engine, arith, nfc, cache_weights, cache_type)
    if chat:
        turns = [] if system is None else [{"role": "system", "content": system}]
        what = Conversation([*turns, {"role": "user", "content": what}])
    if isinstance(what, Conversation):
        what = loaded.chat_prompt(**vars(what))
    elif isinstance(what, str):
        what = Prompt(what, () if special else ((0, len(what)),))
    how: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "stop": stop or (), "logprobs": logprobs}
    if as_json:
        typer.echo(json.dumps(report(loaded, generate(loaded, what, **how), sampling, logprobs), ensure_ascii=False))
    elif stream:
        print_stream(loaded, what, how)
    else:
        result = generate(loaded, what, **how)
        write_generated(f"{result.text}\n")
        say_speed(result.timings)


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
