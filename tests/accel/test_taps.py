"""Taps in the programs that generate: what they are shown, that they may replace it, and that they never hang."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from assay import accel, reference
from assay.accel.model import Model
from assay.accel.sampler import settings_of
from assay.formats.contract.config import LAYER_STAGES
from assay.formats.contract.engine import Sampling, identity
from assay.goldens import BUILTIN
from tests.stages import expected_order, relative, rounding_bound

IDS = [185, 3, 77, 410, 3, 3, 250, 19, 476, 300, 9, 8, 7]
Shown = list[tuple[str, int | None, np.ndarray]]


def recorder(shown: Shown) -> Any:
    def tap(stage: str, layer: int | None, activation: np.ndarray) -> np.ndarray:
        shown.append((stage, layer, np.array(activation, np.float64)))
        return activation

    return tap


def same(found: Shown, wanted: Shown, model: Model) -> None:
    """Order, shapes and, to rounding, values."""
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    for (stage, layer, x), (_, _, t) in zip(found, wanted, strict=True):
        assert x.shape == t.shape and relative(x, t) < rounding_bound(model.file.config, None), (stage, layer)


def test_a_prefill_and_decode_steps_show_what_they_compute(builtin_accel: Model, builtin_f64: Any) -> None:
    """From an empty cache and from one that holds something; logits are those that are returned."""
    caches: list[Any] = [None, None]
    for ids in (IDS, [5], IDS[::-1]):
        found, wanted = Shown(), Shown()
        logits, caches[0] = builtin_accel.prefill(ids, caches[0], recorder(found))
        _, caches[1] = builtin_f64.prefill(ids, caches[1], recorder(wanted))
        assert [one[:2] for one in found] == expected_order(builtin_accel.file.config.n_layers)
        same(found, wanted, builtin_accel)
        assert np.array_equal(found[-1][2][0], logits)


def test_what_a_tap_hands_back_is_what_a_generation_goes_on_with(builtin_accel: Model) -> None:
    """Also into the cache: a value that was replaced is there in the next step."""
    _, plain = builtin_accel.prefill(IDS)
    _, spoiled = builtin_accel.prefill(IDS, None, lambda stage, layer, x: -x if stage == "v_bias" else x)
    before, after = (builtin_accel.decode(5, cache)[0] for cache in (plain, spoiled))
    assert relative(after, before) > 1e-2


@pytest.mark.parametrize("ids", [IDS, [5]])
def test_looking_moves_the_logits_by_rounding_at_most(ids: list[int], builtin_accel: Model) -> None:
    plain, tapped = (builtin_accel.prefill(ids, None, tap)[0] for tap in (None, identity))
    assert relative(tapped, plain) < 2 * rounding_bound(builtin_accel.file.config, None)


@pytest.mark.slow
def test_a_long_prompt_is_shown_in_the_pieces_in_which_it_is_read(builtin_f64: Any) -> None:
    model, found, wanted = accel.load(BUILTIN, arith="f32"), Shown(), Shown()
    ids, longest = (IDS * 30)[:300], max(model.fingerprint()["boundaries"]["chunk"])
    model.prefill(ids, None, recorder(found))
    cache = None
    for piece in (ids[:longest], ids[longest:]):
        _, cache = builtin_f64.prefill(piece, cache, recorder(wanted))
    same(found, wanted, model)


@pytest.mark.slow
def test_sequences_side_by_side_are_rows(builtin_accel: Model, builtin_f64: Any) -> None:
    """A batch's step, and several steps in one call."""
    model, prompts, tokens = builtin_accel, (IDS, IDS[:4], [9, 9]), [5, 6, 7]
    caches = [model.prefill(ids)[1] for ids in prompts]
    cache, seen = model.join(caches, [model.new_seen(ids) for ids in prompts])
    found: Shown = []
    steps, _, _ = model.decode_steps(tokens, cache, seen, settings_of(Sampling()), 0, 2, np.zeros(3, bool), 0,
                                     recorder(found))  # fmt: skip
    assert len(steps) == 2 and len(found) == 2 * len(expected_order(model.file.config.n_layers))
    for row, (ids, token) in enumerate(zip(prompts, tokens, strict=True)):
        wanted: Shown = []
        _, alone = builtin_f64.prefill(ids)
        for one in (token, int(steps[0].token[row])):
            builtin_f64.decode(one, alone, recorder(wanted))
        same([(stage, layer, x[row : row + 1]) for stage, layer, x in found], wanted, model)


def test_the_embedding_alone_is_that_of_a_pass(builtin_accel: Model, builtin_f64: Any) -> None:
    found: Shown = []
    builtin_accel.prefill(IDS, None, recorder(found))
    assert np.array_equal(builtin_accel.embed(IDS), found[0][2])
    everything = range(builtin_accel.file.config.n_vocab)
    assert np.array_equal(builtin_accel.embed(everything), builtin_f64.embed(everything).astype(np.float32))


def test_both_engines_say_where_they_change_their_way(builtin_accel: Model) -> None:
    said = builtin_accel.fingerprint()["boundaries"]
    assert said["chunk"][0] > said["one_by_one"] and said["cache"][-1] >= builtin_accel.file.config.context_length
    assert said["attention_block"] == [128, 256, 512] and said["steps"] == 16
    assert "boundaries" not in reference.load(BUILTIN).fingerprint(), "it reads everything in one way"


ONE_PROCESSOR = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from assay import accel
from assay.formats.contract.engine import identity
from assay.goldens import BUILTIN
model = accel.load(BUILTIN, arith="f32")
for _ in range(40):
    model.forward(list(range(40)), identity)
print("ended")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot give a process one processor")
def test_taps_on_a_single_processor_do_not_wait_for_themselves() -> None:
    """With ``io_callback`` they did, within the first 20 passes."""
    alone = {name: value for name, value in os.environ.items() if name != "NPROC"}
    done = subprocess.run([sys.executable, "-c", ONE_PROCESSOR], capture_output=True, text=True, timeout=300, env=alone)
    assert done.stdout.split() == ["ended"], done.stderr


def test_stages_of_a_layer_are_shown_one_after_the_other(builtin_accel: Model) -> None:
    """XLA would call back for q, k and v in any order, and from several threads."""
    for _ in range(5):
        found: Shown = []
        builtin_accel.prefill(IDS, None, recorder(found))
        assert tuple(stage for stage, layer, _ in found if layer == 2) == tuple(LAYER_STAGES)
