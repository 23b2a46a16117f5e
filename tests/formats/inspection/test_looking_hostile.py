"""Damaged files looked at from every side: an error of our own, or an answer; never another exception."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.formats import AssayError
from assay.formats.containers.opening import open_container
from assay.formats.inspection.byte_map import sections, spans
from assay.formats.inspection.byte_map_tensor import block_at
from assay.formats.inspection.checks import validate
from assay.formats.inspection.diff import compare
from tests import apr_builder, apr_files
from tests.model_builder import Shape, build

SHAPE = Shape(n_layers=2, hidden=256, types={"ffn_up": ["Q4_K", "Q6_K"], "attn_q": ["Q4_K"]})


def look(path: Path, good: Path) -> None:
    """Everything that the commands ask of a file."""
    try:
        container = open_container(path)
    except AssayError:
        return
    found = sections(container)
    assert sum(section.nbytes for section in found) == container.size
    last = -1
    for span in spans(container, 0, container.size):
        assert span.offset > last
        last = span.offset
        if span.block is not None:
            block_at(container, span.tensor, span.block)
    report = validate(container)
    assert report.exit_code in (0, 3, 4)
    compare(container, open_container(good))
    compare(open_container(good), container)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_changed_anywhere(data: st.DataObject, tmp_path: Path) -> None:
    for good in (tmp_path / "good.gguf", tmp_path / "good.apr"):
        if not good.exists():
            (build if good.suffix == ".gguf" else apr_builder.build)(good, SHAPE)
        raw = bytearray(good.read_bytes())
        data_start = min(info.offset for info in open_container(good).tensors.values())
        places = st.one_of(st.integers(0, data_start - 1), st.integers(0, len(raw) - 1))
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(places)] = data.draw(st.sampled_from([0, 1, 2, 8, 32, 127, 128, 255]))
        bad = tmp_path / f"bad{good.suffix}"
        # An APR file with a wrong header checksum is refused at once, so it is sealed again.
        bad.write_bytes(apr_files.resealed(bytes(raw)) if good.suffix == ".apr" else raw)
        look(bad, good)
