"""The proof proven: the catalogue, every seam, and what counts as a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from assay.formats import open_model
from assay.goldens import BUILTIN
from assay.judging.engines_under_test import UnderTest, baseline
from assay.judging.proof import files, oracle, outputs, score
from assay.judging.proof.bench import Bench
from assay.judging.proof.candidate import Candidate, DoesNotApply, Shared, instrumented
from assay.judging.proof.faults import NotApplied, fault_of, rounded, tap_of
from assay.judging.proof.gates import Answer
from assay.judging.proof.rebound import rewritten
from assay.parity.mutants import CATALOGUE, FAMILIES, named, smaller
from assay.parity.mutants.record import (
    Activation,
    Angles,
    Bytes,
    Mutant,
    Reader,
    Source,
    Twin,
    Where,
    Words,
    described,
)
from assay.parity.verdict import Verdict

IDS = [300, 12, 77, 410, 3, 3]
FILE = open_model(BUILTIN)


# The catalogue


def test_the_catalogue_is_large_enough_and_names_are_its_keys() -> None:
    assert len(CATALOGUE) >= 120 and len(FAMILIES) >= 18
    everything = (*CATALOGUE, *smaller())
    assert len({mutant.name for mutant in everything}) == len(everything)
    assert all(named(mutant.name) is not None for mutant in everything)
    assert len({mutant.real_bug for mutant in CATALOGUE} - {None}) >= 20
    assert json.loads(json.dumps([described(mutant.seam) for mutant in everything]))


def test_a_size_below_one_is_another_change() -> None:
    assert named("down's output too large by a thousandth x0.1").seam == Activation("ffn_out", gain=1.0001)
    with pytest.raises(ValueError, match="one size"):
        named("Q4_K: min lost").sized(0.1)


@pytest.mark.parametrize("mutant", [m for m in CATALOGUE if isinstance(m.seam, Bytes)], ids=lambda m: m.name)
def test_changed_bytes_are_as_many_and_different(mutant: Mutant) -> None:
    assert isinstance(mutant.seam, Bytes)
    file, names = files.spoiled(FILE, mutant.seam)
    for name in names[:1]:
        before, after = FILE.tensors[name].raw(), file.tensors[name].raw()
        assert before.shape == after.shape and not np.array_equal(before, after)
    stage, layer = files.site_of(names, mutant.seam.used_as)
    assert stage in files.STAGE_OF.values() or layer is None


def test_seams_that_do_not_exist_are_not_applied() -> None:
    for seam in (Bytes("blk.99.*", lambda raw, _: raw + 1), Bytes("blk.0.attn_q.weight", lambda raw, _: raw)):
        with pytest.raises(NotApplied):
            files.spoiled(FILE, seam)
    for reader in (Reader(zero="blk.*.nothing"), Reader(exchange=("blk.0.a", "blk.0.b")),
                   Reader(exchange=("blk.0.attn_k.weight", "blk.0.ffn_up.weight"))):  # fmt: skip
        with pytest.raises(NotApplied):
            files.misread(FILE, reader)
    for stage in (Activation("ffn_up", 99), Activation("nowhere"), Activation("logits")):
        with pytest.raises(NotApplied):
            fault_of(stage, FILE.config, FILE.vocabulary)
    for source in (Source("nowhere.f", "a", "b"), Source("attention.f", "a", "b"),
                   Source("attention.attention", "???", "b"), Source("attention.attention", "i", "b")):  # fmt: skip
        with pytest.raises(NotApplied), rewritten(source):
            pass


@pytest.mark.parametrize("mutant", [m for m in CATALOGUE if isinstance(m.seam, Source)], ids=lambda m: m.name)
def test_rewritten_sources_are_put_back(mutant: Mutant) -> None:
    from assay.accel import steps

    assert isinstance(mutant.seam, Source)
    before = {name: value for name, value in vars(steps).items() if callable(value)}
    with rewritten(mutant.seam):
        pass
    assert {name: value for name, value in vars(steps).items() if callable(value)} == before


# Numbers that steer


def spoil(seam: Activation, x: np.ndarray, *, start: int = 0, sequences: int = 1,
          ids: list[int] | None = None) -> np.ndarray:  # fmt: skip
    fault = fault_of(seam, FILE.config, FILE.vocabulary)
    n = len(x) // sequences
    positions = np.tile(start + np.arange(n), sequences)
    tap = tap_of(fault, np, positions, np.array(ids or [5] * len(x)), sequences, np.full(len(x), start > 0))
    return tap(seam.stage or "ffn_up", 1, x)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, FILE.config.ffn_size)).astype(np.float32)


def rows_changed(seam: Activation, x: np.ndarray, **more: Any) -> list[int]:
    return np.flatnonzero((spoil(seam, x, **more) != x).any(1)).tolist()


def test_no_fault_changes_no_bit(x: np.ndarray) -> None:
    assert np.array_equal(spoil(Activation("", None), x), x)
    assert np.array_equal(spoil(Activation("ffn_up", 2, gain=2), x), x), "another layer"


def test_an_activation_is_changed_where_it_is_said(x: np.ndarray) -> None:
    def doubled(**where: Any) -> Activation:
        return Activation("ffn_up", 1, gain=2, where=Where(**where))

    everywhere = list(range(8))
    assert np.array_equal(spoil(doubled(), x), 2 * x)
    assert rows_changed(doubled(first=3, stop=5), x) == [3, 4]
    assert rows_changed(doubled(first=3), x, start=3) == everywhere
    assert rows_changed(doubled(sequence=1), x, sequences=4) == [2, 3] and rows_changed(doubled(sequence=0), x) == []
    assert rows_changed(doubled(warm=True), x) == [] and rows_changed(doubled(warm=True), x, start=1) == everywhere
    assert rows_changed(doubled(chunks=False), x) == [] and rows_changed(doubled(chunks=False), x[:1]) == [0]
    assert rows_changed(doubled(steps=False), x[:1]) == [] and rows_changed(doubled(steps=False), x) == everywhere
    control = FILE.vocabulary.ids_of_kind(3)[0]
    assert rows_changed(doubled(special=True), x, ids=[5, control] * 4) == [1, 3, 5, 7]


def test_channels_orders_and_bits(x: np.ndarray) -> None:
    one = spoil(Activation("ffn_up", 1, gain=0, channels=(7, 8)), x)
    assert (one[:, 7] == 0).all() and np.array_equal(np.delete(one, 7, 1), np.delete(x, 7, 1))
    assert np.array_equal(spoil(Activation("ffn_up", order="one"), x), np.roll(x, 1, 1))
    assert np.array_equal(spoil(Activation("ffn_up", order="reversed"), x), x[:, ::-1])
    fault = fault_of(Activation("ffn_up", order="reversed"), FILE.config, FILE.vocabulary)
    tap = tap_of(fault, np, np.arange(8), np.full(8, 5), 1, np.zeros(8, bool))
    assert np.array_equal(tap("attn_norm", 1, x[:, :256]), x[:, :256]), "a narrower stage"
    narrow, head = x[:, : FILE.config.n_heads * FILE.config.head_dim], FILE.config.head_dim
    swapped = spoil(Activation("attention", order="heads"), narrow)
    assert np.array_equal(swapped[:, :head], narrow[:, head : 2 * head])
    with np.errstate(invalid="ignore"):  # as in the oracle's forward pass
        assert np.isinf(spoil(Activation("ffn_up", offset=np.inf, channels=(9, 10)), x)[:, 9]).all()
    coarse = rounded(x, np.uint32(0xFFFF0000), np.float32(0), np)
    assert np.abs(coarse - x).max() > 0 and (np.abs(coarse) > np.abs(x) * (1 - 2**-7)).all()
    eight = rounded(x, np.uint32(0xFFFFFFFF), np.float32(127), np)
    assert 0 < np.abs(eight - x).max() <= np.abs(x).max() / 254 * 1.0001


# Every seam in an engine: the oracle, which compiles nothing


@pytest.fixture(scope="module")
def shared() -> Shared:
    return Shared(baseline(FILE))


@pytest.fixture(scope="module")
def candidate() -> Iterator[Candidate]:
    with instrumented("ggml"):
        yield Candidate(FILE, "ggml")


SEAMS = {
    "activation": Activation("ffn_up", 1, gain=2),
    "norm": Twin(eps=1000),
    "rope": Twin(neighbours=True),
    "keys": Twin(k_turn=1),
    "scores": Twin(score=2),
    "bytes": Bytes("blk.1.ffn_up.weight", lambda raw, _: np.roll(raw, 1, axis=0)),
    "head": Bytes("token_embd.weight", lambda raw, _: np.roll(raw, 1, axis=0), used_as="head"),
    "reader": Reader(zero="blk.*.attn_q.bias"),
}


@pytest.mark.parametrize("seam", SEAMS.values(), ids=SEAMS)
def test_each_seam_changes_the_logits_and_is_put_back(seam: Any, candidate: Candidate, shared: Shared) -> None:
    clean = candidate.model.forward(IDS)
    with candidate.applied(Mutant("", "", seam), shared) as (under_test, _):
        assert not np.array_equal(under_test.candidate.forward(IDS), clean)
    assert np.array_equal(candidate.model.forward(IDS), clean)


WORDS = [m.seam.change for m in CATALOGUE if isinstance(m.seam, Words)]


@pytest.mark.parametrize("change", [c for c in WORDS if "template" not in c and "content" not in c and "prompt" not in c
                                    and "wrapped" not in c and c != "newline missing"])  # fmt: skip
def test_a_spoiled_tokenizer_makes_other_ids(change: str, candidate: Candidate, shared: Shared) -> None:
    def ids() -> list[list[int]]:
        return [candidate.model.tokenizer.encode(text) for text in outputs.TEXTS]

    clean = ids()
    with candidate.applied(Mutant("", "", Words(change)), shared):
        assert ids() != clean
    assert ids() == clean


def test_what_the_oracle_does_not_have_does_not_apply(candidate: Candidate, shared: Shared) -> None:
    for seam in (Twin(written=1), Angles(theta=2), Source("attention.attention", "fade", "peak"),
                 Activation("ffn_up", where=Where(sequence=1))):  # fmt: skip
        with pytest.raises(DoesNotApply), candidate.applied(Mutant("", "", seam), shared):
            pass


def test_a_misreading_of_both_sides_is_in_the_truth_too(candidate: Candidate, shared: Shared) -> None:
    seam = Reader((("rope_theta", 100.0),), shared=True)
    with candidate.applied(Mutant("", "", seam), shared) as (under_test, _):
        assert under_test.truth.file.config.rope_theta == 100 * FILE.config.rope_theta
        assert under_test.candidate.file.config == under_test.truth.file.config


# What counts


def seen_by_logits(under_test: UnderTest) -> Answer:
    """A gate that knows the clean engine by heart."""
    same = np.array_equal(under_test.candidate.forward(IDS), CLEAN["logits"])
    return Answer(Verdict.NOISE if same else Verdict.BUG, [] if same else ["logits"])


def breaks_on_rope(under_test: UnderTest) -> Answer:
    if under_test.candidate.weights.fault.score != 1:
        raise IndexError("a gate's own mistake")
    return Answer(Verdict.NOISE, [])


def cannot(raw: np.ndarray, type_name: str) -> np.ndarray:
    raise ZeroDivisionError


CLEAN: dict[str, np.ndarray] = {}


@pytest.fixture(scope="module")
def bench(candidate: Candidate, shared: Shared) -> Iterator[Bench]:
    CLEAN["logits"] = candidate.model.forward(IDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "N_LOGITS", 6)
        patch.setattr(outputs, "N_WRITTEN", 2)
        alarmed = {"always": lambda _: Answer(Verdict.BUG, ["always"])}
        yield Bench(candidate, shared, {"logits": seen_by_logits, "breaks": breaks_on_rope, **alarmed}, ("prefill",))


def test_the_clean_twin_and_a_gate_that_cries_wolf(bench: Bench) -> None:
    clean = bench.clean()
    assert clean.outcome == "alarm" and clean.gates["logits"]["verdict"] == "NOISE"


def test_a_kill_is_a_gates_own_verdict_on_a_changed_output(bench: Bench) -> None:
    found = bench.run(Mutant("m", "f", SEAMS["activation"], real_bug=7))
    assert (found.outcome, found.declared, found.changed) == ("killed", ("ffn_up", 1), ["prefill"])
    assert found.gates["logits"] == {"verdict": "BUG", "checks": ["logits"], "site": None, "kill": True}
    assert not found.gates["always"]["kill"], "the clean twin did not pass this gate"
    assert found.effect["floors"] > 1 and 0 < found.effect["kl_mean"] <= found.effect["kl_max"]


def test_an_equivalent_mutant_is_none_that_was_missed(bench: Bench) -> None:
    found = bench.run(Mutant("m", "f", Activation("ffn_up", 1, gain=2, where=Where(first=100))))
    assert found.outcome == "equivalent" and not found.changed
    assert score.rate([found], score.killed) == score.Rate(0, 0)


def test_what_was_not_applied_counts_against_us(bench: Bench) -> None:
    found = bench.run(Mutant("m", "f", Activation("ffn_up", 99)))
    assert found.outcome == "not-applied" and "layer 99" in found.note
    assert score.rate([found], score.killed) == score.Rate(0, 1)


def test_an_exception_is_not_a_kill(bench: Bench) -> None:
    del bench.gates["logits"]  # type: ignore[attr-defined]
    try:
        found = bench.run(Mutant("m", "f", Twin(score=2)))
        assert found.outcome == "crashed" and "a gate's own mistake" in found.note
        broken = bench.run(Mutant("m", "f", Bytes("blk.1.ffn_up.weight", cannot)))
        assert broken.outcome == "crashed" and "ZeroDivisionError" in broken.note
        survived = bench.run(Mutant("m", "f", SEAMS["activation"]))
        assert survived.outcome == "survived" and score.survivors([survived, found]) == [survived, found]
    finally:
        bench.gates["logits"] = seen_by_logits  # type: ignore[index]


# The fast engine with seams


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activation", "norm", "rope", "keys", "scores"])
def test_the_same_numbers_spoil_both_engines_alike(name: str, monkeypatch: pytest.MonkeyPatch, shared: Shared) -> None:
    monkeypatch.setattr(oracle, "JUDGED", "f32")
    with oracle.instrumented():
        theirs = oracle.loaded(FILE, "f32")
        oracle.set_fault(theirs, fault_of(SEAMS[name], FILE.config, FILE.vocabulary))
        expected = theirs.forward(IDS)
    monkeypatch.undo()
    ours = fast_candidate()
    with ours.applied(Mutant("", "", SEAMS[name]), shared) as (under_test, _):
        assert np.abs(under_test.candidate.forward(IDS) - expected).max() < 1e-4


MADE: list[Candidate] = []


def fast_candidate() -> Candidate:
    """One for all tests: its programs compile once."""
    if not MADE:
        with instrumented("f32"):
            MADE.append(Candidate(FILE, "f32"))
            MADE[0].model.forward(IDS)
    return MADE[0]
