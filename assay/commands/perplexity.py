"""``assay perplexity``: what ``llama-perplexity`` of llama.cpp measures, and its ``.kld`` files, of either engine."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from assay.commands import options, tables
from assay.commands.asked import PromptFile, read_from
from assay.commands.comparison import Force, PathThrough
from assay.formats import InputError, SampleError
from assay.formats.system.atomic_file import demand_apart, demand_free
from assay.judging.judge import PATHS
from assay.judging.perplexity import chunks_of, demand_context, demand_same_vocabulary, logits_of
from assay.parity import kld
from assay.parity.divergence import QUANTILES, block_bootstrap
from assay.parity.sample import first_difference
from assay.progress import bar

CONTEXT = 512
"""Tokens of a chunk, as of llama-perplexity."""


def command(
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "accel",
    arith: options.Arith = None,
    cache_type: options.CacheType = None,
    prompt_file: PromptFile = None,
    ctx_size: Annotated[
        int | None, typer.Option("--ctx-size", "-c", help=f"Tokens of a chunk: {CONTEXT}, or as the base has them.")
    ] = None,
    chunks: Annotated[int | None, typer.Option(min=1, help="Read at most so many chunks; all.")] = None,
    base: Annotated[
        Path | None, typer.Option("--kl-divergence-base", help="Write the log-probabilities to this .kld file.")
    ] = None,
    kl_divergence: Annotated[
        bool, typer.Option("--kl-divergence", help="Read that file instead, and compare the engine with it.")
    ] = False,
    path: PathThrough = "prefill",
    nfc: options.NFC = True,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Perplexity of a text, and the KL divergence from a base, as llama-perplexity of llama.cpp computes them.

    The options are its own, and so are the files: either program reads what the other wrote. A text is cut into
    chunks, and the second half of each is scored. A base holds its tokens, so with --kl-divergence no text is needed;
    one that is given must have the base's tokens (exit code 9 if not). Control tokens in a text are read as text. This
    is a measurement, no verdict: 'assay flips' says whether what differs is rounding.
    """
    if path not in PATHS:
        raise InputError(f"there is no path {path!r}", where="--path", remedy=f"Choose one of {', '.join(PATHS)}")
    given = (text, prompt_file) != (None, None)
    known = base_to_read(base, kl_divergence, force=force)
    asked = read_from(text, prompt_file, None) if given or known is None else None
    loaded = options.open_engine(model, engine, arith, nfc, cache_type=cache_type)
    n_ctx = ctx_size or CONTEXT
    if known is not None:
        n_ctx = known.chunks.shape[1]
        options.demand_effect("--ctx-size", ctx_size not in (None, n_ctx), f"the base has chunks of {n_ctx} tokens")
        demand_same_vocabulary(known, loaded.file)
    demand_context(n_ctx, loaded.file)
    cut = known.chunks[:chunks] if known is not None else None
    if asked is not None:
        tokens = chunks_of(loaded.tokenizer.encode(asked, special=False), n_ctx, chunks if cut is None else len(cut))
        if cut is not None:
            demand_same_tokens(cut, tokens)
        cut = tokens
    assert cut is not None
    if known is not None:
        said = compared(loaded, known, cut, path)
    else:
        demand_apart_from_read(base, loaded, prompt_file)
        said = measured(loaded, cut, path, base, force=force)
    said = {"model": options.model_of(loaded.file), "engine": loaded.fingerprint(), "path": path, "n_ctx": n_ctx,
            "chunks": len(cut), "kld_file": None if base is None else str(base), **said}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(tables.finite(said), ensure_ascii=False))
    else:
        show(said)


def base_to_read(base: Path | None, kl_divergence: bool, *, force: bool) -> kld.Base | None:
    """The base to compare with; None where one is written, or none is wanted. InputError for a file in the way."""
    options.demand_effect("--force", force and (kl_divergence or base is None), "nothing is written")
    if base is None:
        options.demand_effect("--kl-divergence", kl_divergence, "no file is named by --kl-divergence-base")
        return None
    if kl_divergence:
        return kld.read(base)
    demand_free(base, force=force)
    return None


