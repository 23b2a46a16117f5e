"""``assay.judge`` and anybody's engine: whole, in part, and wrong in every way that one can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import assay
from assay import Declaration
from assay.formats import AssayError, InputError, SampleError, open_model
from assay.formats.contract.config import STAGES
from assay.goldens import BUILTIN
from assay.judging import public
from assay.judging.anybody import Anybody
from assay.judging.engines_under_test import baseline
from assay.parity.verdict import Verdict
from assay.peers.judged import ExternalEngine
from tests.planted import FAULTS, IDS, Planted

F32 = Declaration()
FILE = open_model(BUILTIN)
SHORT = IDS[:6]


SHARED = baseline(FILE)


@pytest.fixture(autouse=True)
def one_truth_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth and floors of the same sample are the same, whatever is judged."""
    monkeypatch.setattr(public, "baseline", lambda file: SHARED)


class Whole:
    """An engine that is the oracle inside, and shares no class with it."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def forward(self, ids: Sequence[int], tap: Any = None) -> Any:
        return self.engine.forward(ids, tap)

    def prefill(self, ids: Sequence[int], cache: Any = None) -> Any:
        return self.engine.prefill(ids, cache)

    def decode(self, token: int, cache: Any) -> Any:
        return self.engine.decode(token, cache)

    def fingerprint(self) -> dict[str, Any]:
        return {"engine": "mine", "declaration": F32.to_json()}


class Untapped:
    """It shows no stages."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def forward(self, ids: Sequence[int]) -> Any:
        return self.engine.forward(ids)


