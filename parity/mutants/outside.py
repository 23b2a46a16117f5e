"""Mutants of what is around the model: sampler, tokenizer, template, and how a file is read."""

from __future__ import annotations

import numpy as np

from assay.parity.mutants.record import Bytes, Mutant, Reader, Seam, Site, Source, Twin, Words

SAMPLER, TOKENIZER, TEMPLATE, READING = "sampler", "tokenizer", "template", "container reading"


def of(family: str, name: str, seam: Seam, site: Site = None, bug: int | None = None) -> Mutant:
    """A mutant of one size."""
    return Mutant(name, family, seam, site, bug)


SAMPLERS = (
    of(SAMPLER, "of equal logits the last is taken", Source(
        "sampler.first_largest", ".min().astype", ".max().astype", compiled=True)),
    of(SAMPLER, "one more than the top k", Twin(top_k=1)),
    of(SAMPLER, "top p too large by a tenth", Twin(top_p=1.1)),
    of(SAMPLER, "temperature too high by a tenth", Twin(temperature=1.1)),
    of(SAMPLER, "drawn with the next token's number", Twin(counter=1)),
    of(SAMPLER, "the repeat penalty left out", Twin(unseen=True)),
    of(SAMPLER, "the repeat penalty too strong by a tenth", Twin(penalty=1.1)),
    of(SAMPLER, "end tokens are written over", Source(
        "generate.Writer.step", "self.last in self.vocabulary.end_ids", "False"), bug=22),
    of(SAMPLER, "the answer's text loses its spaces", Source(
        "generate.Writer.write", "self.decoder.push(token)", "self.decoder.push(token).strip()")),
    of(SAMPLER, "the last token of a burst is dropped", Source(
        "model.Model.decode_steps", "for i in range(int(made))]", "for i in range(max(1, int(made) - (made > 12)))]")),
)  # fmt: skip
TOKENIZERS = (
    of(TOKENIZER, "the longest match is taken, ranks ignored", Words("longest match"), bug=3),
    of(TOKENIZER, "a token is put before every text", Words("bos added")),
    of(TOKENIZER, "control tokens are read as text", Words("control as text"), bug=3),
    of(TOKENIZER, "control tokens in content count", Words("content as control")),
    of(TOKENIZER, "text is not normalised", Words("no nfc")),
    of(TOKENIZER, "unknown bytes become id 0", Words("id 0"), bug=29),
    of(TOKENIZER, "runs of spaces become one", Words("one space")),
)
TEMPLATES = (
    of(TEMPLATE, "applied twice", Words("template twice"), bug=4),
    of(TEMPLATE, "applied to raw text, too", Words("raw text wrapped"), bug=5),
    of(TEMPLATE, "not applied", Words("not wrapped"), bug=23),
    of(TEMPLATE, "a newline missing", Words("newline missing")),
    of(TEMPLATE, "no generation prompt", Words("no generation prompt")),
    of(TEMPLATE, "another system prompt", Words("system prompt")),
    of(TEMPLATE, "content stripped", Words("content stripped")),
)
READINGS = (
    of(READING, "the query biases lost", Reader(zero="blk.*.attn_q.bias"), ("q_bias", 0), 7),
    of(READING, "all biases lost", Reader(zero="blk.*.attn_*.bias"), ("q_bias", 0), 14),
    of(READING, "gate and up exchanged", Reader(exchange=("blk.*.ffn_gate.weight", "blk.*.ffn_up.weight")),
       ("ffn_gate", 0)),
    of(READING, "the two norms of a layer exchanged", Reader(
        exchange=("blk.*.attn_norm.weight", "blk.*.ffn_norm.weight")), ("attn_norm", 0), 18),
    of(READING, "two layers' keys exchanged", Reader(exchange=("blk.1.attn_k.weight", "blk.2.attn_k.weight")),
       ("k_proj", 1)),
    of(READING, "a tensor starts a row late", Bytes(
        "blk.2.attn_output.weight", lambda raw, _: np.roll(raw, -1, axis=0))),
    of(READING, "the end tokens not known", Reader(end_ids=False), None, 22),
    of(READING, "rope_theta by both sides a hundred times too large", Reader(
        (("rope_theta", 100.0),), shared=True), None, 11),
    of(READING, "eps by both sides a hundred times too large", Reader(
        (("rms_norm_eps", 100.0),), shared=True), None, 8),
    of(READING, "end tokens by both sides not known", Reader(end_ids=False, shared=True), None, 22),
)  # fmt: skip

ALL = (*SAMPLERS, *TOKENIZERS, *TEMPLATES, *READINGS)