def demand_apart_from_read(base: Path | None, loaded: Any, prompt_file: Path | None) -> None:
    """Raise InputError for a base to be written that is the model or the text."""
    if base is not None:
        demand_apart(base, [*loaded.file.files, *([] if prompt_file is None else [prompt_file])])


def demand_same_tokens(of_base: np.ndarray, of_text: np.ndarray) -> None:
    """Raise SampleError unless the text has the tokens that the base was made of."""
    ours, theirs = of_text.ravel().tolist(), of_base.ravel().tolist()
    if ours != theirs:
        at = first_difference(ours, theirs)
        raise SampleError(f"{ours[at : at + 4]} in the text and {theirs[at : at + 4]} in the base from token {at} on",
                          where="same-sample check: token ids",
                          remedy="Give the text that the base was made of, or none")  # fmt: skip


def measured(loaded: Any, cut: np.ndarray, path: str, base: Path | None, *, force: bool) -> dict[str, Any]:
    """The perplexity of the chunks ``cut``; what was computed goes to the file ``base``, if there is one."""
    parts, n = [], len(loaded.file.vocabulary)
    with ExitStack() as stack:
        add = None if base is None else stack.enter_context(kld.writing(base, cut, n, force=force))
        progress = stack.enter_context(bar())
        for i, logits in enumerate(logits_of(loaded, cut, path)):
            parts.append(kld.surprise(logits, cut[i]))
            if add is not None:
                add(logits)
            progress(i + 1, len(cut), "chunks")
    surprise = np.concatenate(parts)
    perplexity = float(np.exp(surprise.mean()))
    return {"positions": len(surprise), "ppl": perplexity, "ppl_error": perplexity * block_bootstrap(surprise)}


def compared(loaded: Any, known: kld.Base, cut: np.ndarray, path: str) -> dict[str, Any]:
    """The figures of ``--kl-divergence``."""
    parts = []
    with bar() as progress:
        for i, logits in enumerate(logits_of(loaded, cut, path)):
            parts.append(kld.against(known, i, logits))
            progress(i + 1, len(cut), "chunks")
    return kld.figures(parts)


def show(said: dict[str, Any]) -> None:
    """The figures, in the words of llama-perplexity."""
    if "ppl" in said:
        tables.line(f"PPL = {said['ppl']:.4f} ± {said['ppl_error']:.4f}")
        if said["kld_file"] is not None:
            tables.line(f"base written to {said['kld_file']}")
    else:
        rows = [("Mean PPL(Q)", f"{said['ppl_candidate']:.6f}", ""), ("Mean PPL(base)", f"{said['ppl_truth']:.6f}", ""),
                ("Mean ln(PPL(Q)/PPL(base))", f"{said['ln_ppl_ratio']:.6f}", f"{said['ln_ppl_ratio_error']:.6f}"),
                ("Mean KLD", f"{said['mean_kld']:.6f}", f"{said['mean_kld_error']:.6f}"),
                ("Maximum KLD", f"{said['maximum_kld']:.6f}", ""),
                *((f"{q:g}% KLD", f"{said[f'kld_{q:g}']:.6f}", "") for q in QUANTILES),
                ("Minimum KLD", f"{said['minimum_kld']:.6f}", ""),
                ("Mean Δp", f"{said['mean_dp']:.3%}", f"{said['mean_dp_error']:.3%}"),
                ("RMS Δp", f"{said['rms_dp']:.3%}", ""), ("Same top p", f"{said['same_top']:.3%}", "")]  # fmt: skip
        tables.columns(("", "value", "±"), rows, right=("value", "±"))
        tables.line()
    of = f"{tables.plural(said['chunks'], 'chunk')} of {said['n_ctx']} tokens"
    tables.line(f"{said['positions']:,} positions of {of}")