class PrefillOnly:
    """It reads from the beginning, and gives the last logits."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def prefill(self, ids: Sequence[int]) -> Any:
        return self.engine.prefill(ids)[0], None


@pytest.fixture
def whole(builtin_f32: Any) -> Whole:
    return Whole(builtin_f32)


def test_a_whole_engine_is_judged_in_full(whole: Whole) -> None:
    found = assay.judge(whole, FILE, SHORT, tier="full", runs=2)
    every = ["stages by prefill", "tokens by prefill", "stages by decode", "tokens by decode", "writing by itself",
             "second reading"]  # fmt: skip
    assert [part.name for part in found.parts] == every and found.parts[2].verdict == Verdict.SKIPPED
    assert found.verdict == Verdict.NOISE and found.exit_code == 0 and found.site is None, str(found)
    assert found.stages and found.flips and found.ids == tuple(SHORT) and found.declared == F32
    assert found.stages.verdict == Verdict.BIT_EQUAL and found.candidate["engine"] == "mine"
    assert any("no tokenizer" in line for line in found.findings) and not any("declares" in f for f in found.findings)
    said = json.loads(json.dumps(found.to_json()))
    assert said["verdict"] == "NOISE" and len(said["parts"][0]["stages"]) == len(found.stages.finding.local)
    assert said["declared"]["activations"]["q"] == "f32" and str(found).startswith("NOISE: ")


@pytest.mark.parametrize("name", ["one row of a matrix with its sign turned", "query at the next position"])
def test_a_fault_has_its_site_in_the_report(name: str, whole: Whole) -> None:
    site, change = FAULTS[name]
    found = assay.bisect(Planted(whole, site, change), FILE, IDS[:8], runs=2)
    assert (found.verdict, found.exit_code, found.site) == (Verdict.BUG, 8, site)
    assert f"{site[0]} of layer {site[1]}: its local error is" in str(found) and "BUG" in repr(found.to_json())


def test_engines_by_name_dumps_and_the_text_of_a_prompt() -> None:
    found = assay.judge("reference", prompt="def f(x):", arith="f32", runs=2, texts=["a b", "123"])
    assert found.verdict == Verdict.NOISE and found.parts[-1].verdict == Verdict.BIT_EQUAL and not found.findings
    counted = assay.flips("reference", FILE, SHORT, free=3, runs=2)
    assert counted.verdict == Verdict.NOISE and [part.name for part in counted.parts][1] == "writing by itself"
    for option in ("arith", "cache_type"):
        arguments: dict[str, Any] = {option: "f32"}
        with pytest.raises(InputError, match="loaded already"):
            assay.judge(Untapped(None), FILE, SHORT, **arguments)


def test_a_server_is_judged_by_its_tokens(builtin_f32: Any) -> None:
    def named(ids: Sequence[int], n: int) -> list[tuple[int, float]]:
        logits = builtin_f32.prefill(ids)[0].astype(np.float64)
        return [(int(i), float(logits[i] - np.logaddexp.reduce(logits))) for i in np.argsort(-logits)[:n]]

    peer: Any = SimpleNamespace(name="llama.cpp", named_tokens=named)
    found = assay.judge(ExternalEngine(peer, FILE, "1"), FILE, SHORT, declaration=F32, runs=2)
    assert [part.verdict for part in found.parts] == [Verdict.SKIPPED, Verdict.NOISE]
    assert "a server shows no stages" in str(found)


def test_a_dump_is_an_engine_too(tmp_path: Any, builtin_f32: Any) -> None:
    from assay.parity.recorder import recording
    from assay.parity.sample import Sample

    sample = Sample(None, tuple(SHORT), FILE.sha256)
    with recording(tmp_path / "dump", sample, [], builtin_f32.fingerprint(), layout="npy", force=False) as tap:
        builtin_f32.forward(SHORT, tap)
    found = assay.judge(tmp_path / "dump", FILE, SHORT, runs=2)
    assert found.verdict in (Verdict.NOISE, Verdict.BIT_EQUAL) and len(found.parts) == 2
    assert assay.judge(tmp_path / "dump", FILE, SHORT, runs=2, declaration=Declaration("bf16")).declared is not None


def missing(builtin_f32: Any, *names: str) -> Whole:
    """A whole engine without some of its functions."""
    kind = type("Partial", (Whole,), dict.fromkeys(names))
    return kind(builtin_f32)


@pytest.mark.parametrize(("names", "skipped", "verdict"), [
    (["fingerprint"], [], Verdict.UNCALIBRATED),
    (["decode"], [], Verdict.NOISE),
    (["prefill"], ["tokens by decode", "writing by itself"], Verdict.NOISE),
    (["prefill", "decode"], ["tokens by decode", "writing by itself"], Verdict.NOISE),
    (["forward"], ["stages by prefill"], Verdict.NOISE),
])  # fmt: skip
def test_what_an_engine_lacks_is_a_named_weaker_verdict(
    names: list[str], skipped: list[str], verdict: Verdict, builtin_f32: Any
) -> None:
    found = assay.judge(missing(builtin_f32, *names), FILE, SHORT, tier="full", runs=2)
    assert found.verdict == verdict, str(found)
    weaker = {part.name for part in found.parts[:5] if part.verdict == Verdict.SKIPPED}
    assert weaker == {"stages by decode", *skipped}
    assert all(any(line.startswith(f"{name}: not judged") for line in found.findings) for name in skipped)


@pytest.mark.parametrize("kind", [Untapped, PrefillOnly])
def test_an_engine_without_taps_is_judged_by_its_tokens(kind: Callable[[Any], Any], builtin_f32: Any) -> None:
    found = assay.judge(kind(builtin_f32), FILE, SHORT, declaration=F32, runs=2)
    assert found.verdict == Verdict.NOISE and found.parts[0].verdict == Verdict.SKIPPED and found.flips is not None
    assert assay.judge(kind(builtin_f32), FILE, SHORT).exit_code == 10, "it does not say how it computes"
    nothing = assay.bisect(kind(builtin_f32), FILE, SHORT, declaration=F32)
    assert nothing.verdict == Verdict.SKIPPED and nothing.exit_code == 10
    beside = public.Part("tokenizer", Verdict.BIT_EQUAL, "the same ids")
    assert replace(nothing, parts=(*nothing.parts, beside)).verdict == Verdict.SKIPPED, "nothing was computed"
    assert replace(nothing, parts=(replace(beside, verdict=Verdict.BUG),)).verdict == Verdict.BUG
    for useless in (object(), lambda ids: ids, None, 3):
        with pytest.raises(InputError, match="neither forward nor prefill"):
            assay.judge(useless, FILE, SHORT)


class Shows(Whole):
    """It shows some of the stages."""

    hidden: tuple[str, ...] = ()

    def forward(self, ids: Sequence[int], tap: Any = None) -> Any:
        def some(stage: str, layer: int | None, x: np.ndarray) -> Any:
            return x if stage in self.hidden or tap is None else tap(stage, layer, x)

        return self.engine.forward(ids, some)


@pytest.mark.parametrize("hidden", [("q_proj", "k_proj", "v_proj", "attn_out"), ("logits",), STAGES])
def test_a_fault_at_a_hidden_stage_counts_to_the_next_one(hidden: tuple[str, ...], builtin_f32: Any) -> None:
    engine = Shows(builtin_f32)
    engine.hidden = hidden
    found = assay.bisect(engine, FILE, SHORT, runs=2)
    assert found.verdict.green, str(found)
    assert any(f"not shown: {hidden[0]}" in line for line in found.findings) == (hidden != ("logits",))
    engine.engine = Planted(builtin_f32, ("k_proj", 1), lambda x: x * 1.001)
    found = assay.bisect(engine, FILE, SHORT, runs=2)
    assert found.verdict == Verdict.BUG
    assert found.site == {"q_proj": ("k_bias", 1), "logits": ("k_proj", 1), "embedding": ("logits", None)}[hidden[0]]


def test_what_reads_from_the_beginning_only_has_a_cache_of_ids(builtin_f32: Any) -> None:
    engine = Anybody(Untapped(builtin_f32), FILE)
    logits, cache = engine.prefill(SHORT)
    after, cache = engine.decode(7, cache)
    whole = builtin_f32.forward([*SHORT, 7])
    assert np.array_equal(after, whole[-1]) and cache == [*SHORT, 7] and not engine.decodes
    np.testing.assert_allclose(logits, whole[-2], atol=1e-4)


def wrong(builtin_f32: Any, change: Callable[[Any], Any], where: str) -> Whole:
    """An engine that hands out something else."""

    class Wrong(Whole):
        def forward(self, ids: Sequence[int], tap: Any = None) -> Any:
            if where == "stage" and tap:
                return self.engine.forward(ids, lambda stage, layer, x: tap(
                    stage, layer, change(x) if stage == "ffn_up" and layer == 1 else x).astype(np.float32))  # fmt: skip
            logits = self.engine.forward(ids, tap)
            return change(logits) if where == "forward" else logits

        def prefill(self, ids: Sequence[int], cache: Any = None) -> Any:
            found = self.engine.prefill(ids, cache)
            return change(found) if where == "prefill" else found

        def fingerprint(self) -> Any:
            return change({}) if where == "fingerprint" else super().fingerprint()

    return Wrong(builtin_f32)


def raises(found: Any) -> Any:
    raise RuntimeError("out of\nmemory")


@pytest.mark.parametrize(("where", "change", "error", "said"), [
    ("forward", raises, InputError, "forward of Wrong.*: it raised RuntimeError: out of memory"),
    ("stage", raises, InputError, "forward of Wrong, after ffn_gate of layer 1 was shown: it raised RuntimeError"),
    ("stage", lambda x: x[:, :-1], SampleError, "ffn_up of layer 1"),
    ("stage", lambda x: x[None], SampleError, "ffn_up of layer 1"),
    ("stage", lambda x: x.astype(np.int32), InputError, "ffn_up of layer 1 of Wrong: an array of int32"),
    ("stage", lambda x: "text", InputError, "ffn_up of layer 1 of Wrong: an array of <U4"),
    ("stage", lambda x: np.float32(1), InputError, "ffn_up of layer 1 of Wrong: an array of float32 and 0 dim"),
    ("forward", lambda x: None, InputError, "logits of Wrong"),
    ("forward", lambda x: x[-1], SampleError, "forward of Wrong"),
    ("forward", lambda x: x[:, :100], SampleError, "forward of Wrong"),
    ("forward", lambda x: [[1], [1, 2]], InputError, "a list is not an array"),
    ("forward", lambda x: x.astype(complex), InputError, "an array of complex128"),
    ("prefill", raises, InputError, "prefill of Wrong: it raised RuntimeError"),
    ("prefill", lambda x: x[0], InputError, "prefill of Wrong: it returned a ndarray"),
    ("prefill", lambda x: (x[0][None], x[1]), SampleError, "prefill of Wrong"),
    ("fingerprint", lambda x: "f32", InputError, "fingerprint of Wrong: it is a str"),
    ("fingerprint", raises, InputError, "fingerprint of Wrong: it raised"),
    ("fingerprint", lambda x: {"declaration": {"cache": "q8"}}, InputError, "cache of Declaration"),
])  # fmt: skip
def test_what_an_engine_hands_out_wrong_is_an_error_with_a_site(
    where: str, change: Callable[[Any], Any], error: type[AssayError], said: str, builtin_f32: Any
) -> None:
    path = "decode" if where == "prefill" else "prefill"
    with pytest.raises(error, match=said) as caught:
        assay.judge(wrong(builtin_f32, change, where), FILE, SHORT, path=path, runs=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_any_type_of_float_is_read(dtype: Any, builtin_f32: Any) -> None:
    engine = wrong(builtin_f32, lambda x: x.astype(dtype), "stage")
    found = assay.bisect(engine, FILE, SHORT, runs=2)
    assert found.site == (("ffn_up", 1) if dtype == np.float16 else None)


def test_what_is_not_a_number_is_a_bug_with_a_site(builtin_f32: Any) -> None:
    def spoil(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[2] = np.nan
        return x

    found = assay.judge(wrong(builtin_f32, spoil, "stage"), FILE, SHORT, runs=2)
    assert found.verdict == Verdict.BUG and found.site == ("ffn_up", 1)
    found = assay.judge(wrong(builtin_f32, spoil, "forward"), FILE, SHORT, runs=2)
    assert found.verdict == Verdict.BUG and "NaN or infinite at position 2" in str(found)


def test_another_stage_than_the_models_is_refused(builtin_f32: Any) -> None:
    class Foreign(Whole):
        shown: Any = ("ffn_up", 9)

        def forward(self, ids: Sequence[int], tap: Any = None) -> Any:
            if tap:
                tap(*self.shown, np.zeros((len(ids), 4), np.float32))
            return self.engine.forward(ids)

    for shown in (("ffn_up", 9), ("ffn_up", None), ("logits", 1), ("mlp", 0), (3, 0), ("ffn_up", "0")):
        engine = Foreign(builtin_f32)
        engine.shown = shown
        with pytest.raises(SampleError, match="which the model does not have"):
            assay.judge(engine, FILE, SHORT, runs=2)


class Tokenizing(Whole):
    """With a tokenizer of its own."""

    ids: Any = None

    @property
    def tokenizer(self) -> Any:
        return self

    def encode(self, text: Any) -> Any:
        found = self.engine.tokenizer.encode(text)
        return self.ids(found) if self.ids else found


@pytest.mark.parametrize(("differences", "failed", "verdict"), [
    ((), "", Verdict.BIT_EQUAL), (("rope_theta",), "", Verdict.REFERENCE_SUSPECT), ((), "why", Verdict.SKIPPED),
])  # fmt: skip
def test_a_second_reader_may_accuse_the_first(differences: Any, failed: str, verdict: Verdict,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    found = SimpleNamespace(differences=differences, failed=failed, says="said")
    monkeypatch.setattr(public, "check", lambda file, values: found)
    assert public.reading_part(FILE, True) == public.Part("second reading", verdict, "said")


def test_its_own_tokenizer_is_judged(builtin_f32: Any) -> None:
    engine = Tokenizing(builtin_f32)
    assert assay.judge(engine, FILE, "a b", texts=["c d"], runs=2).parts[-1].verdict == Verdict.BIT_EQUAL
    with pytest.raises(InputError, match="renders no conversations"):
        assay.judge(engine, FILE, "a b", chat=True)
    engine.ids = lambda found: [*found, 1]
    with pytest.raises(SampleError, match="token ids"):
        assay.judge(engine, FILE, "a b")
    found = assay.judge(engine, FILE, SHORT, texts=["a b", "c"], runs=2)
    assert found.verdict == Verdict.BUG and "2 of 2 texts have other ids" in str(found)
    engine.ids = lambda found: "ab"
    with pytest.raises(InputError, match="tokenizer of Tokenizing: it raised ValueError"):
        assay.judge(engine, FILE, "a b")
    assert "tokenizer: not judged" in str(assay.judge(Whole(builtin_f32), FILE, SHORT, texts=["a"], runs=2))


def test_declaring_more_than_is_used_is_said(whole: Whole) -> None:
    """Not a BUG: the engine is right. But a fault as large as what it declares would have passed."""
    eight = Declaration("int8/256", weights={"down": "bf16"}, cache="f16")
    found = assay.bisect(whole, FILE, SHORT, declaration=eight, runs=2)
    assert found.verdict.green and found.forgives == eight.describe()
    said = [line for line in found.findings if line.startswith("declares")]
    assert len(said) == 9 and "8 bits in blocks of 256 in products with q," in said[0] and "kept in f16" in said[-1]
    one = assay.bisect(whole, FILE, SHORT, declaration=Declaration({"up": ["f32", "bf16", "f32", "f32"]}), runs=2)
    assert sum(line.startswith("declares bf16 in products with up") for line in one.findings) == 1
    bf16 = assay.bisect(whole, FILE, SHORT, declaration=Declaration(results="bf16"), runs=2)
    assert any("results rounded to bf16" in line for line in bf16.findings)


@pytest.mark.parametrize("arith", ["ggml", pytest.param("f32", marks=pytest.mark.slow)])
def test_what_is_used_as_declared_is_not_said(arith: str) -> None:
    found = assay.bisect("reference", FILE, SHORT, arith=arith, runs=2)
    assert found.verdict.green and not any("declares" in line for line in found.findings)
