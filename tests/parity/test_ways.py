"""Windows of a text behind a filled cache: which are judged, what taps see of them, and faults that only they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from assay.formats import SampleError
from assay.formats.contract.engine import Tap
from assay.formats.system.progress import quiet
from assay.judging.engines_under_test import UnderTest
from assay.judging.judge_stages import FORWARD, every_row, judge_stages
from assay.parity import stages
from assay.parity.distance import distance
from assay.parity.verdict import Verdict
from assay.parity.ways import AtOnce, Generating, Window, crossing, places, shows_where_it_generates, windows
from tests.planted import Planted

DECLARED = {"boundaries": {"chunk": [16, 512], "attention_block": [128, 256], "cache": [256, 512, 1024, 2048]}}
TEXT = [(17 * i * i + 5 * i) % 500 for i in range(152)]


def spans(n: int, path: str = "prefill", *, full: bool = False) -> list[tuple[int, int]]:
    return [(one.start, one.stop) for one in windows(range(n), DECLARED, path, full=full)]


def test_windows_lie_on_both_sides_of_what_an_engine_declares() -> None:
    assert places(DECLARED) == [128, 256, 512, 1024, 2048] and places({}) == []
    assert crossing(DECLARED, "prefill", 256) == 140 and crossing(DECLARED, "prefill", 1048) == 1036
    assert crossing(DECLARED, "decode", 280) == 260 and crossing({}, "prefill", 1048) == 128
    assert spans(128) == [(0, 128)], "short enough to be kept whole"
    assert spans(140) == [(0, 24), (116, 140)] and spans(260, "decode") == [(0, 8), (124, 132), (252, 260)]
    assert spans(1036) == [(0, 24), (116, 140), (1012, 1036)]
    assert spans(1036, full=True) == [(0, 24), (116, 140), (244, 268), (500, 524), (1012, 1036)]
    assert spans(152) == [(0, 24), (116, 152)], "two that overlap are one"
    assert sum(stop - start for start, stop in spans(5000, full=True)) <= stages.MAX_TOKENS


@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_a_window_is_judged_as_it_is_shown_and_gone_on_with(path: str, judged: UnderTest) -> None:
    """Step by step or at once: the same activations, to rounding; what was handed back is gone on with."""
    window = Window(tuple(TEXT[:20]), 9, 20, path)
    truth = stages.capture(AtOnce(judged.truth, window), window.ids)
    candidate = Generating(judged.oracle, window)
    alone = stages.local(candidate, window.ids, truth)
    assert list(alone) == list(truth) and max(one.relative_l2 for one in alone.values()) < 1e-5
    assert truth["logits", None].shape[0] == (1 if path == "prefill" else 11)
    assert np.allclose(candidate.forward(window.ids), truth["logits", None], atol=1e-3)

    def spoil(stage: str, layer: int | None, x: np.ndarray) -> np.ndarray:
        return 2 * x if (stage, layer) == ("v_bias", 1) else x

    assert not np.allclose(candidate.forward(window.ids, spoil), truth["logits", None], atol=1e-3)


def test_each_step_is_measured_once(monkeypatch: pytest.MonkeyPatch, judged: UnderTest) -> None:
    """The work of a window grows with its steps, not with their square."""
    window = Window(tuple(TEXT[:20]), 8, 20, "decode")
    truth, rows = stages.capture(AtOnce(judged.truth, window), window.ids), []

    def counting(found: np.ndarray, expected: np.ndarray) -> Any:
        rows.append(len(found))
        return distance(found, expected)

    monkeypatch.setattr(stages, "distance", counting)
    stages.local(Generating(judged.oracle, window), window.ids, truth)
    assert sum(rows) == sum(map(len, truth.values())) and len(rows) == len(truth)


def test_rows_that_belong_nowhere_are_another_sample(judged: UnderTest) -> None:
    window = Window(tuple(TEXT[:12]), 8, 12, "decode")
    truth = stages.capture(AtOnce(judged.truth, window), window.ids)
    for ids in (window.ids[:-1], [*window.ids, 3]):
        with pytest.raises(SampleError, match="positions"):
            stages.local(Generating(judged.oracle, window), ids, truth)


def test_steps_that_were_not_taken_count_as_right(judged: UnderTest) -> None:
    """Logits cease to be numbers at the third step: the site is what was computed by then."""
    window = Window(tuple(TEXT[:12]), 8, 12, "decode")
    truth = stages.capture(AtOnce(judged.truth, window), window.ids)

    def broken(x: np.ndarray) -> np.ndarray:
        steps.append(1)
        return x * (np.nan if len(steps) == 3 else 1)

    steps: list[int] = []
    alone = stages.local(Generating(Planted(judged.oracle, ("ffn_up", 2), broken), window), window.ids, truth)
    assert alone["ffn_up", 2].n_bad and alone["q_proj", 0].relative_l2 < 1e-5 and list(alone) == list(truth)


class Faulty:
    """The oracle with a fault on one way through it."""

    def __init__(self, engine: Any, fault: str) -> None:
        self.engine, self.fault = engine, fault

    def prefill(self, ids: Sequence[int], cache: Any = None, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        far = cache is not None and len(cache.ids) + len(ids) > 128
        if (self.fault == "far" and far) or (self.fault == "decode" and len(ids) == 1):
            return self.engine.prefill(ids, cache, wrong(tap))
        if self.fault == "cache" and cache is not None and len(cache.ids) > 32:
            cache.keys[2][32] = cache.keys[2][31]
        return self.engine.prefill(ids, cache, tap)

    def decode(self, token: int, cache: Any, tap: Tap | None = None) -> tuple[np.ndarray, Any]:
        return self.prefill([token], cache, tap)

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        rows = self.engine.embed(ids)
        return np.where(np.equal(ids, 2_001)[:, None], rows[::-1], rows) if self.fault == "row" else rows

    def forward(self, ids: Sequence[int], tap: Tap | None = None) -> np.ndarray:
        return self.engine.forward(ids, tap)

    def fingerprint(self) -> dict[str, Any]:
        return self.engine.fingerprint() | {"boundaries": DECLARED["boundaries"]}


def wrong(tap: Tap | None) -> Tap:
    """A tap that comes after a fault in layer 2."""

    def spoiled(stage: str, layer: int | None, x: Any) -> Any:
        x = x * x.dtype.type(1.01) if (stage, layer) == ("ffn_up", 2) else x
        return tap(stage, layer, x) if tap else x

    return spoiled


@pytest.mark.parametrize(("fault", "path", "site"), [
    ("none", "prefill", None),
    ("far", "prefill", ("ffn_up", 2)),
    ("cache", "prefill", ("attention", 2)),
    ("row", "prefill", ("embedding", None)),
    ("none", "decode", None),
    ("decode", "decode", ("ffn_up", 2)),
    ("cache", "decode", ("attention", 2)),
])  # fmt: skip
def test_faults_that_a_short_text_read_at_once_does_not_show(
    fault: str, path: str, site: Any, judged: UnderTest
) -> None:
    """By ``forward`` on a few tokens all of them are green: the fault is on another way, or further on."""
    found = judge_stages(UnderTest(judged.baseline, Faulty(judged.oracle, fault)), TEXT, path, 2, quiet)
    assert found is not None and found.finding.site == site and not found.weaker
    assert (found.verdict == Verdict.BIT_EQUAL) == (site is None)
    assert [(one.start, one.stop) for one in found.windows] == (
        [(0, 24), (116, 152)] if path == "prefill" else [(0, 8), (124, 132), (144, 152)])  # fmt: skip
    assert (found.site_window is None) == (site is None)


class Plain:
    """An engine without taps where it generates."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.forward, self.fingerprint = engine, engine.forward, engine.fingerprint

    def prefill(self, ids: Sequence[int], cache: Any = None) -> tuple[np.ndarray, Any]:
        return self.engine.prefill(ids, cache)

    def decode(self, token: int, cache: Any) -> tuple[np.ndarray, Any]:
        return self.engine.decode(token, cache)


def test_an_engine_that_shows_stages_in_forward_alone_is_judged_by_that(judged: UnderTest) -> None:
    assert shows_where_it_generates(judged.oracle) and not shows_where_it_generates(Plain(judged.oracle))
    under_test = UnderTest(judged.baseline, Plain(judged.oracle))
    found = judge_stages(under_test, TEXT[:20], "prefill", 2, quiet)
    assert found is not None and found.verdict.green and found.weaker == FORWARD and every_row(under_test) is None
